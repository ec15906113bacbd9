"""The books of a run: steps in order, samples once, and what changes of membership took."""

from __future__ import annotations

import time

import pytest

from mics_core.cluster.clock import Clock
from mics_core.cluster.course import Course
from mics_core.cluster.journal import Journal
from mics_core.cluster.messages import Committed
from mics_core.engine.summary import Share, StepCommit
from mics_core.spec.status import GenerationEvent, JobEvent, RegroupEvent, StepEvent

BATCH = 12


class Run:
    """A course and the journal that it writes."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.clock = Clock()
        self.course = Course(self.journal, BATCH, self.clock)

    @property
    def events(self) -> list[JobEvent]:
        return list(self.journal._events)

    def commit(
        self,
        step: int,
        generation: int,
        num_groups: int,
        late_s: float = 0.0,
        in_hand: float = 0.0,
    ) -> None:
        """Every group tells of the step, so long after it."""
        size = BATCH // num_groups
        shares = tuple(Share.of_micro_batches([place], size) for place in range(num_groups))
        commit = StepCommit(
            step,
            1.0 / (step + 1),
            100,
            1.0,
            0.1,
            generation,
            num_groups,
            shares,
            generation,
            0.0,
            (),
            in_hand=in_hand,
        )
        for _ in range(num_groups):
            self.course.commit(Committed(commit, 0.5, 0.25, time.time() - late_s))


@pytest.fixture
def run() -> Run:
    """Two groups have trained steps 0 to 2 under generation 1."""
    run = Run()
    run.course.announce(1, (0, 1), "Training begins.", after_loss=False)
    for group in (0, 1):
        run.course.enter(group, 1, 0, 0.1)
    for step in range(3):
        run.commit(step, 1, 2)
    return run


def test_a_step_is_foretold_without_what_lies_between_two(run: Run) -> None:
    # Or a pause for a copy would lengthen all limits that follow the step.
    assert run.journal.foretold_step_s(2) == 0.25


def test_fewer_groups_are_foretold_longer_steps_and_more_no_shorter_ones(run: Run) -> None:
    assert run.journal.foretold_step_s(1) == 0.5
    assert run.journal.foretold_step_s(4) == 0.25, "those that come have no share yet"
    for step in range(3, 12):
        run.commit(step, 1, 1)
    assert run.journal.foretold_step_s(1) == 0.25


def test_each_step_is_told_once_however_many_groups_report_it(run: Run) -> None:
    steps = [event.record for event in run.events if isinstance(event, StepEvent)]
    assert [(step.step, step.generation, step.num_groups) for step in steps] == [
        (0, 1, 2),
        (1, 1, 2),
        (2, 1, 2),
    ]
    assert [(step.samples, step.tokens_per_s) for step in steps] == [(BATCH, 200.0)] * 3
    assert run.course.step == 3
    samples = run.course.samples
    assert (samples.due, samples.used, samples.repeated) == (3 * BATCH, 3 * BATCH, 0)


def test_a_generation_is_told_when_it_is_announced_and_when_it_trains(run: Run) -> None:
    told = [event.generation for event in run.events if isinstance(event, GenerationEvent)]
    assert [(generation.number, generation.step) for generation in told] == [(1, None), (1, 0)]
    assert run.course.generations == told[1:]


def test_what_a_change_took_is_told_with_its_reason_when_it_is_over(run: Run) -> None:
    run.course.announce(2, (0,), "Group 1 was lost.", after_loss=True)
    run.course.enter(0, 2, 3, 0.1)
    assert run.course.newest_trained == 1
    run.commit(3, 2, 1, in_hand=0.5)
    run.commit(4, 2, 1)
    assert run.course.newest_trained == 2
    start, loss = (event for event in run.events if isinstance(event, RegroupEvent))
    assert (start.generation, start.reason, start.step) == (1, "Training begins.", 0)
    assert (loss.generation, loss.reason, loss.step) == (2, "Group 1 was lost.", 3)
    assert loss.phases.detect_s is not None
    assert (start.kept, loss.kept) == (None, 0.5)


@pytest.mark.parametrize(
    ("is_replaced", "late_s", "detect_s"),
    [(False, 0.0, 0.0), (False, 3600.0, 0.0), (True, 15.5, 15.5), (True, 0.0, 0.0)],
    ids=["told at once", "by a clock that is late", "told to the next supervisor", "since then"],
)
def test_the_time_without_a_supervisor_counts_to_what_a_loss_took(
    is_replaced: bool, late_s: float, detect_s: float
) -> None:
    run = Run()
    run.course.announce(1, (0, 1), "Training begins.", after_loss=False)
    run.course.enter(0, 1, 0, 0.1)
    run.course.enter(1, 1, 0, 0.1)
    run.commit(0, 1, 2, late_s=0.0 if is_replaced else late_s)
    if is_replaced:
        now, left_out_s, pickled_at = run.clock.__getstate__()
        run.clock.__setstate__((now, left_out_s, pickled_at - 16.0))
    for step in (1, 2):  # the workers trained on
        run.commit(step, 1, 2, late_s)
    run.course.announce(2, (0,), "Group 1 was lost.", after_loss=True)
    run.course.enter(0, 2, 3, 0.1)
    run.commit(3, 2, 1)
    loss = [event for event in run.events if isinstance(event, RegroupEvent)][-1]
    assert loss.phases.detect_s == pytest.approx(detect_s, abs=0.3)


def test_steps_that_were_lost_with_all_groups_are_trained_again_and_counted_once(
    run: Run,
) -> None:
    run.course.announce(2, (2,), "Training begins again.", after_loss=True)
    run.course.enter(2, 2, 1, 0.1)
    assert run.course.step == 1
    for step in (1, 2, 3):
        run.commit(step, 2, 1)
    steps = [event.record for event in run.events if isinstance(event, StepEvent)]
    assert [(step.step, step.generation) for step in steps[3:]] == [(1, 2), (2, 2), (3, 2)]
    samples = run.course.samples
    assert (samples.due, samples.used, samples.repeated) == (4 * BATCH, 4 * BATCH, 0)


def test_at_the_end_nothing_that_was_told_is_left_out(run: Run) -> None:
    run.commit(5, 1, 2)  # nobody has told of steps 3 and 4
    assert run.course.step == 3
    run.course.end()
    assert run.course.step == 6


def test_a_join_that_the_end_of_a_run_cuts_short_is_told(run: Run) -> None:
    run.course.announce(2, (0, 1, 2), "Group 2 joins.", after_loss=False)
    for group in (0, 1):
        run.course.enter(group, 2, 3, 0.1)
    run.commit(3, 2, 2)  # the last step; group 2 still copies
    run.course.end()
    told = [event for event in run.events if isinstance(event, RegroupEvent)][-1]
    assert (told.generation, told.reason, told.step) == (2, "Group 2 joins.", 3)
    assert told.phases.copy_s is None, "nobody has copied anything"


def test_a_failed_checkpoint_that_two_groups_tell_of_is_one_event() -> None:
    journal = Journal()
    for error in ("A group went away at the end of it.",) * 2:
        journal.checkpoint(5, "step-00000005", error)
    assert (journal.last_sequence, journal.last_checkpoint) == (1, None)
    journal.checkpoint(5, "step-00000005", "")
    journal.checkpoint(10, "step-00000010", "A group went away at the end of it.")
    assert (journal.last_sequence, journal.last_checkpoint) == (3, 5)
