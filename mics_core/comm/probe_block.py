"""A block like GPT-2's, to time: what share of a worker's peak layers reach is a matter of both.

It is built of torch alone, in the way of `transformers`: products between which norms, attention
and `gelu_new`, which is no operation of its own, move memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.shape import shape_of_transformer

__all__ = ["BlockSizes", "ProbeBlock", "round_of_block", "sizes_for"]


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What the block computes.

    Args:
        hidden_size: Width (h); the feed-forward is four times as wide.
        num_heads: Attention heads.
        sequence_length: Tokens of a sample.
        num_samples: Samples of a micro-batch.
    """

    hidden_size: int
    num_heads: int
    sequence_length: int
    num_samples: int

    @property
    def flops(self) -> float:
        """Operations of a forward and a backward, as the planner counts them."""
        hidden = self.hidden_size
        sizes = TransformerSizes(
            "gpt2", hidden, 1, self.num_heads, 4 * hidden, 1, self.sequence_length
        )
        return 3.0 * shape_of_transformer(sizes).block.flops * self.num_samples


def sizes_for(device: torch.device) -> BlockSizes:
    """Return sizes with which a round takes milliseconds: of models as such workers train them."""
    if device.type == "cuda":
        return BlockSizes(hidden_size=2048, num_heads=16, sequence_length=1024, num_samples=4)
    return BlockSizes(hidden_size=256, num_heads=4, sequence_length=128, num_samples=4)


class ProbeBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        hidden = sizes.hidden_size
        self.num_heads = sizes.num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.attention = nn.Linear(hidden, 3 * hidden)
        self.projection = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block of `hidden`, both of shape (samples, tokens, width)."""
        samples, tokens, width = hidden.shape
        parts = self.attention(self.norms[0](hidden)).view(samples, tokens, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.projection(mixed.transpose(1, 2).reshape(samples, tokens, width))
        wide = self.up(self.norms[1](hidden))
        inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * torch.pow(wide, 3.0))
        out: torch.Tensor = hidden + self.down(0.5 * wide * (1.0 + torch.tanh(inner)))
        return out


def round_of_block(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """Return a forward and backward of a block, and its operations.

    Args:
        device: Where to compute.
        dtype: Type of parameters and activations.
    """
    sizes = sizes_for(device)
    block = ProbeBlock(sizes).to(device=device, dtype=dtype)
    shape = (sizes.num_samples, sizes.sequence_length, sizes.hidden_size)
    # Of a leaf, so that backward computes its gradient too, as it does inside a model.
    values = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    slope = torch.randn(shape, device=device, dtype=dtype)
    return lambda: block(values).backward(slope), sizes.flops
