"""What a newcomer keeps while the states arrive, and when it applies it."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import cast

import pytest
import torch

from mics_core.engine.catch_up import CatchUp
from mics_core.engine.copying import Incoming
from mics_core.errors import ReplicationError

pytestmark = pytest.mark.pure


class Arriving:
    """A copy that is complete when the test says so, or when somebody waits for it."""

    def __init__(self, error: str = ""):
        self.is_complete = False
        self.waits = 0
        self.arrivals: list[tuple[torch.Tensor, Future[None]]] = []
        self._error = error

    def wait(self) -> None:
        self.waits += 1
        if self._error:
            raise ReplicationError(self._error)
        self.is_complete = True

    def expect(self, gradient: torch.Tensor) -> Future[None]:
        self.arrivals.append((gradient, Future()))
        return self.arrivals[-1][1]


def catch_up_with(incoming: Arriving) -> CatchUp:
    return CatchUp(cast("Incoming", incoming))


def keep(catch_up: CatchUp, *steps: int) -> None:
    for step in steps:
        catch_up.keep(step, 0.5, torch.full((3,), float(step)))


def test_what_is_kept_is_applied_in_order_a_few_at_a_time() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    keep(catch_up, *range(6))
    assert catch_up.take() == []
    incoming.is_complete = True
    taken = catch_up.take()
    assert len(taken) == 4
    keep(catch_up, 6)  # the step during which they were applied
    taken += catch_up.take()
    assert [(kept.step, kept.scale) for kept in taken] == [(step, 0.5) for step in range(7)]
    assert all(torch.equal(kept.values, torch.full((3,), float(kept.step))) for kept in taken)
    assert catch_up.take() == []


def test_gradients_that_are_handed_on_are_applied_in_order_as_they_arrive() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    for step in range(3):
        catch_up.expect(step, torch.zeros(2))
    keep(catch_up, 3)  # summed up with who listens
    assert catch_up.num_missing == math.inf
    incoming.is_complete = True
    assert (catch_up.num_missing, catch_up.take()) == (3, [])
    for (values, arrival), number in zip(incoming.arrivals[:2], (7.0, 8.0), strict=True):
        values.fill_(number)
        arrival.set_result(None)
    assert catch_up.num_missing == 1
    taken = catch_up.take()
    assert [(kept.step, kept.scale, kept.values.tolist()) for kept in taken] == [
        (0, 1.0, [7.0, 7.0]),
        (1, 1.0, [8.0, 8.0]),
    ]
    incoming.arrivals[2][1].set_result(None)
    assert catch_up.num_missing == 0
    assert [kept.step for kept in catch_up.take()] == [2, 3]


def test_a_step_begins_before_the_last_one_that_is_kept_can_be_applied_at_once() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    incoming.is_complete = True
    keep(catch_up, *range(4))
    assert catch_up.num_missing == 1  # with that of the step under way there are five
    assert len(catch_up.take()) == 4
    assert catch_up.num_missing == 0


def test_a_source_that_is_lost_between_two_gradients_is_told() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    incoming.is_complete = True
    catch_up.expect(0, torch.zeros(2))
    incoming.arrivals[0][1].set_exception(ReplicationError("a source went away"))
    with pytest.raises(ReplicationError, match="a source went away"):
        catch_up.take()
    with pytest.raises(ReplicationError, match="a source went away"):
        _ = catch_up.num_missing


def test_what_is_kept_does_not_follow_the_buffer_of_the_next_step() -> None:
    incoming, gradient = Arriving(), torch.ones(3)
    catch_up = catch_up_with(incoming)
    catch_up.keep(0, 1.0, gradient)
    gradient.zero_()
    incoming.is_complete = True
    assert torch.equal(catch_up.take()[0].values, torch.ones(3))


def test_beyond_a_number_of_gradients_the_copy_is_waited_for() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    keep(catch_up, *range(63))
    assert (catch_up.take(), incoming.waits) == ([], 0)
    keep(catch_up, 63)
    assert [kept.step for kept in catch_up.take()] == [0, 1, 2, 3]
    assert incoming.waits == 1


def test_a_lost_source_is_told_to_who_waits() -> None:
    catch_up = catch_up_with(Arriving(error="a source went away"))
    keep(catch_up, *range(64))
    with pytest.raises(ReplicationError, match="a source went away"):
        catch_up.take()
