"""A machine under test, with a clock that the test moves."""

from __future__ import annotations

import pickle

from mics_core.elastic.events import (
    Decision,
    Event,
    GroupBroken,
    GroupEntered,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    GroupTrained,
    LaunchGroup,
    MarkGroup,
    RunPhase,
    SetRunPhase,
    StartRequested,
    StopGroup,
    Tick,
    WantedChanged,
)
from mics_core.elastic.machine import MembershipMachine
from mics_core.elastic.roster import Rules

BUILT = "Its workers have built their shards."
GONE = "Its node is gone."


class Driver:
    """Feeds events to a machine at the time that its clock shows.

    Args:
        wanted: Groups wanted at the start.
        minimum: Fewest groups that train.
        rules: Limits; `Rules`' own where left out.
    """

    def __init__(self, wanted: int, minimum: int = 1, **rules: float):
        self.machine = MembershipMachine(Rules(minimum, wanted, **rules))  # type: ignore[arg-type]
        self.now = 1000.0

    def tell(self, event: Event) -> list[Decision]:
        return self.machine.handle(event, self.now)

    def wait(self, seconds: float) -> list[Decision]:
        self.now += seconds
        return self.tell(Tick())

    def start(self) -> list[Decision]:
        return self.tell(StartRequested())

    def ready(self, *group_ids: int) -> list[Decision]:
        """Let groups be placed, and then become ready; return what follows from the last."""
        decisions: list[Decision] = []
        for group_id in group_ids:
            self.tell(GroupPlaced(group_id))
        for group_id in group_ids:
            decisions = self.tell(GroupReady(group_id))
        return decisions

    def enter(self, *group_ids: int, step: int = 0) -> list[Decision]:
        """Let groups enter the newest generation; return all that follows."""
        generation = self.machine.generation
        return [
            decision
            for group_id in group_ids
            for decision in self.tell(GroupEntered(group_id, generation, step))
        ]

    def breaks(
        self, *group_ids: int, step: int, error: str = "connection closed"
    ) -> list[Decision]:
        """Let groups report that the newest generation broke; return what follows from the last."""
        generation, decisions = self.machine.generation, list[Decision]()
        for group_id in group_ids:
            decisions = self.tell(GroupBroken(group_id, generation, step, error))
        return decisions

    def copy(self) -> Driver:
        """Return a run that stands where this one does."""
        twin: Driver = pickle.loads(pickle.dumps(self))
        return twin

    def phase(self, group_id: int) -> GroupPhase:
        return self.machine.groups[group_id].phase


def training(wanted: int, minimum: int = 1, step: int = 0, **rules: float) -> Driver:
    """Return a run in which groups 0 to wanted - 1 train under generation 1."""
    driver = Driver(wanted, minimum, **rules)
    driver.start()
    driver.ready(*range(wanted))
    driver.enter(*range(wanted), step=step)
    for group_id in range(wanted):
        assert driver.tell(GroupTrained(group_id, 1)) == []
    assert driver.machine.members == tuple(range(wanted))
    return driver


def scaled(driver: Driver, wanted: int) -> list[object]:
    """Let the user ask for a number of groups; return what follows."""
    return list(driver.tell(WantedChanged(wanted, f"The user asked for {wanted}.")))


def launched(group_id: int, reason: str, *, begins_run: bool = False) -> list[Decision]:
    """Return the decisions that launch a group."""
    return [
        LaunchGroup(group_id, begins_run, reason),
        MarkGroup(group_id, GroupPhase.PLACING, reason),
    ]


def removed(group_id: int, phase: GroupPhase, reason: str) -> list[Decision]:
    """Return the decisions that mark a group as gone and end its processes."""
    return [MarkGroup(group_id, phase, reason), StopGroup(group_id, reason)]


def next_attempt(num_training: int, failed: int, pause_s: float, error: str) -> SetRunPhase:
    """Return the decision that shows a pause between attempts to start, in a run that trains."""
    return trains(
        num_training,
        f" Attempt {failed} to start another failed; the next begins after {pause_s:g} s."
        f" The first error: {error}",
    )


def trains(num_training: int, more: str = "") -> SetRunPhase:
    """Return the decision that shows a run that trains."""
    s = "" if num_training == 1 else "s"
    reason = f"Training with {num_training} partition group{s}.{more}"
    return SetRunPhase(RunPhase.RUNNING, reason)
