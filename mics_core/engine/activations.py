"""Counts what backward needs of a module's forward pass, by running one over a single sample.

The planner knows the transformer families by formula; of a user's own module only a pass tells. A
small one runs on the CPU, with zeros for its parameters. A large one runs on the meta device, which
costs neither memory nor arithmetic, but a module may read a value there, which has none, and the
attention of that device saves a little more. What does neither stays unknown, and the planner keeps
a reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Activations", "count_activations"]

_MOST_PARAMETERS_ON_CPU = 1 << 26  # 256 MiB in fp32
_MOST_OPERATIONS_ON_CPU = 2e11  # some seconds
_BYTES_PER_NUMBER = 4


@dataclass(frozen=True, slots=True)
class Activations:
    """Numbers of one sample, four bytes each."""

    block: int
    """That backward needs of one block; the mean where they differ."""
    root: int
    """That backward needs of what is outside the blocks, without the loss."""
    block_inputs: int
    """That enter a block."""
    logits: int
    """That the loss is taken of; what it needs for each is `planner.memory.logit_bytes`."""


def count_activations(
    model: nn.Module, blocks: Sequence[str], sequence_length: int
) -> Activations | None:
    """Run `model` over one sample and count the tensors that autograd saves.

    Args:
        model: On the meta device, parameters in fp32; it may be moved to the CPU, and is then of no
            further use.
        blocks: Names of its blocks.
        sequence_length: Tokens of the sample.

    Returns:
        The counts; None if the module runs on neither device within the limits.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fits_cpu = parameters <= _MOST_PARAMETERS_ON_CPU
    fits_cpu &= 2.0 * parameters * sequence_length <= _MOST_OPERATIONS_ON_CPU
    for device in ("cpu", "meta") if fits_cpu else ("meta",):
        try:
            with torch.random.fork_rng(devices=[]):
                return _run(_on(model, device), blocks, sequence_length, device)
        except Exception:
            continue  # a user's code may raise anything, and on one device alone
    return None


def _on(model: nn.Module, device: str) -> nn.Module:
    model.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


class _Saved:
    """Adds up the storages that autograd saves, each once, by the block that saved it first."""

    def __init__(self, model: nn.Module, blocks: Sequence[str]):
        self.bytes_of: dict[str | None, int] = {None: 0} | dict.fromkeys(blocks, 0)
        self.inputs = 0
        self._current: str | None = None
        states = (*model.parameters(), *model.buffers())
        # Kept alive, or another tensor might take the same address.
        self._kept: list[torch.Tensor] = list(states)
        self._seen = {tensor.untyped_storage()._cdata for tensor in states}
        self._handles = []
        for name in blocks:
            block = model.get_submodule(name)
            self._handles.append(block.register_forward_pre_hook(self._entering(name)))
            self._handles.append(block.register_forward_hook(self._leave))

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._kept.append(tensor)
            self.bytes_of[self._current] += storage.nbytes()
        return tensor

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def enter(_module: nn.Module, inputs: tuple[object, ...]) -> None:
            self._current = name
            first = next((each for each in inputs if isinstance(each, torch.Tensor)), None)
            self.inputs = max(self.inputs, 0 if first is None else first.numel())

        return enter

    def _leave(self, *_: object) -> None:
        self._current = None


def _run(model: nn.Module, blocks: Sequence[str], length: int, device: str) -> Activations:
    saved = _Saved(model, blocks)
    ids = torch.zeros(1, length, dtype=torch.long, device=device)
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            out = model(input_ids=ids)
            logits = getattr(out, "logits", out)
    finally:
        saved.remove()
    root = saved.bytes_of.pop(None) // _BYTES_PER_NUMBER
    whole = sum(saved.bytes_of.values()) // _BYTES_PER_NUMBER
    return Activations(
        block=-(-whole // len(blocks)) if blocks else 0,
        root=root,
        block_inputs=saved.inputs,
        logits=logits.numel(),
    )
