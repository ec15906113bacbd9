"""Models of one's own for engine tests, each with something that the transformer families lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH, VOCABULARY = 18, 257


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(self.linear(self.norm(hidden)))


class Own(nn.Module):
    """Embedding, blocks and output.

    Args:
        order: The block that is called at each place; one may stand several times, or nowhere.
        frozen: Beginnings of the names of the parameters that are not trained.
        has_unused: Whether a parameter outside the blocks and one inside take no part.
        recomputes: Whether it recomputes the activations of its blocks itself.
    """

    def __init__(
        self,
        order: Sequence[int] = (0, 1, 2),
        frozen: Sequence[str] = (),
        has_unused: bool = False,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.order = order
        self.recomputes = recomputes
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY)
        if has_unused:
            self.unused = nn.Linear(WIDTH, 5)
            self.blocks[1].unused = nn.Linear(WIDTH, 5)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        for place in self.order:
            block = self.blocks[place]
            if self.recomputes:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        logits: torch.Tensor = self.output(self.norm(hidden))
        return logits


class Nested(Own):
    """Its blocks lie in lists and dictionaries of one list."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = self.blocks
        inner = nn.ModuleDict({"last": third})
        self.blocks = nn.ModuleList([nn.ModuleList([first, second]), inner])

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        for block in (*self.blocks[0], self.blocks[1]["last"]):
            hidden = block(hidden)
        logits: torch.Tensor = self.output(self.norm(hidden))
        return logits


class Normalised(Own):
    """Normalises over the samples of a micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm1d(VOCABULARY)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        logits: torch.Tensor = self.statistics(super().forward(input_ids).mT).mT
        return logits


class _Poison(torch.autograd.Function):
    """Does nothing forward, and gives no finite gradient backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


class Poisoned(Own):
    """Its gradient is not finite from the given call on; its loss is."""

    def __init__(self, first_call: int) -> None:
        super().__init__()
        self.calls_left = first_call

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        logits = super().forward(input_ids)
        self.calls_left -= 1
        return logits if self.calls_left >= 0 else _Poison.apply(logits)


class Alternating(Own):
    """Calls its first block alone in every second micro-batch.

    Args:
        calls: Calls of a micro-batch in this process.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls, self.num_calls = calls, 0

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        self.order = (0,) if self.num_calls // self.calls % 2 else (0, 1, 2)
        self.num_calls += 1
        return super().forward(input_ids)


def build(**options: Any) -> nn.Module:
    return Own(**options)


def build_nested() -> nn.Module:
    return Nested()


def build_normalised() -> nn.Module:
    return Normalised()


def build_alternating(calls: int) -> nn.Module:
    return Alternating(calls)


def build_poisoned(first_call: int) -> nn.Module:
    return Poisoned(first_call)


def build_unlabelled(length: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [5] * length, "labels": [-100] * length}] * 50
