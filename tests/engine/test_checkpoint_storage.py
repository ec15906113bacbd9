"""Storage fails, hangs or still holds old files: that costs no more than one checkpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from unittest import mock

import pytest

from mics_core.engine import checkpoint, checkpoint_progress
from mics_core.engine.checkpoint_progress import ABANDONED, NOTHING_TO_WRITE
from tests.engine.odd_storage import CALLS, DEADLINE_S, OddError, odd_storage
from tests.engine.writers import UNDER_WAY, Writers


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
