"""Watchers: bounded, independent of each other, and never without an event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes import FakeSupervisor, specification

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobEvent
from service.store import Store
from service.watchers import Told, Watcher, WatcherHub, follow_events

SPEC = parse_job_spec(specification())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    store.add_job("a", SPEC, source="rest", created=1.0, reason="It was submitted.")
    yield store
    store.close()


def played() -> list[JobEvent]:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.finish()
    return supervisor.history


def test_a_full_queue_is_dropped_and_said_to_be() -> None:
    async def scenario() -> None:
        watcher, history = Watcher(queue_length=3), [Told(event) for event in played()]
        watcher.put(history[:2])
        assert await watcher.take() == history[:2]
        watcher.put(history[:2])
        watcher.put(history[2:4])
        watcher.put(history[4:5])
        assert await watcher.take() is None
        watcher.put(history[5:6])
        assert await watcher.take() == history[5:6]

    asyncio.run(scenario())


def test_a_watcher_that_lags_reads_the_store_and_misses_nothing(store: Store) -> None:
    async def scenario() -> list[JobEvent]:
        hub, history, found = WatcherHub(queue_length=2), played(), list[JobEvent]()
        store.append_events("a", history[:1])
        async for told in follow_events(store, hub, "a", 0):
            found.append(told.event)
            if len(found) == 1:  # while this watcher is busy, everything else happens
                for index in range(1, len(history)):
                    hub.publish("a", store.append_events("a", history[index : index + 1]))
        assert found == history
        assert hub.num_watchers == 0
        return found

    assert asyncio.run(scenario())


def test_events_reach_hundreds_of_watchers_in_order_and_others_have_their_turn_between(
    store: Store,
) -> None:
    async def scenario() -> None:
        hub, history = WatcherHub(), played()
        store.append_events("a", history[:1])
        others_turns = 0

        async def watch() -> list[int]:
            return [told.event.sequence async for told in follow_events(store, hub, "a", 0)]

        async def take_turns() -> None:
            nonlocal others_turns
            while True:
                others_turns += 1
                await asyncio.sleep(0)

        watchers = [asyncio.create_task(watch()) for _ in range(300)]
        while hub.num_watchers < 300:
            await asyncio.sleep(0.01)
        other = asyncio.create_task(take_turns())
        for event in history[1:-1]:
            hub.publish("a", store.append_events("a", [event]))
        others_turns = 0
        hub.publish("a", store.append_events("a", history[-1:]))
        found = await asyncio.gather(*watchers)
        other.cancel()
        assert others_turns > 10, "all watchers were served in one go"
        assert all(sequences == [event.sequence for event in history] for sequences in found)

    asyncio.run(scenario())


def test_a_watcher_that_leaves_is_forgotten(store: Store) -> None:
    async def scenario() -> None:
        hub = WatcherHub()
        store.append_events("a", played()[:2])
        following = follow_events(store, hub, "a", 0)
        await anext(following)
        assert hub.num_watchers == 1
        await following.aclose()  # type: ignore[attr-defined]
        assert hub.num_watchers == 0

    asyncio.run(scenario())


def test_watchers_wait_while_a_request_does_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.watchers._PAUSE_S", 0.5)
    monkeypatch.setattr("service.watchers._LONGEST_S", 0.25)

    async def scenario() -> None:
        hub, history = WatcherHub(), played()
        hub.give_way(lambda: True)
        with ExitStack() as stack:
            watchers = [stack.enter_context(hub.watch("a")) for _ in range(24)]
            hub.publish("a", history[:1])
            for _ in range(24):
                await asyncio.sleep(0)
            assert [bool(watcher._queue) for watcher in watchers].count(True) == 8
            hub.publish("a", history[1:2])
            for watcher in watchers:
                taken: list[JobEvent] = []
                while len(taken) < 2:
                    taken += [told.event for told in await watcher.take() or ()]
                assert taken == history[:2]

    asyncio.run(scenario())
