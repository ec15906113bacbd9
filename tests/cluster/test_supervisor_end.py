"""How a supervisor ends: it leaves nothing behind that would begin the job again; without Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from mics_core.cluster import groups, supervisor
from mics_core.cluster.figures import JobFigures
from mics_core.cluster.supervisor import JobSupervisor
from mics_core.planner.strategy import Strategy
from mics_core.spec.status import JobState
from tests.cluster.head import Head
from tests.cluster.jobs import recorded_job

WITHIN_S = 20.0


class Room:
    """Stands in for a reservation for which there is never room."""

    async def wait(self) -> tuple[str, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    def release(self) -> None:
        pass


class Actor:
    """Stands in for the supervisor's actor as Ray knows it."""

    def __init__(self) -> None:
        self.current_actor = self
        self.is_killed = asyncio.Event()
        self.num_failing_kills = 0

    def get_actor_id(self) -> str:
        return "a1"

    def kill(self, _: Any) -> None:
        if self.num_failing_kills:
            self.num_failing_kills -= 1
            raise RuntimeError("the head is away")
        self.is_killed.set()


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch, head: Head) -> Actor:
    actor = Actor()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: actor)
    monkeypatch.setattr(ray, "kill", actor.kill)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(supervisor, "draining_nodes", dict)
    monkeypatch.setattr(supervisor, "_TICK_S", 0.01)
    monkeypatch.setattr(supervisor, "_LAST_READERS_S", 0.0)  # nobody watches
    monkeypatch.setattr(groups, "reserve", lambda *_: Room())
    # Nobody asks the supervisor to begin but the test.
    monkeypatch.setattr(supervisor, "SupervisorHandle", lambda _: Silent())
    return actor


class Silent:
    """Stands in for the handle by which a supervisor asks itself to begin."""

    def ask(self, *_: object, **__: object) -> None:
        pass


async def begun(after: int = 0) -> JobSupervisor:
    job = recorded_job(None, 10).model_dump(mode="json")
    begun = JobSupervisor("job", job, 1, Strategy(), "", JobFigures(), after)
    await begun.start()
    return begun


async def end(ending: JobSupervisor, actor: Actor) -> None:
    await ending.cancel("A test wants it.")
    async with asyncio.timeout(WITHIN_S):
        await actor.is_killed.wait()


def test_a_supervisor_that_is_started_anew_after_its_job_has_ended_only_ends(
    actor: Actor, head: Head
) -> None:
    async def story() -> None:
        await end(await begun(), actor)
        assert [key for key in head.values if key.startswith(b"job/")] == [b"job/a1/ended"]
        actor.is_killed.clear()
        again = await begun()
        async with asyncio.timeout(WITHIN_S):
            await actor.is_killed.wait()
        assert again._machine.groups == {}, "it began the job again"

    asyncio.run(story())


def test_it_is_ended_also_where_its_record_cannot_be_deleted(
    actor: Actor, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        ending = await begun()

        async def away() -> None:
            raise RuntimeError("the head is away")

        monkeypatch.setattr(ending._record, "end", away)
        await end(ending, actor)
        actor.is_killed.clear()
        again = await begun()
        assert again._memory.state is JobState.CANCELLED, "its record says so"
        async with asyncio.timeout(WITHIN_S):
            await actor.is_killed.wait()

    asyncio.run(story())


def test_it_tries_to_end_until_ray_hears_it(actor: Actor) -> None:
    async def story() -> None:
        actor.num_failing_kills = 2
        await end(await begun(), actor)

    asyncio.run(story())


def test_a_job_that_goes_on_under_its_id_has_another_supervisor(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        first = await begun()
        await end(first, actor)
        monkeypatch.setattr(actor, "get_actor_id", lambda: "a2")
        resumed = await begun(after=first._journal.last_sequence)
        assert list(resumed._machine.groups) != []
        actor.is_killed.clear()
        await end(resumed, actor)

    asyncio.run(story())
