"""What a newcomer keeps while the states arrive, and when it applies it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from mics_core.engine.catch_up import CatchUp
from mics_core.engine.copying import Incoming
from mics_core.engine.holding import Holding
from mics_core.errors import ReplicationError

pytestmark = pytest.mark.pure


class Arriving:
    """A copy that is complete when the test says so, or when somebody waits for it."""

    def __init__(self, error: str = ""):
        self.is_complete = self.is_in_place = False
        self.waits = 0
        self._error = error

    def put_in_place(self) -> None:
        assert self.is_complete
        assert not self.is_in_place
        self.is_in_place = True

    def wait(self) -> None:
        self.waits += 1
        if self._error:
            raise ReplicationError(self._error)
        self.is_complete = True


def catch_up_with(incoming: Arriving, held: Holding | None = None) -> CatchUp:
    """A way from step 0 on, of a worker whose group has received."""
    catch_up = CatchUp(cast("Incoming", incoming), 0, held or Holding(0, has_state=False))
    catch_up.all_have_received()
    return catch_up


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
    assert not catch_up.has_arrived
    keep(catch_up, 6)  # the step during which they were applied
    taken += catch_up.take()
    assert [(kept.step, kept.scale) for kept in taken] == [(step, 0.5) for step in range(7)]
    assert all(torch.equal(kept.values, torch.full((3,), float(kept.step))) for kept in taken)
    assert catch_up.has_arrived


@pytest.mark.parametrize("older", [Holding(4, has_state=True), Holding(0, has_state=False)])
def test_older_states_stay_until_all_workers_of_the_group_have_received(older: Holding) -> None:
    incoming, held = Arriving(), replace(older)
    catch_up = CatchUp(cast("Incoming", incoming), 5, held)
    keep(catch_up, 5)
    assert not catch_up.has_received
    incoming.is_complete = True
    assert catch_up.has_received
    keep(catch_up, 6)
    assert (catch_up.take(), held, incoming.is_in_place) == ([], older, False)
    catch_up.all_have_received()
    assert held == older
    assert [kept.step for kept in catch_up.take()] == [5, 6]
    assert incoming.is_in_place
    assert held == Holding(7, has_state=True)


def test_what_is_held_follows_what_is_applied() -> None:
    incoming, held = Arriving(), Holding(0, has_state=False)
    catch_up = catch_up_with(incoming, held)
    keep(catch_up, *range(6))
    incoming.is_complete = True
    catch_up.take()
    assert held == Holding(4, has_state=True)
    catch_up.take()
    assert held == Holding(6, has_state=True)


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
