"""One worker of a group under torchft: FSDP2 inside the group, managed replication across groups.

    python -m benchmarks.recovery.torchft_job GROUP FOLDER TOKENS FORWARD_S

runs in torchft's environment, with the usual variables of a process group and TORCHFT_LIGHTHOUSE.
Steps go to FOLDER. The group leaves at a step boundary once FOLDER/GROUP.leave exists.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torchft import Manager, Optimizer, ProcessGroupGloo

from benchmarks.harness.site import Site
from benchmarks.network.systems import fsdp2
from benchmarks.network.systems.plain import PlainTraining
from benchmarks.recovery.setting import (
    GLOBAL_BATCH_SIZE,
    NUM_GROUPS,
    PARTITION_SIZE,
    build_spec,
)
from benchmarks.recovery.steps import StepWriter
from mics_core.engine.allocator import keep_freed_memory

__all__ = ["leave_file", "ready_file"]

_COLLECTIVE_TIMEOUT = timedelta(seconds=5)
_MANAGER_TIMEOUT = timedelta(seconds=30)
"""Both as in torchft's own example, `train_ddp.py`. Left alone both are 60 s, and as long does a
survivor wait now and then whose neighbour in the ring has given up before it; the others' quorum
runs out meanwhile, they end, and the training begins again from nothing."""


def leave_file(folder: Path, group: str) -> Path:
    """Return the file that makes a group leave."""
    return folder / f"{group}.leave"


def ready_file(folder: Path, group: str) -> Path:
    """Return the file that says that all of a group are about to train."""
    return folder / f"{group}.ready"


def main(group: str, folder: Path, tokens: Path, forward_s: float) -> None:
    """Train until the group is to leave, or whoever started this worker is gone."""
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    keep_freed_memory()
    parent, rank = os.getppid(), int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    # A group's share of the global batch does not change with the number of groups.
    spec = build_spec(tokens, forward_s, GLOBAL_BATCH_SIZE // NUM_GROUPS)
    training = fsdp2.build("fsdp2 full", spec, Site(rank, ("node",) * PARTITION_SIZE, ""))
    manager = _build_manager(training, group)
    optimizer = Optimizer(manager, training.optimizer)
    writer = StepWriter(folder, group, rank)
    distributed.barrier()
    ready_file(folder, group).touch()
    while os.getppid() == parent and not _is_leaving(leave_file(folder, group)):
        step = manager.current_step()
        _train_step(training, manager, optimizer, step * NUM_GROUPS + int(group))
        writer.write(
            generation=manager._quorum_id,  # it has no public name
            step=manager.current_step() - 1,
            num_workers=manager.num_participants() * PARTITION_SIZE,
            is_committed=manager.current_step() > step,
        )
    manager.shutdown(wait=False)


def _build_manager(training: PlainTraining, group: str) -> Manager:
    # Taken once, as torchtitan does: torchft reads it in the middle of a forward, when asking FSDP2
    # again would take the gathered parameters away.
    shards = training.model.state_dict()

    def state() -> dict[str, Any]:
        return {"model": shards, "optimizer": training.optimizer.state_dict()}

    def load(state: dict[str, Any]) -> None:
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])

    return Manager(
        pg=ProcessGroupGloo(timeout=_COLLECTIVE_TIMEOUT),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        replica_id=group,
        timeout=_MANAGER_TIMEOUT,
        hostname="127.0.0.1",
    )


def _train_step(
    training: PlainTraining, manager: Manager, optimizer: Optimizer, index: int
) -> None:
    """Train one step; the update is made if all of the group may commit."""
    optimizer.zero_grad()
    training.run_micro_batches(index)
    _average_over_groups(training.model, manager)
    optimizer.step()


def _average_over_groups(model: torch.nn.Module, manager: Manager) -> None:
    """Average the gradients with the other groups' as one tensor, after the last micro-batch.

    FSDP2's hook, with which torchtitan does it, would do so unit by unit after every micro-batch.
    """
    gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    manager.allreduce(flat).wait()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_leaving(file: Path) -> bool:
    """Whether the group is to leave; its workers agree on it."""
    leaving = torch.tensor(float(file.exists()))
    distributed.all_reduce(leaving, op=distributed.ReduceOp.MAX)
    return bool(leaving.item())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
