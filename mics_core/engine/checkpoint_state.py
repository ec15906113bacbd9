"""The model states as a checkpoint holds them, and errors of `torch.distributed.checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)

from mics_core.errors import CheckpointError

__all__ = ["cause_of", "part_of", "share_of", "sizes_of", "state_dict_of"]


def state_dict_of(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the states of a sharded model and its optimizer, by `model` and `optimizer`."""
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def part_of(state: dict[str, Any], names: Sequence[str], *, with_groups: bool) -> dict[str, Any]:
    """Return the states of some parameters; the optimizer's constants with the first part."""
    mine = set(names)
    optimizer = state["optimizer"]
    part: dict[str, Any] = {
        "state": {name: value for name, value in optimizer["state"].items() if name in mine}
    }
    if with_groups:
        part["param_groups"] = optimizer["param_groups"]
    return {
        "model": {name: value for name, value in state["model"].items() if name in mine},
        "optimizer": part,
    }


def cause_of(error: BaseException) -> str:
    """Return the first sentence of what went wrong on the first worker that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, CheckpointError):
        return error.message  # in words already
    if isinstance(error, RuntimeError) and "inline_container" in str(error) and error.__context__:
        # A refused write in mid-tensor: torch.save then complains of the position, not of the disk.
        error = error.__context__
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def share_of(sizes: Mapping[str, int], number: int, num_groups: int) -> list[str]:
    """Return the names that one of several groups writes: about as many bytes each.

    The largest first, each to the group that has least: every group comes to the same result.
    """
    loads = [0] * num_groups
    mine = []
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        least = loads.index(min(loads))
        loads[least] += size
        if least == number:
            mine.append(name)
    return sorted(mine)


def sizes_of(model_state: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of each parameter and buffer, of all workers together."""
    return {name: value.numel() * value.element_size() for name, value in model_state.items()}
