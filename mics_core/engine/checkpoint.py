"""Durable checkpoints: written in the background by one partition group, complete or invisible.

A checkpoint is a folder `step-00000100` of `torch.distributed.checkpoint` with the model states
after that many steps, sharded as they were and loadable with any partition size. It is written
under another name and renamed when every worker has written its part, so a folder of that name is
always whole. Steps go on while it is written; only the copy of the shards in host memory waits.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from mics_core.comm.partition import PartitionGroup
from mics_core.errors import CheckpointError
from mics_core.spec.folders import complete_checkpoints
from mics_core.spec.job import CheckpointSpec

__all__ = ["CheckpointReport", "Checkpointer", "restore_newest"]

logger = logging.getLogger(__name__)

_ABOUT = "mics.json"


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """How a checkpoint ended.

    Args:
        step: Steps committed in it.
        path: Its folder.
        error: What went wrong, or empty if it is complete.
    """

    step: int
    path: str
    error: str


class Checkpointer:
    """Writes the checkpoints of one worker's partition group.

    All workers of the partition group must build it, and call its methods together.

    Args:
        spec: Where, how often and how many.
        partition: The worker's partition group.
        report: Told how each checkpoint ended; called from a background thread, on rank 0 only.
    """

    def __init__(
        self,
        spec: CheckpointSpec,
        partition: PartitionGroup,
        report: Callable[[CheckpointReport], None],
    ):
        self._spec = spec
        self._partition = partition
        self._report = report
        self._writing: Future[Any] | None = None
        self._finished: Future[None] | None = None

    def is_due(self, committed_steps: int, total_steps: int) -> bool:
        """Whether a checkpoint follows this many committed steps."""
        if self._spec.directory is None:
            return False
        return committed_steps % self._spec.interval_steps == 0 or committed_steps == total_steps

    def save(
        self, committed_steps: int, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin a checkpoint; return as soon as the shards are copied.

        If the one before is still being written, this waits for it: two at once would only fight
        for the same disk.
        """
        self.wait()
        assert self._spec.directory is not None
        directory = Path(self._spec.directory)
        path = directory / f"step-{committed_steps:08d}"
        unfinished = directory / f".{path.name}.unfinished"
        finished: Future[None] = Future()
        try:
            if self._partition.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            problem = ""
        except OSError as error:
            problem = str(error)
        # Every worker takes the same way, also when only rank 0 saw the error.
        problem = str(self._partition.share_from_leader(problem))
        if problem:
            self._done(committed_steps, path, problem, finished)
            return
        writing = cast(
            "Future[Any]",
            async_save(
                _state_dict(model, optimizer),
                checkpoint_id=str(unfinished),
                process_group=self._partition.background,
            ),
        )
        self._writing, self._finished = writing, finished
        writing.add_done_callback(
            lambda future: self._publish(committed_steps, unfinished, path, future, finished)
        )

    def wait(self) -> None:
        """Wait until the checkpoint that is being written, if any, has ended."""
        if self._finished is not None:
            self._finished.result()
            self._writing, self._finished = None, None

    def _publish(
        self, step: int, unfinished: Path, path: Path, writing: Future[Any], finished: Future[None]
    ) -> None:
        """Give a written checkpoint its name, and remove those that are no longer kept."""
        error = writing.exception()
        problem = _cause(error) if error is not None else ""
        try:
            if self._partition.rank == 0 and not problem:
                problem = self._rename(step, unfinished, path)
        finally:
            self._done(step, path, problem, finished)

    def _rename(self, step: int, unfinished: Path, path: Path) -> str:
        """Make a whole checkpoint visible and drop the oldest; return the problem, or nothing."""
        try:
            (unfinished / _ABOUT).write_text(
                json.dumps({"format": 1, "step": step}), encoding="utf-8"
            )
            if path.exists():
                # The run began again before this step and came to the same states.
                shutil.rmtree(unfinished)
            else:
                unfinished.rename(path)
            for _, old in complete_checkpoints(path.parent)[: -self._spec.keep]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as refused:
            return str(refused)
        return ""

    def _done(self, step: int, path: Path, problem: str, finished: Future[None]) -> None:
        try:
            if self._partition.rank == 0:
                if problem:
                    logger.warning("checkpoint %s failed: %s", path, problem)
                self._report(CheckpointReport(step, str(path), problem))
        finally:
            finished.set_result(None)


def restore_newest(
    spec: CheckpointSpec,
    partition: PartitionGroup,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Load the newest complete checkpoint of the job's folder, if there is one.

    `checkpoint.resume` was looked at before the job started: without it the folder was empty then,
    and what is there now is this run's own.

    All workers of the partition group must call it.

    Returns:
        Steps committed in it; 0 if nothing was loaded.

    Raises:
        CheckpointError: The checkpoint does not fit the model, or cannot be read.
    """
    if spec.directory is None:
        return 0
    found = complete_checkpoints(Path(spec.directory))
    # Rank 0 decides: the folder may change between two looks.
    newest: tuple[int, Path] | None = partition.share_from_leader(found[-1] if found else None)
    if newest is None:
        return 0
    step, path = newest
    state = _state_dict(model, optimizer)
    try:
        load(state, checkpoint_id=str(path), process_group=partition.control)
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(
            f"The checkpoint {path} cannot be loaded: {_cause(error)}",
            remedy="Restore the model that wrote it, or name another checkpoint.directory.",
        ) from error
    logger.info("continuing from %s", path)
    return step


def _state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def _cause(error: BaseException) -> str:
    """The first sentence of what went wrong on the first worker that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
