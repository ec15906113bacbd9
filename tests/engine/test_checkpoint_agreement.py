"""Several groups write a checkpoint: what each says and hears when another is late or gone."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future, wait

import pytest

from mics_core.engine.checkpoint_progress import NOTHING_TO_WRITE
from tests.engine.odd_storage import DEADLINE_S, OddError, odd_storage
from tests.engine.writers import UNDER_WAY, Writers, damage_of


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
