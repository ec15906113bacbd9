"""A user's model: a small causal transformer in plain torch, which raises when told to.

Plain torch, because every worker process that imports transformers pays for it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.cluster.control import Control

# The width divides by neither 4 nor 2 x 2.
WIDTH, NUM_BLOCKS, NUM_HEADS = 66, 2, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.join = nn.Linear(WIDTH, WIDTH)
        self.norm_between = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # hidden: (micro_batch, sequence, WIDTH)
        heads = self.mix(self.norm_before(hidden)).unflatten(-1, (3, NUM_HEADS, WIDTH // NUM_HEADS))
        query, key, value = heads.movedim(-3, 0).transpose(-2, -3)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.join(mixed.transpose(-2, -3).flatten(-2))
        return hidden + self.narrow(functional.gelu(self.widen(self.norm_between(hidden))))


class UserModel(nn.Module):
    """Args:
    control: Says when to raise; none for never.
    """

    def __init__(self, vocabulary: int, sequence_length: int, control: Control | None):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Embedding(sequence_length, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.head = nn.Linear(WIDTH, vocabulary)
        self._control = control

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._control is not None:
            self._control.check_model()
        places = torch.arange(input_ids.shape[-1], device=input_ids.device)
        hidden = self.tokens(input_ids) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def build(folder: str | None, vocabulary: int, sequence_length: int) -> nn.Module:
    return UserModel(vocabulary, sequence_length, None if folder is None else Control(folder))
