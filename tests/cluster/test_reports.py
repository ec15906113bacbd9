"""What workers report is in the job's status; without Ray, which only carries it."""

from __future__ import annotations

import time

import pytest

from mics_core.cluster.figures import JobFigures
from mics_core.cluster.groups import GroupRun, GroupRuns
from mics_core.cluster.memory import Memory
from mics_core.cluster.messages import Committed, Entered, Ready
from mics_core.cluster.record import Record
from mics_core.cluster.reports import Reports
from mics_core.elastic import events as elastic
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.summary import Share, StepCommit
from mics_core.planner.strategy import Strategy
from mics_core.spec.status import JobStatus
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, recorded_job

STEP_S = 2.0


class Supervised:
    """Two groups of one job train, as their supervisor sees it."""

    def __init__(self) -> None:
        self.spec = recorded_job(None, 10)
        self.memory = memory = Memory.of_new_job(self.spec, JobFigures(), 0)
        record = Record("job", "a1", lambda: (memory, memory.journal))
        self.runs = GroupRuns(
            "job", self.spec, 2, Strategy(), "", self.tell, self._regrouped, record
        )
        self.runs.runs = memory.runs
        self.reports = Reports(memory, self.runs, self.tell)
        self.tell(elastic.StartRequested())
        groups = tuple(memory.machine.groups)
        for group_id in groups:
            memory.runs[group_id] = GroupRun(group_id, True)
            self.tell(elastic.GroupPlaced(group_id))
        for group_id in groups:
            self.tell(elastic.GroupReady(group_id))
        memory.plans[1] = GenerationPlan(1, groups, None, "It begins.")
        memory.course.announce(1, groups, "It begins.", after_loss=False)
        for group_id in groups:
            self.reports.take_in(group_id, Entered(0, 1, 0, 0.1))

    def tell(self, event: elastic.Event) -> None:
        self.memory.machine.handle(event, time.monotonic())

    async def _regrouped(self) -> None:
        return

    def commit(self, step: int, *waits_s: float) -> None:
        """Every group tells of a step, and how long it waited for the others."""
        size = GLOBAL_BATCH_SIZE // len(waits_s)
        shares = tuple(Share.of_micro_batches([place], size) for place in range(len(waits_s)))
        for group_id, waited_s in enumerate(waits_s):
            commit = StepCommit(
                step=step,
                loss=1.0,
                num_tokens=100,
                gradient_norm=1.0,
                learning_rate=0.1,
                generation=1,
                num_groups=len(waits_s),
                shares=shares,
                pending_generation=1,
                checkpoint=0.0,
                up_to_date=tuple(range(len(waits_s))),
                waited_across_s=waited_s,
            )
            self.reports.take_in(group_id, Committed(commit, STEP_S, STEP_S, 1000.0))

    def status(self) -> JobStatus:
        return self.memory.status("job", self.spec, 2, self.runs)


def test_the_status_tells_the_pace_of_each_group_that_trains_and_who_is_slow() -> None:
    job = Supervised()
    assert [group.state for group in job.status().groups] == ["member", "member"]
    job.commit(0, 0.0, 0.0)
    assert [group.sample_s for group in job.status().groups] == [None, None]
    for step in range(1, 4):
        job.commit(step, 1.4, 0.2)  # of two seconds: group 1 holds group 0 up
    size = GLOBAL_BATCH_SIZE // 2
    fast, slow = job.status().groups
    assert (fast.sample_s, slow.sample_s) == pytest.approx((0.6 / size, 1.8 / size))
    assert slow.slowness == pytest.approx(3.0)
    job.tell(elastic.GroupLost(1, "It is gone."))
    fast, slow = job.status().groups[:2]
    assert fast.sample_s is not None
    assert (fast.slowness, slow.sample_s, slow.slowness) == (None, None, None)


def test_a_step_is_that_of_all_workers_of_its_group() -> None:
    """Rank 0 alone says it; see `SupervisorLink.committed`."""
    job = Supervised()
    for rank in range(2):
        job.reports.take_in(0, Ready(rank, "node", "127.0.0.1", 100 + rank, None))
    job.commit(0, 0.0, 0.0)
    job.commit(1, 0.0, 0.0)
    workers = job.status().groups[0].workers
    assert [(worker.rank, worker.step) for worker in workers] == [(0, 2), (1, 2)]
