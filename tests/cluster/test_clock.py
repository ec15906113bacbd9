"""The clock of a run goes on from supervisor to supervisor, on machines with other clocks."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass

import pytest

from mics_core.cluster.clock import Clock

EPOCH = 5e8


@dataclass
class Machine:
    """What the clocks of a machine say."""

    monotonic: float
    wall: float

    def passes(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(1000.0, EPOCH)
    monkeypatch.setattr(time, "monotonic", lambda: machine.monotonic)
    monkeypatch.setattr(time, "time", lambda: machine.wall)
    return machine


def moved(clock: Clock, machine: Machine, monotonic: float, seconds: float) -> Clock:
    """Return the clock as the next supervisor has it, so many seconds later."""
    pickled = pickle.dumps(clock)
    machine.monotonic, machine.wall = monotonic, machine.wall + seconds
    again: Clock = pickle.loads(pickled)
    return again


def test_a_clock_goes_on_where_it_was_pickled_and_knows_what_passed(machine: Machine) -> None:
    clock = Clock()
    assert clock() == clock.with_all() == 1000.0
    again = moved(clock, machine, monotonic=7.0, seconds=16.0)
    assert (again(), again.with_all()) == (1000.0, 1016.0)
    machine.passes(2.5)
    assert (again(), again.with_all()) == (1002.5, 1018.5)
    third = moved(again, machine, monotonic=5.0, seconds=-60.0)  # a machine whose clock is late
    assert (third(), third.with_all()) == (1002.5, 1018.5)


def test_what_was_before_a_clock_went_on_is_dated_back(machine: Machine) -> None:
    clock = moved(Clock(), machine, monotonic=7.0, seconds=16.0)
    machine.passes(1.0)
    assert clock.when(EPOCH + 0.5) == 1000.5
    assert clock.when(EPOCH + 15.0) == 1015.0
    assert clock.when(EPOCH + 16.5) == clock.with_all() == 1017.0, "it is told at once"


@pytest.mark.parametrize("late_s", [-3600.0, 0.5, 3600.0])
def test_a_teller_with_another_clock_is_believed_to_tell_at_once(
    machine: Machine, late_s: float
) -> None:
    clock = Clock()
    assert clock.when(EPOCH - late_s) == clock.with_all()
    clock = moved(clock, machine, monotonic=7.0, seconds=16.0)
    machine.passes(4000.0)
    assert clock.when(machine.wall - late_s) == clock.with_all()
