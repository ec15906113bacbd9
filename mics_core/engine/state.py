"""The training state of one worker as a list of tensors, for copying it between peers.

Parameters, buffers and optimizer state are the whole of it: the data order, the learning rate and
the random numbers of a step are functions of the seed and the step.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

__all__ = ["buffer_places", "local_tensor", "state_tensors"]


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return this worker's own part of `tensor`, sharing its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return every tensor of the training state that this worker holds, in a fixed order.

    Workers of the same rank in different partition groups have lists of equal shapes and dtypes.
    """
    parameters = list(model.parameters())
    tensors = [local_tensor(tensor.detach()) for tensor in (*parameters, *model.buffers())]
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        tensors += [
            local_tensor(value)
            for _, value in sorted(state.items())
            if isinstance(value, torch.Tensor)
        ]
    return tensors


def buffer_places(model: nn.Module) -> range:
    """Return where `state_tensors` has the buffers: the only states that a forward may change."""
    num_parameters = len(list(model.parameters()))
    return range(num_parameters, num_parameters + len(list(model.buffers())))
