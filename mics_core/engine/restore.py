"""Continuing from a checkpoint: the newest one whose files are what was written."""

from __future__ import annotations

import logging

from torch import nn, optim
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint_state import cause_of, part_of, state_dict_of
from mics_core.errors import CheckpointError
from mics_core.spec.folders import CheckpointFolder, StoredCheckpoint
from mics_core.spec.job import CheckpointSpec

__all__ = ["restore_newest"]

logger = logging.getLogger(__name__)


def restore_newest(
    spec: CheckpointSpec,
    partition: PartitionGroup,
    model: nn.Module,
    optimizer: optim.Optimizer,
) -> int:
    """Load the newest complete checkpoint of the job's folder whose files are what was written.

    `checkpoint.resume` was looked at before the job started: without it the folder was empty then,
    and what is there now is this run's own.

    All workers of the partition group must call it.

    Returns:
        Steps committed in it; 0 if nothing was loaded.

    Raises:
        CheckpointError: Every checkpoint is damaged, or the newest whole one does not fit the
            model.
    """
    if spec.directory is None:
        return 0
    folder = CheckpointFolder(spec.directory)
    # Rank 0 decides: the folder may change between two looks.
    found: list[int] = partition.share_from_leader([step for step, _ in folder.complete()])
    damages = []
    for step in reversed(found):
        stored = folder.read(step)
        damage = _damage_of(folder, stored, partition)
        if not damage:
            _load(folder, stored, partition, model, optimizer)
            logger.info("continuing from %s", stored.path)
            return step
        logger.warning("%s is damaged: %s", stored.path, damage)
        damages.append(f"{stored.path}: {damage}")
    if damages:
        raise CheckpointError(
            f"Every checkpoint is damaged. {' '.join(damages)}",
            remedy="Restore the folder from a copy, or name an empty checkpoint.directory.",
        )
    return 0


def _damage_of(
    folder: CheckpointFolder, stored: StoredCheckpoint, partition: PartitionGroup
) -> str:
    """Check all files, each worker its share; return what is wrong on the first that found it."""
    files = [file for part in stored.parts for file in part.files]
    mine = folder.damage_of(stored, files[partition.rank :: partition.size])
    return next((found for found in partition.share(mine) if found), "")


def _load(
    folder: CheckpointFolder,
    stored: StoredCheckpoint,
    partition: PartitionGroup,
    model: nn.Module,
    optimizer: optim.Optimizer,
) -> None:
    state = state_dict_of(model, optimizer)
    known = {name for part in stored.parts for name in part.parameters}
    if different := sorted(known.symmetric_difference(state["model"])):
        raise CheckpointError(
            f"The checkpoint {stored.path} is of another model: {different[0]!r} is in one of them"
            f" alone ({len(different)} such).",
            remedy="Restore the model that wrote it, or name another checkpoint.directory.",
        )
    try:
        for part in stored.parts:
            with_groups = part.number == 0
            values = part_of(state, part.parameters, with_groups=with_groups)
            path = folder.path_of_part(stored.step, part.number)
            load(values, storage_reader=FsspecReader(path), process_group=partition.control)
            if with_groups:
                state["optimizer"]["param_groups"] = values["optimizer"]["param_groups"]
            state["optimizer"]["state"] |= values["optimizer"]["state"]
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(
            f"The checkpoint {stored.path} cannot be loaded: {cause_of(error)}",
            remedy="Restore the model that wrote it, or name another checkpoint.directory.",
        ) from error
