"""A model whose layers take a stated time, whatever they compute.

The wait is the emulated device: it computes for so long, while the host is free to communicate. The
layers' real arithmetic happens within that time, so the machine's cores do not decide the result,
unless so many workers share them that it takes longer.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

__all__ = ["build_emulated"]


class _Clock:
    """When a pass through a layer began."""

    def __init__(self) -> None:
        self.began = 0.0

    def start(self) -> None:
        self.began = time.monotonic()

    def wait(self, duration_s: float) -> None:
        """Wait until the pass has taken so long."""
        time.sleep(max(0.0, self.began + duration_s - time.monotonic()))


class _Enters(torch.autograd.Function):
    """Where the layer's forward begins and its backward ends."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, clock: _Clock, backward_s: float) -> torch.Tensor:
        ctx.clock, ctx.backward_s = clock, backward_s
        clock.start()
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.clock.wait(ctx.backward_s)
        return gradients[0], None, None


class _Leaves(torch.autograd.Function):
    """Where the layer's forward ends and its backward begins."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, clock: _Clock, forward_s: float) -> torch.Tensor:
        ctx.clock = clock
        clock.wait(forward_s)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.clock.start()
        return gradients[0], None, None


class _Layer(nn.Module):
    def __init__(self, width: int, forward_s: float, backward_s: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width, bias=False)
        self.forward_s = forward_s
        self.backward_s = backward_s

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        clock = _Clock()
        entered = _Enters.apply(hidden, clock, self.backward_s)
        computed = self.linear(self.norm(entered))
        return hidden + _Leaves.apply(computed, clock, self.forward_s)


class _Emulated(nn.Module):
    def __init__(
        self, vocab_size: int, width: int, num_layers: int, forward_s: float, backward_s: float
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(_Layer(width, forward_s, backward_s) for _ in range(num_layers))
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def build_emulated(
    vocab_size: int, width: int, num_layers: int, forward_s: float, backward_s: float
) -> nn.Module:
    """Build the model.

    Args:
        vocab_size: Rows of the embedding.
        width: Width; a layer has its square of parameters.
        num_layers: Layers.
        forward_s: Time that a layer's forward takes on the emulated device.
        backward_s: Time that its backward takes.
    """
    return _Emulated(vocab_size, width, num_layers, forward_s, backward_s)
