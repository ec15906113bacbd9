"""What a supervisor concludes from what it remembers; without Ray."""

from __future__ import annotations

import pytest

from mics_core.cluster.figures import JobFigures
from mics_core.cluster.groups import GroupRun
from mics_core.cluster.memory import Memory
from mics_core.elastic import events as elastic
from mics_core.elastic.plan import GenerationPlan
from tests.cluster.jobs import recorded_job


class Remembered:
    """A job of which two groups train under generation 1."""

    def __init__(self) -> None:
        self.memory = Memory.of_new_job(recorded_job(None, 10), JobFigures(), 0)
        self.losses: list[bool] = []
        self.tell(elastic.StartRequested())
        self.begin(0, 1)
        self.enter(0, 1)

    def tell(self, event: elastic.Event) -> None:
        memory = self.memory
        for decision in memory.machine.handle(event, 1000.0):
            match decision:
                case elastic.LaunchGroup(group_id, begins_run):
                    memory.runs[group_id] = GroupRun(group_id, begins_run)
                case elastic.StopGroup(group_id):
                    memory.runs[group_id].stopped = True
                case elastic.AnnounceGeneration(number, groups, reason):
                    memory.plans[number] = GenerationPlan(number, groups, None, reason)
                    self.losses.append(memory.note_loss())

    def begin(self, *group_ids: int) -> None:
        for group_id in group_ids:
            self.tell(elastic.GroupPlaced(group_id))
        for group_id in group_ids:
            self.tell(elastic.GroupReady(group_id))

    def enter(self, *group_ids: int, generation: int | None = None) -> None:
        for group_id in group_ids:
            entered = generation or self.memory.machine.generation
            self.tell(elastic.GroupEntered(group_id, entered, 3))

    def lose(self, group_id: int) -> None:
        self.tell(elastic.GroupLost(group_id, "It is gone."))

    def newest(self) -> tuple[int, ...]:
        return self.memory.plans[self.memory.machine.generation].groups


@pytest.fixture
def job() -> Remembered:
    job = Remembered()
    job.tell(elastic.WantedChanged(3, "One more."))
    job.begin(2)
    assert job.newest() == (0, 1, 2)
    return job


def test_a_newcomer_that_is_lost_before_anybody_entered_with_it_costs_no_step(
    job: Remembered,
) -> None:
    job.lose(2)
    assert job.newest() == (0, 1)
    assert job.memory.after_loss == 0
    assert job.losses == [False, False, False]


def test_a_member_that_is_lost_while_a_newcomer_is_announced_costs_the_step(
    job: Remembered,
) -> None:
    job.lose(1)
    assert job.newest() == (0, 2)
    assert job.memory.after_loss == 3
    job.lose(2)
    assert job.newest() == (0,)
    assert job.memory.after_loss == 4, "group 0 may still be in generation 1"
    job.enter(0)
    assert not job.memory.note_loss()


def test_who_is_heard_to_have_entered_only_after_the_loss_gives_the_step_up_too(
    job: Remembered,
) -> None:
    job.lose(2)
    job.enter(0, generation=2)
    assert job.memory.note_loss()
    assert job.memory.after_loss == 3
    assert not job.memory.note_loss(), "it is known already"
