"""Several groups write a checkpoint: what each says and hears when another is late or gone.

The storage is real, and waits or fails where the test says.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import nn

from mics_core.comm.partition import PartitionGroup
from mics_core.engine import checkpoint, checkpoint_progress
from mics_core.engine.checkpoint import Checkpointer, CheckpointReport
from mics_core.engine.checkpoint_progress import ABANDONED, NOTHING_TO_WRITE
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import CheckpointFolder, Part
from mics_core.spec.job import CheckpointSpec
from tests.engine.odd_storage import CALLS, DEADLINE_S, OddError, odd_storage

UNDER_WAY = 0.0


class OneWorker:
    """The only worker of its partition group, in no world of torch."""

    rank, size, background = 0, 1, None

    def share(self, value: Any, over: Any = None) -> list[Any]:
        return [value]

    def form_background(self) -> None:
        return None


class Writers:
    """Groups that write together; each part waits until the test lets it be written.

    Args:
        folder: Where to.
        number: Groups.
    """

    def __init__(self, folder: Path, number: int):
        self.folder = CheckpointFolder(str(folder))
        self.reports: list[CheckpointReport] = []
        self.gates: dict[str, Future[None]] = {}
        self._newest: dict[int, str] = {}
        spec = CheckpointSpec(directory=f"odd://{folder}", interval_steps=2, keep=2)
        partition = cast("PartitionGroup", OneWorker())
        order = DataOrder(0, 4, 16, num_samples=90)
        self.groups = [
            Checkpointer(spec, partition, group, order, self.reports.append)
            for group in range(number)
        ]
        self._model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self._optimizer = torch.optim.SGD(self._model.parameters(), momentum=0.9)

    def before(self, call: str, path: str) -> None:
        part = re.search(r"step-\d+/part-\d+-\w+$", path)
        if call == "makedirs" and part is not None:
            self.gates[part.group()].result(DEADLINE_S)

    def begin(self, step: int, *groups: int, states: str = "the states") -> None:
        for group in groups:
            self.begin_alone(step, group, groups, states)

    def begin_alone(
        self, step: int, group: int, groups: tuple[int, ...], states: str = "the states"
    ) -> None:
        """Have one of the groups that are to write begin."""
        self._newest[step] = checkpoint._fingerprint(states, groups)
        self.gates.setdefault(self._gate_of(step, groups.index(group)), Future())
        self.groups[group].begin(step, self._model, self._optimizer, groups, states)

    def end(self, step: int, *parts: int, error: Exception | None = None) -> None:
        """Have the storage take some parts of the attempt that was begun last, or refuse them."""
        for part in parts:
            gate = self.gates[self._gate_of(step, part)]
            if error is None:
                gate.set_result(None)
            else:
                gate.set_exception(error)
        for writing in [group._writing for group in self.groups]:
            if writing is None or (writing.step, writing.fingerprint) != (step, self._newest[step]):
                continue
            if writing.number in parts:
                assert not wait(writing.under_way, DEADLINE_S).not_done

    def _gate_of(self, step: int, part: int) -> str:
        return f"step-{step:08d}/{Part(part, (), (), self._newest[step]).name}"

    def hear(self, *groups: int) -> float:
        """Let groups commit a step: all hear the lowest of what they say."""
        lowest = min(self.groups[group].progress for group in groups)
        for group in groups:
            self.groups[group].heard(lowest)
        return lowest

    def publish(self, *groups: int) -> None:
        """Let groups commit two steps, with time to make a checkpoint visible in between."""
        assert self.hear(*groups) > 0.0
        published = self.groups[groups[0]]._writing
        assert published is not None
        assert not wait(published.under_way, DEADLINE_S).not_done
        assert self.hear(*groups) == NOTHING_TO_WRITE

    def close(self) -> None:
        for gate in self.gates.values():
            if not gate.done():
                gate.set_result(None)
        for group in self.groups:
            group.close()

    def has_files(self, step: int, *, tidied_by: int) -> bool:
        """Whether files of a step are there, when a group has removed what it wants to."""
        tidied = self.groups[tidied_by]._tidied
        assert tidied is not None
        assert not wait([tidied], DEADLINE_S).not_done
        return bool(self.folder._files.find(self.folder.path_of(step)))

    def complete(self) -> list[int]:
        return [step for step, _ in self.folder.complete()]

    def told(self) -> list[tuple[int, str]]:
        return [(report.step, report.error) for report in self.reports]


def damage_of(folder: CheckpointFolder, step: int) -> str:
    stored = folder.read(step)
    return folder.damage_of(stored, [file for part in stored.parts for file in part.files])


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    made = Writers(tmp_path, 3)
    with odd_storage(made.before):
        yield made
        made.close()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def test_it_is_visible_when_the_last_group_has_written(writers: Writers) -> None:
    assert writers.hear(0, 1, 2) == NOTHING_TO_WRITE
    writers.begin(2, 0, 1, 2)
    for part in (0, 1):
        writers.end(2, part)
        assert writers.hear(0, 1, 2) == UNDER_WAY
    assert writers.complete() == []
    writers.end(2, 2)
    writers.publish(0, 1, 2)
    assert writers.complete() == [2]
    assert writers.told() == [(2, "")]


def test_one_that_fails_is_told_once_with_the_cause_and_the_next_begins_when_all_have_ended(
    writers: Writers,
) -> None:
    writers.begin(2, 0, 1, 2)
    writers.end(2, 1, error=OddError("PutObject", {"Status": 503}))
    assert -3.0 < writers.hear(0, 1, 2) < -2.0
    assert writers.hear(0, 1, 2) == UNDER_WAY  # the others write on, in vain
    writers.begin(4, 0, 1, 2)
    writers.end(2, 0, 2)
    assert all(group._tidied is None for group in writers.groups), "some still wrote"
    assert writers.hear(0, 1, 2) == NOTHING_TO_WRITE
    assert not writers.has_files(2, tidied_by=0)
    writers.begin(6, 0, 1, 2)
    writers.end(6, 0, 1, 2)
    writers.publish(0, 1, 2)
    assert writers.complete() == [6]
    assert writers.told() == [
        (
            2,
            "OddError: An error occurred (SlowDown) when calling PutObject: {'Status': 503}",
        ),
        (
            4,
            "It was left out, for that of step 2 is still being written. Write less often, or to"
            " faster storage.",
        ),
        (6, ""),
    ]


@pytest.mark.parametrize(("lost", "left"), [(0, (1, 2)), (2, (0, 1))])
def test_one_whose_writer_goes_away_is_given_up_and_the_next_is_whole(
    writers: Writers, lost: int, left: tuple[int, ...]
) -> None:
    writers.begin(2, 0, 1, 2)
    for group in left:
        writers.groups[group].members_changed(dict.fromkeys(left, 2))
    assert writers.told() == [(2, f"Group {lost} went away while it was written.")]
    writers.end(2, *left)
    assert writers.hear(*left) == NOTHING_TO_WRITE
    assert not writers.has_files(2, tidied_by=left[0])
    writers.begin(4, *left)
    writers.end(4, 0, 1)
    writers.publish(*left)
    assert writers.complete() == [4]


@pytest.mark.parametrize("order", [(1, 0), (0, 1)], ids=["the first", "the second"])
@pytest.mark.parametrize("is_one_lost", [True, False], ids=["one is lost", "the connection broke"])
def test_one_that_a_writer_had_not_begun_is_given_up(
    writers: Writers, order: tuple[int, int], is_one_lost: bool
) -> None:
    """Group 1 had not committed that step when the generation broke, and catches up."""
    groups = (*order, 2) if is_one_lost else order
    part = groups.index(0)
    writers.begin_alone(2, 0, groups)
    for group in order:
        writers.groups[group].members_changed({0: 2, 1: 1})
    writers.end(2, part)
    assert writers.hear(*order) == NOTHING_TO_WRITE
    assert writers.told() == [(2, "Group 1 had not begun it.")]
    assert not writers.has_files(2, tidied_by=0)
    writers.begin(4, *order)
    writers.end(4, 0, 1)
    writers.publish(*order)
    assert writers.complete() == [4]


@pytest.mark.parametrize("is_written", [True, False], ids=["made visible", "being written"])
def test_one_whose_first_writer_only_catches_up_is_completed_by_it(
    writers: Writers, is_written: bool
) -> None:
    """It had begun the checkpoint, and then a later step broke that the others committed."""
    writers.begin(2, 0, 1)
    if is_written:
        writers.end(2, 0, 1)
        assert writers.hear(0, 1) == 2.0
    for group in (0, 1):
        writers.groups[group].members_changed({0: 3, 1: 4})
    if is_written:
        published = writers.groups[0]._writing
        assert published is not None
        assert not wait(published.under_way, DEADLINE_S).not_done
        assert writers.hear(0, 1) == NOTHING_TO_WRITE
    else:
        writers.end(2, 0, 1)
        writers.publish(0, 1)
    assert writers.told() == [(2, "")]
    assert writers.complete() == [2]


def test_one_whose_publisher_goes_away_is_made_visible_by_the_next_writer(
    writers: Writers,
) -> None:
    goes_away, never = threading.Event(), Future[None]()

    def before(call: str, path: str) -> None:
        writers.before(call, path)
        if call == "cat_file" and not goes_away.is_set():
            goes_away.set()
            never.result(DEADLINE_S)

    with odd_storage(before):
        writers.begin(2, 0, 1, 2)
        writers.end(2, 0, 1, 2)
        assert writers.hear(0, 1, 2) == 2.0
        assert goes_away.wait(DEADLINE_S)
        assert writers.hear(0, 1, 2) == UNDER_WAY
        for group in (1, 2):
            writers.groups[group].members_changed({1: 2, 2: 2})
        following = writers.groups[1]._writing
        assert following is not None
        assert not wait(following.under_way, DEADLINE_S).not_done
        assert writers.hear(1, 2) == NOTHING_TO_WRITE
        assert writers.told() == [(2, "")]
        assert writers.complete() == [2]
        never.set_result(None)


BROKEN = -math.inf


@pytest.mark.parametrize("lost", [0, 2], ids=["the first writer", "another"])
def test_one_at_whose_end_a_group_goes_away_is_told_whoever_it_was(
    writers: Writers, lost: int
) -> None:
    writers.begin(2, 0, 1, 2)
    left = [group for number, group in enumerate(writers.groups) if number != lost]
    for group in left:
        group.heard(BROKEN)
    assert {*writers.told()} == {(2, "A group went away at the end of it.")}


def test_one_at_whose_end_the_connections_broke_is_written_again_by_the_same_groups(
    writers: Writers,
) -> None:
    writers.begin(2, 0, 1)
    for group in writers.groups[:2]:
        assert group.last_step == 2
        group.heard(BROKEN)
        assert group.last_step is None
        group.members_changed({0: 2, 1: 2})
    writers.end(2, 0, 1)
    assert writers.hear(0, 1) == NOTHING_TO_WRITE
    writers.begin(2, 0, 1, states="the states, under the next generation")
    writers.end(2, 0, 1)
    writers.publish(0, 1)
    assert writers.complete() == [2]
    assert damage_of(writers.folder, 2) == ""
    assert writers.told()[-1] == (2, "")
    fingerprints = {part.fingerprint for part in writers.folder.read(2).parts}
    assert len(fingerprints) == 1
    assert "the next generation" in fingerprints.pop()


def test_one_that_may_have_been_made_visible_when_a_group_went_away_is_told_so(
    writers: Writers,
) -> None:
    writers.begin(2, 0, 1, 2)
    writers.end(2, 0, 1, 2)
    for group in writers.groups[1:]:
        group.heard(2.0)
        group.heard(BROKEN)
        group.leave_in_doubt()
    ((step, error),) = writers.told()
    assert (step, "perhaps before it was made visible" in error) == (2, True)


def test_one_that_a_lost_group_had_made_visible_stays_and_is_told(writers: Writers) -> None:
    """It alone heard that all had written: the step at whose end it did broke for the others."""
    writers.begin(2, 0, 1, 2)
    writers.end(2, 0, 1, 2)
    publisher = writers.groups[0]
    publisher.heard(2.0)
    assert publisher._writing is not None
    assert not wait(publisher._writing.under_way, DEADLINE_S).not_done
    writers.reports.clear()  # they went with it
    for group in (1, 2):
        writers.groups[group].members_changed({1: 2, 2: 2})
    assert writers.hear(1, 2) == NOTHING_TO_WRITE
    assert writers.has_files(2, tidied_by=1)
    assert writers.complete() == [2]
    assert writers.told() == [(2, "Group 0 went away while it was written."), (2, "")]


@pytest.mark.parametrize("fails", [False, True], ids=["writes on", "cannot write on"])
def test_a_group_that_wakes_up_in_its_attempt_destroys_nothing_of_a_later_one(
    writers: Writers, fails: bool
) -> None:
    """It was the only one of its generation, so nobody tells it that the others went on."""
    writers.begin(2, 0)
    (asleep,) = writers.gates.values()
    writers.begin(2, 1, 2)
    writers.end(2, 0, 1)
    writers.publish(1, 2)
    before = writers.folder.read(2)
    woken = writers.groups[0]
    assert woken._writing is not None
    if fails:
        asleep.set_exception(OddError("PutObject", {"Status": 503}))
    else:
        asleep.set_result(None)
    woken.finish(lambda mine: mine)
    woken.close()
    assert writers.folder.read(2) == before
    assert damage_of(writers.folder, 2) == ""


def test_nothing_is_left_of_one_that_cannot_be_made_visible(writers: Writers) -> None:
    def before(call: str, path: str) -> None:
        writers.before(call, path)
        if call == "cat_file":
            raise OddError("GetObject", {"Status": 503})

    with odd_storage(before):
        writers.begin(2, 0, 1, 2)
        writers.end(2, 0, 1, 2)
        writers.publish(0, 1, 2)
    assert writers.folder._steps() == []
    ((step, error),) = writers.told()
    assert (step, error[:8]) == (2, "OddError")


def test_what_an_interrupted_job_left_of_a_step_goes_when_that_step_is_written_again(
    writers: Writers, tmp_path: Path
) -> None:
    old = tmp_path / "step-00000002" / "part-0-01234567"
    old.mkdir(parents=True)
    (old / "__0_0.distcp").write_bytes(b"states")
    (old.parent / f"{old.name}.json").write_text("{}")
    writers.begin(2, 0, 1, 2)
    writers.end(2, 0, 1, 2)
    writers.publish(0, 1, 2)
    names = [part.name for part in writers.folder.read(2).parts]
    left = {path.name for path in old.parent.iterdir()}
    assert left == {"mics.json", *names, *(f"{name}.json" for name in names)}


def test_storage_that_removes_nothing_of_one_that_failed_holds_up_nothing(
    writers: Writers,
) -> None:
    def before(call: str, path: str) -> None:
        writers.before(call, path)
        if call == "rm":
            raise OddError("DeleteObject", {"Status": 503})

    with odd_storage(before):
        writers.begin(2, 0, 1, 2)
        writers.end(2, 1, error=OddError("PutObject", {"Status": 503}))
        writers.end(2, 0, 2)
        assert writers.hear(0, 1, 2) < 0
        assert writers.hear(0, 1, 2) == NOTHING_TO_WRITE
        assert writers.has_files(2, tidied_by=0)
        writers.begin(4, 0, 1, 2)
        writers.end(4, 0, 1, 2)
        writers.publish(0, 1, 2)
    assert writers.complete() == [4]
    (failed, _), whole, (pruned, problem) = writers.told()
    assert (failed, whole, pruned) == (2, (4, ""), 4)
    assert problem.startswith("It is complete, but older ones are still there: OddError")


def test_a_newcomer_has_no_say_in_one_that_began_before_it_and_begins_none_alone(
    writers: Writers,
) -> None:
    writers.begin(2, 0, 1)
    for group in writers.groups:
        group.members_changed({0: 2, 1: 2, 2: 2})
    assert writers.reports == []
    writers.end(2, 0)
    assert writers.hear(0, 1, 2) == UNDER_WAY
    writers.begin(4, 0, 1, 2)
    assert [(step, "left out" in error) for step, error in writers.told()] == [(4, True)]
    writers.end(2, 1)
    writers.publish(0, 1, 2)
    assert writers.complete() == [2]
    writers.begin(6, 0, 1, 2)
    writers.end(6, 0, 1, 2)
    writers.publish(0, 1, 2)
    assert writers.complete() == [2, 6]


def test_storage_that_never_answers_is_told_and_left_behind_once(writers: Writers) -> None:
    everybody = (0, 1, 2)
    writers.begin(2, *everybody)
    writers.end(2, 0, 2)
    assert writers.hear(*everybody) == UNDER_WAY
    with mock.patch.object(
        checkpoint_progress, "monotonic", later_than(checkpoint.LONGEST_ANSWER_S)
    ):
        assert writers.hear(*everybody) < 0
        assert [(step, "not answered" in error) for step, error in writers.told()] == [(2, True)]
        assert writers.hear(*everybody) == ABANDONED
    # The next is written beside it, and is left behind as little as that one comes back.
    writers.begin(4, *everybody)
    writers.end(4, 0, 1, 2)
    writers.publish(*everybody)
    assert writers.complete() == [4]
    writers.begin(6, *everybody)
    with mock.patch.object(
        checkpoint_progress, "monotonic", later_than(checkpoint.LONGEST_ANSWER_S)
    ):
        assert writers.hear(*everybody) < 0
        assert writers.hear(*everybody) == UNDER_WAY
        writers.begin(8, *everybody)
        assert "left out" in writers.reports[-1].error
        left_behind = writers.groups[1]._left_behind
        writers.end(2, 1)
        assert not wait(left_behind, DEADLINE_S).not_done
        assert writers.hear(*everybody) == ABANDONED


def later_than(limit_s: float) -> Callable[[], float]:
    clock = checkpoint_progress.monotonic
    return lambda: clock() + limit_s + 1.0


@pytest.mark.parametrize("stuck", ["the part", "making it visible"])
def test_a_run_that_ends_waits_for_storage_no_longer_than_the_limit(
    writers: Writers, stuck: str
) -> None:
    never: Future[None] = Future()
    writers.gates["manifest"] = never

    def before(call: str, path: str) -> None:
        writers.before(call, path)
        if call == "cat_file":
            never.result(DEADLINE_S)

    writer = writers.groups[0]
    with (
        odd_storage(before),
        mock.patch.object(checkpoint, "LONGEST_WRITE_S", 0.1),
        mock.patch.object(checkpoint, "_LOOK_AGAIN_S", 0.1),
    ):
        writers.begin(2, 0)
        if stuck == "making it visible":
            writers.end(2, 0)
        writer.finish(lambda mine: mine)
        assert writers.complete() == []
        assert [(step, "not answered" in error) for step, error in writers.told()] == [(2, True)]
        # The last one is tried all the same.
        never.set_result(None)
        writers.begin(3, 0)
        writers.end(3, 0)
        writer.finish(lambda mine: mine)
    assert 3 in writers.complete()
    assert (3, "") in writers.told()


def test_an_error_of_any_kind_at_any_call_of_the_storage_fails_that_checkpoint_alone(
    tmp_path: Path,
) -> None:
    def checkpoints(folder: Path, fails_at: int) -> tuple[list[str], Writers]:
        """Write four of one group; an error is raised at a call of the third."""
        calls: list[str] = []
        writers = Writers(folder, 1)

        def before(call: str, path: str) -> None:
            me = threading.get_native_id()
            seen.add((threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, me)))
            if writers.groups[0].last_step == 6:
                calls.append(call)
                if len(calls) - 1 == fails_at:
                    raise OddError(call, {})

        with odd_storage(before):
            for step in (2, 4, 6, 8):
                writers.begin(step, 0)
                writers.groups[0].finish(lambda mine: mine)
            writers.close()
        return calls, writers

    seen: set[tuple[str, int]] = set()
    calls, whole = checkpoints(tmp_path / "whole", -1)
    assert whole.told() == [(2, ""), (4, ""), (6, ""), (8, "")]
    assert seen == {("checkpoint", 10)}  # never a thread that trains, and a low priority
    assert {*calls} == {*CALLS}
    for place, call in enumerate(calls):
        if calls[place - 1 : place + 1] == ["exists", "info"]:
            continue  # torch asks fsspec, which takes an error for a no
        _, writers = checkpoints(tmp_path / f"{place}", place)
        told = writers.told()
        assert (told[0], told[1], told[-1]) == ((2, ""), (4, ""), (8, "")), call
        errors = [error for step, error in told[2:-1] if step == 6 and error]
        assert len(errors) == 1, (place, call, told)
        assert f"OddError: An error occurred (SlowDown) when calling {call}" in errors[0]
        is_whole = 6 in writers.complete()
        assert is_whole == ("It is complete" in errors[0])
        assert (tmp_path / f"{place}" / "step-00000006").exists() == is_whole, call
