"""Room is handed over to a group, and one that hangs does not keep it; without Ray."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable
from dataclasses import dataclass, field

import pytest
import ray

from mics_core.cluster import groups
from mics_core.cluster.groups import GroupRun
from mics_core.cluster.messages import Ready, Started
from mics_core.elastic.events import GroupUnplaced
from tests.cluster.head import Head
from tests.cluster.test_reports import Supervised

WITHIN_S = 10.0


class Room:
    """Stands in for a reservation for which there is room at once."""

    async def wait(self) -> tuple[str, ...]:
        return "node-0", "node-1"

    def is_placed(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Method:
    """Stands in for a method of an actor."""

    def __init__(self, answer: asyncio.Future[None]):
        self._answer = answer

    def remote(self, *_: object) -> Awaitable[None]:
        return asyncio.shield(self._answer)


class Runner:
    """Stands in for a runner whose workers do as the test says."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.ends: asyncio.Future[None] = loop.create_future()
        self.run = Method(self.ends)
        prepared: asyncio.Future[None] = loop.create_future()
        loop.call_soon_threadsafe(prepared.set_result, None)
        self.prepare = Method(prepared)


@dataclass
class Groups:
    """The groups of a job whose runners and reservations are stand-ins."""

    loop: asyncio.AbstractEventLoop
    job: Supervised = field(default_factory=Supervised)
    runners: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    killed: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)

    def start_runner(self, _: str, group_id: int, *__: object) -> Runner:
        self.runners.put(group_id)
        return Runner(self.loop)

    async def next_runner(self) -> int:
        return await asyncio.to_thread(self.runners.get, timeout=WITHIN_S)

    async def hands_over(self, group_id: int) -> None:
        """Launch a group, and wait until Ray Train is to start its workers."""
        self.job.runs.launch(group_id, begins_run=False)
        assert await self.next_runner() == group_id
        await asyncio.wait_for(self._has_begun(group_id), WITHIN_S)

    async def _has_begun(self, group_id: int) -> None:
        while not self.job.runs.runs[group_id].begun:
            await asyncio.sleep(0)

    async def until_handed_over(self, group_id: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while group_id in self.job.runs._handing_over:
                await asyncio.sleep(0)

    def say_started(self, group_id: int, *ranks: int) -> None:
        for rank in ranks:
            self.job.reports.take_in(group_id, Started(rank, f"worker {rank}"))

    def end(self) -> None:
        for run in self.job.runs.runs.values():
            if run.here.task is not None:
                run.here.task.cancel()


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch, head: Head) -> pytest.MonkeyPatch:
    monkeypatch.setattr(groups, "reserve", lambda *_: Room())
    monkeypatch.setattr(groups, "_NOTED_WITHIN_S", 0.01)
    monkeypatch.setattr(groups, "_LEAVES_WITHIN_S", 0.1)
    return monkeypatch


def groups_of(patch: pytest.MonkeyPatch) -> Groups:
    stands_in = Groups(asyncio.get_running_loop())
    patch.setattr(groups, "start_runner", stands_in.start_runner)
    patch.setattr(ray, "kill", stands_in.killed.put)
    return stands_in


def test_the_next_group_starts_once_the_workers_of_one_run_whether_they_become_ready_or_not(
    patch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        job = groups_of(patch)
        await job.hands_over(2)
        job.job.runs.launch(3, begins_run=False)
        job.say_started(2, 0, 0)
        await asyncio.sleep(0)
        assert job.runners.empty(), "Ray Train may still need the room of rank 1"
        job.say_started(2, 1)
        assert await job.next_runner() == 3
        job.end()

    asyncio.run(story())


def test_a_group_that_hangs_after_its_workers_began_to_run_is_ended_by_killing_them(
    patch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        job = groups_of(patch)
        await job.hands_over(2)
        job.say_started(2, 0, 1)
        await job.until_handed_over(2)
        job.job.runs.stop(2, "It hangs.")
        for rank in (0, 1):
            killed = await asyncio.to_thread(job.killed.get, timeout=WITHIN_S)
            assert killed == f"worker {rank}"
        job.end()

    asyncio.run(story())


def test_a_group_that_is_stopped_while_it_starts_is_left_to_it_and_ended_if_it_hangs(
    patch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        job = groups_of(patch)
        await job.hands_over(2)
        job.job.runs.stop(2, "It is not wanted any more.")
        job.say_started(2, 0, 1)
        assert job.killed.empty(), "it would leave Ray Train's reservation behind"
        for rank in (0, 1):
            killed = await asyncio.to_thread(job.killed.get, timeout=WITHIN_S)
            assert killed == f"worker {rank}"
        job.job.runs.launch(3, begins_run=False)
        assert await job.next_runner() == 3
        job.end()

    asyncio.run(story())


def test_whoever_takes_over_says_which_groups_wait_for_room_again(
    patch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        job = groups_of(patch)
        runs = job.job.runs
        patch.setattr(groups, "find_runner", lambda *_: None)
        told: list[object] = []
        patch.setattr(runs, "_tell", told.append)
        runs.runs = {2: GroupRun(2, begins_run=False), 3: GroupRun(3, begins_run=False, begun=True)}
        runs.take_over()
        assert told == [GroupUnplaced(2)]
        assert await job.next_runner() == 2
        job.end()

    asyncio.run(story())


def test_workers_tell_that_they_run_before_they_are_ready(patch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        job = groups_of(patch)
        await job.hands_over(2)
        told = []
        patch.setattr(job.job.reports, "_tell", told.append)
        job.say_started(2, 0, 1)
        for rank in (0, 1):
            job.job.reports.take_in(2, Ready(rank, f"node-{rank}", "localhost", 1, None))
        assert [type(event).__name__ for event in told] == ["GroupStarted", "GroupReady"]
        job.end()

    asyncio.run(story())
