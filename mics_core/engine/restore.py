"""Continuing from a checkpoint: the newest one whose files are what was written.

A checkpoint is passed over for the one before it only if it is seen to be damaged. Storage that
does not answer says nothing of the checkpoint: it is asked again, and then the group fails, for an
older checkpoint would silently throw steps away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import Any, TypeVar

from torch import nn, optim
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint import CheckpointReport
from mics_core.engine.checkpoint_state import cause_of, part_of, state_dict_of
from mics_core.errors import CheckpointDamagedError, CheckpointError
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import CheckpointFolder, StoredCheckpoint
from mics_core.spec.job import CheckpointSpec

__all__ = ["Restored", "restore_newest"]

logger = logging.getLogger(__name__)

_PAUSES_S = (1.0, 3.0, 9.0)
"""Between attempts to reach storage; whoever starts the group anew tries it again after these."""
_NOT_OF_STORAGE = (
    CheckpointError,
    AssertionError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading raises where the content is not what it should be; clients raise all else."""

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Restored:
    """What was loaded.

    Args:
        step: Steps committed in it; 0 if nothing was loaded.
        passed_over: Newer checkpoints that are damaged, with the damage.
    """

    step: int
    passed_over: tuple[CheckpointReport, ...] = ()


def restore_newest(
    spec: CheckpointSpec,
    partition: PartitionGroup,
    model: nn.Module,
    optimizer: optim.Optimizer,
    order: DataOrder,
) -> Restored:
    """Load the newest complete checkpoint of the job's folder whose files are what was written.

    `checkpoint.resume` was looked at before the job started: without it the folder was empty then,
    and what is there now is this run's own.

    All workers of the partition group must call it.

    Args:
        spec: Where the job's folder is.
        partition: The worker's partition group.
        model: The sharded model, which takes the states.
        optimizer: Its optimizer.
        order: What the order of this run's data depends on.

    Raises:
        CheckpointError: Every checkpoint is damaged, the newest whole one does not fit the model or
            the data, or the storage cannot be reached.
    """
    if spec.directory is None:
        return Restored(0)
    folder = CheckpointFolder(spec.directory)

    def steps() -> list[int]:
        # Rank 0 decides: the folder may change between two looks.
        return [step for step, _ in folder.complete()] if partition.rank == 0 else []

    found = _together(partition, spec.directory, steps)[0]
    passed_over: list[CheckpointReport] = []
    for step in reversed(found):
        path = folder.path_of(step)
        checks = _together(partition, path, partial(_check, folder, step, partition))
        damage = next((damage for _, damage in checks if damage), "")
        if not damage:
            stored = checks[partition.rank][0]
            assert stored is not None
            _together(partition, path, partial(_check_order, stored, order))
            _load(folder, stored, partition, model, optimizer)
            logger.info("continuing from %s", path)
            return Restored(step, tuple(passed_over))
        logger.warning("%s is damaged: %s", path, damage)
        passed_over.append(CheckpointReport(step, path, f"It is damaged: {damage}"))
    if passed_over:
        damages = " ".join(f"{report.path}: {report.error}" for report in passed_over)
        raise CheckpointError(
            f"Every checkpoint is damaged. {damages}",
            remedy="Restore the folder from a copy, or name an empty checkpoint.directory.",
        )
    return Restored(0)


def _check(
    folder: CheckpointFolder, step: int, partition: PartitionGroup
) -> tuple[StoredCheckpoint | None, str]:
    """Read the record, and check this worker's share of the files; return what is wrong."""
    try:
        stored = folder.read(step)
    except CheckpointDamagedError as error:
        return None, error.message
    files = [file for part in stored.parts for file in part.files]
    return stored, folder.damage_of(stored, files[partition.rank :: partition.size])


def _check_order(stored: StoredCheckpoint, order: DataOrder) -> None:
    """Refuse to continue with another order of the data, or on other data.

    Raises:
        CheckpointError: Samples would be used twice and others left out.
    """
    refusal = stored.order.why_not(order)
    if refusal is not None:
        field, broken = refusal
        raise CheckpointError(
            f"The checkpoint {stored.path} cannot be continued: {broken.rule}. Samples would be"
            " used twice, and others left out.",
            remedy=f"{broken.remedy}, or begin anew with an empty checkpoint.directory.",
            field=field,
        )


def _together(partition: PartitionGroup, path: str, look: Callable[[], _Found]) -> list[_Found]:
    """Return what each worker finds in storage, by rank; all of them must call it.

    Raises:
        CheckpointError: One of them finds nothing out; the same on all workers.
    """
    found: _Found | None = None
    problem: CheckpointError | None = None
    try:
        found = _patiently(path, look)
    except CheckpointError as error:
        problem = error
    findings = partition.share((found, problem))
    for _, told in findings:
        if told is not None:
            raise told
    return [finding for finding, _ in findings]


def _patiently(path: str, look: Callable[[], _Found]) -> _Found:
    """Look at storage, again after growing pauses where it does not answer.

    Raises:
        CheckpointError: It never does.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return look()
        except _NOT_OF_STORAGE:
            raise
        except Exception as error:  # clients of object stores have errors of their own making
            if pause_s is None:
                raise CheckpointError(
                    f"{path} cannot be reached, after {len(_PAUSES_S) + 1} attempts:"
                    f" {cause_of(error)}",
                    remedy="See that every node reaches the storage and may read it, and submit"
                    " the job again. Nothing says that the checkpoint is damaged.",
                ) from None
            logger.warning("%s cannot be reached; again in %g s: %s", path, pause_s, error)
            sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


class _Reader(FsspecReader):
    """Asks storage again where it does not answer, and has its errors in words.

    torch sends them to the other workers, and many cannot be pickled.
    """

    def read_metadata(self, *arguments: Any, **options: Any) -> Any:
        """See `StorageReader`."""
        read = super().read_metadata
        return _patiently(str(self.path), lambda: read(*arguments, **options))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """See `StorageReader`; all is read on return."""
        read = super().read_data
        return _patiently(str(self.path), lambda: read(plan, planner))


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
            path = folder.path_of_part(stored.step, part)
            load(values, storage_reader=_Reader(path), process_group=partition.control)
            if with_groups:
                state["optimizer"]["param_groups"] = values["optimizer"]["param_groups"]
            state["optimizer"]["state"] |= values["optimizer"]["state"]
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, CheckpointError):
            raise cause from None  # storage that cannot be reached
        raise CheckpointError(
            f"The checkpoint {stored.path} cannot be loaded: {cause_of(error)}",
            remedy="Restore the model that wrote it, or name another checkpoint.directory.",
        ) from error
