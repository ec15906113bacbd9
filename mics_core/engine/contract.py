"""What the engine asks of a model, checked on the meta device before anything is sharded.

What it asks is written down for users in `docs/job-specification.md`, at `model.callable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from mics_core.errors import Problem, SpecificationError

__all__ = ["check_model", "reset_of"]


def check_model(model: nn.Module, blocks: Sequence[str]) -> None:
    """Refuse a model that would not train as one process trains it.

    Args:
        model: A model on the meta device.
        blocks: Names of its blocks.

    Raises:
        SpecificationError: Names every rule that the model breaks, with the parameter or module.
    """
    problems = [
        *_without_initial_values(model),
        *_without_dimensions(model),
        *_in_several_units(model, blocks),
    ]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append(
            Problem(
                "model",
                type(model).__name__,
                "none of its parameters requires a gradient.",
                "Leave at least one parameter with requires_grad=True.",
            )
        )
    if problems:
        raise SpecificationError(problems)


def reset_of(module: nn.Module) -> Callable[[], object] | None:
    """Return the method of a module that draws its initial values, if it has one."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _without_initial_values(model: nn.Module) -> Iterator[Problem]:
    if hasattr(model, "_init_weights"):
        return  # what it sets is seen once it has run (`mics_core.engine.initial_values`)
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and reset_of(module) is None:
            yield Problem(
                "model",
                f"{name or '(root)'} ({type(module).__name__})",
                "it holds parameters or buffers but has no reset_parameters().",
                "Add a method reset_parameters() that sets their initial values.",
            )


def _without_dimensions(model: nn.Module) -> Iterator[Problem]:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            yield Problem(
                "model",
                name,
                "it is a parameter without a dimension, and shards are cut along the first one.",
                "Give it the shape (1,).",
            )


def _in_several_units(model: nn.Module, blocks: Sequence[str]) -> Iterator[Problem]:
    """Find parameters that two units share; of two units the first one is enough."""
    places: dict[nn.Parameter, dict[str, str]] = {}
    inside: set[nn.Module] = set()
    for block in blocks:
        module = model.get_submodule(block)
        inside.update(module.modules())
        for name, parameter in module.named_parameters():
            places.setdefault(parameter, {})[block] = f"{block}.{name}"
    for prefix, module in model.named_modules():
        if module not in inside:
            for name, parameter in module.named_parameters(prefix, recurse=False):
                places.setdefault(parameter, {})[""] = name
    told: set[tuple[str, ...]] = set()
    for names in places.values():
        units = tuple(names)
        if len(units) > 1 and units not in told:
            told.add(units)
            yield Problem(
                "model",
                " and ".join(names.values()),
                "they are one parameter in several units of sharding, which would be cut apart.",
                "Hold it in one unit: outside the module lists, or in a single element of one. A"
                " module that is used repeatedly stands in the list once and is called again.",
            )
