"""The event stream, read from a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from running import Service


@dataclass
class Message:
    kind: str
    sequence: int
    event: dict[str, Any]


@contextmanager
def stream(
    service: Service, job_id: str, query: str = "", headers: dict[str, str] | None = None
) -> Iterator[Iterator[Message]]:
    path = f"/api/v1/jobs/{job_id}/events{query}"
    with service.client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer.iter_lines())


def messages(lines: Iterator[str]) -> Iterator[Message]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name and value:
            fields[name] = value
        elif fields:
            yield Message(fields["event"], int(fields["id"]), json.loads(fields["data"]))
            fields = {}


def test_history_is_replayed_and_the_stream_ends_after_the_final_state(service: Service) -> None:
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")
    with stream(service, job_id) as arriving:
        found = list(arriving)
    assert [message.sequence for message in found] == list(range(1, len(found) + 1))
    assert [message.kind for message in found].count("step") == 10
    assert (found[-1].kind, found[-1].event["state"]) == ("state", "finished")
    assert all(message.event["sequence"] == message.sequence for message in found)


def test_live_events_follow_history_without_gap_or_repeat(service: Service) -> None:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(2)
    service.wait_for(job_id, step=2)
    with stream(service, job_id) as arriving:
        history = [next(arriving) for _ in range(4)]
        supervisor.lose_group(0, "Its node is gone.")
        supervisor.finish()
        found = history + list(arriving)
    assert [message.sequence for message in found] == list(range(1, len(supervisor.history) + 1))
    assert [message.kind for message in found if message.kind != "step"] == [
        "state",
        "generation",
        "group",
        "generation",
        "state",
    ]


def test_a_reconnecting_browser_goes_on_where_it_was(service: Service) -> None:
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")
    with stream(service, job_id, "?after=2", {"Last-Event-ID": "5"}) as arriving:
        assert next(arriving).sequence == 6
    with stream(service, job_id, "?after=2") as arriving:
        assert next(arriving).sequence == 3


def test_one_that_knows_everything_is_told_not_to_come_back(service: Service) -> None:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.finish()
    service.wait_for(job_id, state="finished")
    answer = service.client.get(f"/api/v1/jobs/{job_id}/events?after={len(supervisor.history)}")
    assert answer.status_code == 204


def test_a_silent_stream_is_kept_alive(service: Service) -> None:
    job_id = service.submit()
    with service.client.stream("GET", f"/api/v1/jobs/{job_id}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(": ping")
        service.cluster.start_supervisor(job_id).finish()
        assert "event: state" in list(lines)


def test_the_end_of_a_job_that_never_started_reaches_its_watchers(service: Service) -> None:
    job_id = service.submit()
    with stream(service, job_id) as arriving:
        service.client.post(f"/api/v1/jobs/{job_id}/cancel")
        assert [message.event["state"] for message in arriving] == ["cancelled"]


def test_many_watchers_see_the_same(service: Service) -> None:
    job_id = service.submit(
        training={
            "sequence_length": 8,
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "steps": 1000,
        }
    )
    supervisor = service.cluster.start_supervisor(job_id)

    def watch() -> list[int]:
        with stream(service, job_id) as arriving:
            return [message.sequence for message in arriving]

    with ThreadPoolExecutor(8) as pool:
        watching = [pool.submit(watch) for _ in range(8)]
        for _ in range(10):
            supervisor.train(99)
        supervisor.finish()
        expected = list(range(1, len(supervisor.history) + 1))
        assert all(each.result() == expected for each in watching)
    service.wait_for(job_id, state="finished", step=1000)
