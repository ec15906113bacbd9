"""Groups are lost, join and leave at random: the run is that of one process, or the same bits."""

from __future__ import annotations

import random

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupDraining
from tests.faults.runs import (
    FAILS_AT,
    GROUPS,
    SIZE,
    bitwise,
    check_the_bits,
    check_the_run,
    job,
    lost_of,
)

pytestmark = pytest.mark.timeout(240)

VOLLEYS = 4


def fire_a_volley(run: Miniature, chance: random.Random) -> None:
    """Kill workers of some groups somewhere in six steps, and bring others in their place.

    One that is spared may stand on a node that is to go.
    """
    run.until(lambda: len(run.members) >= 2, "two groups that train")
    begin = run.course.step
    run.hold_at(begin + 6)
    at = begin + chance.randrange(6)
    run.until(lambda: run.course.step >= at, f"step {at}")
    members = run.members
    victims = chance.sample(members, k=chance.randrange(1, len(members)))
    for victim in victims:
        run.kill(victim, *chance.choice([(0,), (1,), (0, 1)]))
    drained = chance.choice([member for member in members if member not in victims])
    drains = chance.random() < 0.5
    if drains:
        run.tell(GroupDraining(drained, "Its node is being drained."))
    run.until(lambda: run.course.step >= begin + 6, f"step {begin + 6}")
    survivors = [member for member in run.members if not (drains and member == drained)]
    run.until(lambda: len(survivors) + len(run.waiting) >= 2, "groups in the place of the lost")
    there = {*survivors, *run.waiting}
    run.train_until(lambda: there <= {*run.members}, f"training with {there}")


def test_a_run_under_fire_is_the_run_of_one_process(text: str) -> None:
    chance = random.Random(1)
    with Miniature(job(text, 100), SIZE, GROUPS) as run:
        for _ in range(VOLLEYS):
            fire_a_volley(run, chance)
        run.finish()
        check_the_run(run)
    assert len(lost_of(run)) >= VOLLEYS


def test_no_bit_depends_on_a_worker_that_dies_where_gradients_cross_in_one_order(
    text: str, undisturbed: dict[int, str]
) -> None:
    fault = FailAt(group=1, rank=1, step=FAILS_AT, phase="ordered second hop")
    with Miniature(bitwise(text), SIZE, GROUPS, faults=[fault]) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
        check_the_bits(run, undisturbed)
    assert lost_of(run) == [1]


@pytest.mark.parametrize("seed", [2, 3])
def test_no_bit_depends_on_a_random_schedule_of_losses_joins_and_leaves(
    text: str, undisturbed: dict[int, str], seed: int
) -> None:
    chance = random.Random(seed)
    with Miniature(bitwise(text), SIZE, GROUPS) as run:
        for _ in range(2):
            run.scale(chance.choice((2, 3)))
            fire_a_volley(run, chance)
        run.finish()
        check_the_run(run)
        check_the_bits(run, undisturbed)
    assert len({step.num_groups for step in run.steps}) > 1
