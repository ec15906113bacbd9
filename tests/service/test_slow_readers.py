"""Whoever does not read gives its seat back, and everybody else has every event meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeCluster
from running import Service, eventually, run_service

from mics_core.spec.nodes import LogSource
from service.patience import PatientProtocol
from service.settings import Settings

NUM_READERS = 8
NUM_STEPS = 3000
TAKE_S = 1.0


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with one job, `busy`, whose sends wait for the client to read."""
    connection_made = PatientProtocol.connection_made

    def with_small_buffers(protocol: PatientProtocol, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(protocol, transport)

    monkeypatch.setattr(PatientProtocol, "connection_made", with_small_buffers)
    monkeypatch.setattr(PatientProtocol, "take_s", TAKE_S)
    settings = Settings(
        data_directory=tmp_path,
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
        poll_pause_s=0.01,
        ping_interval_s=0.1,
    )
    with run_service(settings, FakeCluster()) as service:
        training = {"sequence_length": 8, "global_batch_size": 8, "micro_batch_size": 1}
        job = service.cluster.start_supervisor("busy", training=training | {"steps": NUM_STEPS})
        job.train(1)
        service.wait_for("busy", step=1)
        yield service


def ask_and_never_read(service: Service, path: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((service.client.base_url.host, service.client.base_url.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def num_seats(service: Service) -> int:
    return service.app.state.services.hub.num_seats  # type: ignore[no-any-return]


def test_watchers_that_never_read_lose_their_seats_and_another_has_every_event(
    busy: Service,
) -> None:
    silent = [ask_and_never_read(busy, "/api/v1/jobs/busy/events") for _ in range(NUM_READERS)]
    eventually(lambda: num_seats(busy) == NUM_READERS, "the seats of those who never read")
    with busy.client.stream("GET", "/api/v1/jobs/busy/events") as reading:
        lines = reading.iter_lines()
        next(lines)
        busy.cluster.supervisors["busy"].train(NUM_STEPS - 1)
        busy.cluster.supervisors["busy"].finish()
        sequences = [int(line[4:]) for line in lines if line.startswith("id: ")]
    assert sequences[-1] > NUM_STEPS
    assert sequences == list(range(sequences[0], len(sequences) + sequences[0]))
    eventually(lambda: num_seats(busy) == 0, "the end of the streams that nobody reads")
    for connection in silent:
        connection.close()


def test_followers_of_a_log_who_never_read_lose_their_seats(busy: Service) -> None:
    source = LogSource(supervisor_of="busy")
    busy.cluster.logs[source] = ["x" * 200] * 5000
    path = "/api/v1/jobs/busy/logs?follow=true&tail=5000"
    silent = [ask_and_never_read(busy, path) for _ in range(NUM_READERS)]
    eventually(lambda: num_seats(busy) == NUM_READERS, "the seats of those who never read")
    eventually(lambda: num_seats(busy) == 0, "the end of the streams that nobody reads")
    for connection in silent:
        connection.close()


def test_who_reads_slowly_but_goes_on_keeps_the_stream(busy: Service) -> None:
    source = LogSource(supervisor_of="busy")
    busy.cluster.logs[source] = ["x" * 200] * 5000
    reader = ask_and_never_read(busy, "/api/v1/jobs/busy/logs?follow=true&tail=5000")
    began, num_bytes = time.monotonic(), 0
    while time.monotonic() - began < 3 * TAKE_S:
        num_bytes += len(reader.recv(16384))
        time.sleep(0.02)  # as slow as a bad line
    assert num_bytes < 5000 * 200, "it was not slow"
    assert num_seats(busy) == 1
    reader.close()
    eventually(lambda: num_seats(busy) == 0, "the end of the stream")
