"""A model and a data set of one's own: what `job.yaml` beside this file names.

The task is to continue arithmetic sequences modulo the vocabulary: `3 8 13 18 …`.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Causal attention and a feed-forward layer: one unit of sharding."""

    def __init__(self, width: int, num_heads: int = 4):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleDict({"attention": nn.LayerNorm(width), "feed": nn.LayerNorm(width)})
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `hidden`, of shape (micro-batch, sequence, width), with the block's part added."""
        projected = self.queries_keys_values(self.norms["attention"](hidden))
        heads = projected.unflatten(-1, (3 * self.num_heads, -1)).transpose(1, 2)
        queries, keys, values = heads.chunk(3, dim=1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.mix(mixed.transpose(1, 2).flatten(2))
        return hidden + self.feed(self.norms["feed"](hidden))


class SequenceModel(nn.Module):
    """Embedding, blocks and output projection.

    All parameters are in modules of torch, which have `reset_parameters()`; a module that holds
    parameters itself needs that method, because weights are drawn unit by unit after sharding.
    """

    def __init__(self, vocabulary: int, width: int, num_blocks: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        # The elements of a module list are the units that are gathered one after the other.
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_blocks))
        self.output = nn.Linear(width, vocabulary)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits of shape (micro-batch, sequence, vocabulary)."""
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.output(hidden)


def build_model(vocabulary: int, width: int, num_blocks: int) -> nn.Module:
    """Build the model; called on the meta device, so it costs no memory."""
    return SequenceModel(vocabulary, width, num_blocks)


def build_samples(vocabulary: int, length: int, number: int) -> list[dict[str, Any]]:
    """Build the samples, the same list in every process; labels are already shifted by one."""
    source = random.Random(0)
    samples = []
    for _ in range(number):
        first, difference = source.randrange(vocabulary), source.randrange(1, vocabulary)
        tokens = [(first + difference * index) % vocabulary for index in range(length + 1)]
        samples.append({"input_ids": tokens[:-1], "labels": tokens[1:]})
    return samples
