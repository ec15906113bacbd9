"""When members that wait for a copy of one that is behind train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, cast

import pytest

from mics_core.engine.pausing import MOST_ROUNDS, wait_for_copy
from mics_core.errors import ReplicationError

pytestmark = pytest.mark.pure

Rows = list[list[float]]


@dataclass
class Stage:
    """Trainer, partition group and replication group of one worker, who needs no copy itself.

    Args:
        members: What the members of the replication group say, round by round; none if one is lost.
        colleague: What the other worker of the partition group has heard, round by round.
    """

    members: Iterator[Rows | None]
    colleague: Iterator[list[float]] = field(default_factory=lambda: repeat([0.0, 0.0]))
    rounds: int = 0

    @property
    def partition(self) -> Any:
        return _Partition(self)

    def must_wait_for_copy(self, limit_s: float) -> bool:
        self.rounds += 1
        return False

    def gather_doubles(self, values: Sequence[float]) -> Rows:
        others = next(self.members)
        if others is None:
            raise ReplicationError("a member was lost")
        return [[*map(float, values)], *others]

    def play(self, *superseded: bool) -> int:
        """Return after how many rounds the worker trains on."""
        answers = chain(superseded, repeat(False))
        wait_for_copy(cast("Any", self), cast("Any", self), lambda: next(answers))
        return self.rounds


@dataclass
class _Partition:
    stage: Stage

    def gather_doubles(self, values: Sequence[float]) -> Rows:
        return [[*values], next(self.stage.colleague)]


WAITS, HAS_IT, ENDS = [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]


def test_they_wait_for_the_last_of_all_copies() -> None:
    members: Iterator[Rows | None] = iter([[WAITS, WAITS], [HAS_IT, WAITS], [HAS_IT, HAS_IT]])
    assert Stage(members).play() == 3


def test_they_wait_for_the_copy_of_another_workers_shard() -> None:
    colleague = iter([WAITS, WAITS, WAITS, HAS_IT])
    assert Stage(repeat([HAS_IT]), colleague).play() == 4


@pytest.mark.parametrize("lost", [None, [ENDS]], ids=["it is lost", "it has heard of a generation"])
def test_they_train_on_when_a_member_cannot_wait(lost: Rows | None) -> None:
    members: Iterator[Rows | None] = iter([[WAITS], lost])
    assert Stage(members, repeat(WAITS)).play() == 2


def test_they_train_on_when_this_worker_or_its_colleague_hears_of_a_generation() -> None:
    assert Stage(repeat([WAITS])).play(False, False, True) == 3
    assert Stage(repeat([WAITS]), iter([WAITS, ENDS])).play() == 2


def test_they_train_a_step_now_and_then_however_long_a_copy_takes() -> None:
    assert Stage(repeat([WAITS])).play() == MOST_ROUNDS
