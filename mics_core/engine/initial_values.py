"""Draws the initial values of one unit's modules, and finds what nothing has set.

Memory comes without values, so a parameter that no method sets would hold whatever was there
before. Floating-point memory is therefore filled with NaN first: what is still NaN afterwards has
been left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from mics_core.engine.contract import reset_of
from mics_core.errors import Problem, SpecificationError

__all__ = ["draw_initial_values"]

_NUMBERS_AT_ONCE = 1 << 20
"""Numbers that are looked at at once: the answer takes a byte for each."""


def draw_initial_values(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Set the initial values of the own parameters and buffers of `modules`.

    With `_init_weights`, the convention of transformers, the model says what each module gets. Like
    with transformers it may leave a module, or a part of it, as `reset_parameters()` has it. That
    is called only where something was left, lest it draw random numbers that nobody uses.

    Args:
        model: The model that they belong to.
        modules: Modules in memory, children before their parents.

    Raises:
        SpecificationError: A floating-point parameter or buffer was not set.
    """
    for module in modules:
        for _, tensor in _own(module):
            tensor.fill_(math.nan)
    if hasattr(model, "_init_weights"):
        set_values = cast("Callable[[nn.Module], None]", model._init_weights)
        for module in modules:
            set_values(module)
        left = [module for module in modules if _unset(module) and reset_of(module)]
        _reset(left)
        if left:
            # A second time, as it runs on values that are there in a model built in memory.
            for module in modules:
                set_values(module)
    else:
        _reset(modules)
    _refuse_unset(model, modules)


def _reset(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if reset := reset_of(module):
            reset()


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the floating-point parameters and buffers of a module itself."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and tensor.is_floating_point():
            yield name, tensor


def _unset(module: nn.Module) -> list[str]:
    """Return the names of a module's own tensors that were not, or not wholly, set."""
    return [
        name
        for name, tensor in _own(module)
        if any(bool(part.isnan().any()) for part in tensor.flatten().split(_NUMBERS_AT_ONCE))
    ]


def _refuse_unset(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    names = {module: name for name, module in model.named_modules()}
    problems = [
        Problem(
            "model",
            f"{names[module] or '(root)'} ({type(module).__name__})",
            f"nothing sets the initial values of {', '.join(unset)}: what its constructor has"
            " written is lost, for the model is built on the meta device.",
            "Set all of them in its reset_parameters(), or in the model's _init_weights(module).",
        )
        for module in modules
        if (unset := _unset(module))
    ]
    if problems:
        raise SpecificationError(problems)
