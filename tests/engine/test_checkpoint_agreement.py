"""Several groups write a checkpoint: what each says and hears when another is late or gone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import nn

from mics_core.comm.partition import PartitionGroup
from mics_core.engine import checkpoint
from mics_core.engine.checkpoint import NOTHING_TO_WRITE, Checkpointer, CheckpointReport
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.job import CheckpointSpec

UNDER_WAY = 0.0


class OneWorker:
    """The only worker of its partition group."""

    rank, size, background = 0, 1, None

    def share_from_leader(self, value: Any) -> Any:
        return value


class Writers:
    """Groups that write together; the test says when each has written.

    Args:
        folder: Where to.
        number: Groups.
    """

    def __init__(self, folder: Path, number: int):
        self.folder = CheckpointFolder(str(folder))
        self.reports: list[CheckpointReport] = []
        self.saves: list[Future[None]] = []
        spec = CheckpointSpec(directory=str(folder), interval_steps=2, keep=2)
        partition = cast("PartitionGroup", OneWorker())
        self.groups = [
            Checkpointer(spec, partition, group, self.reports.append) for group in range(number)
        ]
        self._model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self._optimizer = torch.optim.SGD(self._model.parameters(), momentum=0.9)

    def save(self, *_: object, **__: object) -> Future[None]:
        self.saves.append(Future())
        return self.saves[-1]

    def begin(self, step: int, *groups: int) -> None:
        for group in groups:
            self.groups[group].begin(step, self._model, self._optimizer, groups, "the states")

    def hear(self, *groups: int) -> float:
        """Let groups commit a step: all hear the lowest of what they say."""
        lowest = min(self.groups[group].progress for group in groups)
        for group in groups:
            self.groups[group].heard(lowest)
        return lowest

    def close(self) -> None:
        for save in self.saves:
            if not save.done():
                save.set_result(None)
        for group in self.groups:
            group.close()

    def complete(self) -> list[int]:
        return [step for step, _ in self.folder.complete()]


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    made = Writers(tmp_path, 3)
    with mock.patch.object(checkpoint, "async_save", made.save):
        yield made
        made.close()


def test_it_is_visible_when_the_last_group_has_written(writers: Writers) -> None:
    assert writers.hear(0, 1, 2) == NOTHING_TO_WRITE
    writers.begin(2, 0, 1, 2)
    for save in writers.saves[:2]:
        save.set_result(None)
        assert writers.hear(0, 1, 2) == UNDER_WAY
    assert writers.complete() == []
    writers.saves[2].set_result(None)
    assert writers.hear(0, 1, 2) == 2.0
    writers.close()
    assert writers.complete() == [2]
    assert [(report.step, report.error) for report in writers.reports] == [(2, "")]


def test_one_that_fails_is_told_once_and_the_next_begins_when_all_have_ended(
    writers: Writers,
) -> None:
    writers.begin(2, 0, 1, 2)
    writers.saves[1].set_exception(OSError("the disk is full"))
    assert writers.hear(0, 1, 2) == -2.0
    assert writers.hear(0, 1, 2) == UNDER_WAY  # the others write on, in vain
    writers.begin(4, 0, 1, 2)
    writers.saves[0].set_result(None)
    writers.saves[2].set_result(None)
    assert writers.hear(0, 1, 2) == NOTHING_TO_WRITE
    writers.begin(6, 0, 1, 2)
    assert len(writers.saves) == 6
    for save in writers.saves[3:]:
        save.set_result(None)
    writers.hear(0, 1, 2)
    writers.close()
    assert writers.complete() == [6]
    told = [(report.step, bool(report.error)) for report in writers.reports]
    assert told == [(2, True), (4, True), (6, False)]
    assert "left out" in writers.reports[1].error


@pytest.mark.parametrize(("lost", "left"), [(0, (1, 2)), (2, (0, 1))])
def test_one_whose_writer_goes_away_is_given_up_and_the_next_is_whole(
    writers: Writers, lost: int, left: tuple[int, ...]
) -> None:
    writers.begin(2, 0, 1, 2)
    for group in left:
        writers.groups[group].members_changed(left)
    assert [(report.step, report.error) for report in writers.reports] == [
        (2, f"Group {lost} went away while it was written.")
    ]
    for group in left:
        writers.saves[group].set_result(None)
    assert writers.hear(*left) == NOTHING_TO_WRITE
    writers.begin(4, *left)
    for save in writers.saves[3:]:
        save.set_result(None)
    assert writers.hear(*left) == 4.0
    writers.close()
    assert writers.complete() == [4]


def test_a_newcomer_has_no_say_in_one_that_began_before_it(writers: Writers) -> None:
    writers.begin(2, 0, 1)
    for group in writers.groups:
        group.members_changed((0, 1, 2))
    assert writers.reports == []
    writers.saves[0].set_result(None)
    assert writers.hear(0, 1, 2) == UNDER_WAY
    writers.saves[1].set_result(None)
    assert writers.hear(0, 1, 2) == 2.0
    writers.close()
    assert writers.complete() == [2]
