"""A block like GPT-2's, to time: what share of a worker's peak layers reach is a matter of both.

It is built of torch alone, in the way of `transformers`: products between which norms, attention
and `gelu_new`, which is no operation of its own, move memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.shape import shape_of_transformer

__all__ = ["BlockSizes", "ProbeBlock", "block_tflops", "sizes_for"]

_LEAST_ROUNDS = 3


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


def block_tflops(
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    synchronize: Callable[[], None],
    begin: Callable[[], None],
) -> float:
    """Return the rate of forwards and backwards of a block, in TFLOP/s: of the middle round.

    Args:
        device: Where to compute.
        dtype: Type of parameters and activations.
        seconds: How long to go on; three rounds at least.
        synchronize: Waits for the device.
        begin: Called after a first round that does not count, such as a wait for other workers.
    """
    sizes = sizes_for(device)
    block = ProbeBlock(sizes).to(device=device, dtype=dtype)
    shape = (sizes.num_samples, sizes.sequence_length, sizes.hidden_size)
    # Of a leaf, so that backward computes its gradient too, as it does inside a model.
    values = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    slope = torch.randn(shape, device=device, dtype=dtype)

    def round_s() -> float:
        start = time.perf_counter()
        block(values).backward(slope)
        synchronize()
        return time.perf_counter() - start

    round_s()
    begin()
    times_s: list[float] = []
    while len(times_s) < _LEAST_ROUNDS or sum(times_s) < seconds:
        times_s.append(round_s())
    return sizes.flops / statistics.median(times_s) / 1e12
