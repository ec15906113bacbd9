"""Many watchers of a job's events, in their own process: `python -m benchmarks.api.watchers`.

Reads the streams without a client library, so that the watchers take little of the machine that
they share with the service. Tells on standard output, one JSON object a line, that all are
connected, and at its end (a line on standard input) what they have seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

_CONNECTED_AT_ONCE = 50


@dataclass(slots=True)
class _Seen:
    """What one watcher has seen.

    Args:
        last: Sequence number of its newest event.
        missing: Numbers that were passed over or came again.
        waits_s: From the commit of each step to its arrival.
    """

    last: int = 0
    missing: int = 0
    waits_s: list[float] = field(default_factory=list)


class _Watchers:
    """All watchers of one job.

    Args:
        port: The service's.
        job_id: Whose events.
    """

    def __init__(self, port: int, job_id: str):
        self._port = port
        self._job_id = job_id
        self._times: dict[int, float | None] = {}
        self._writers: list[asyncio.StreamWriter] = []  # one that is dropped closes its stream
        self.since = float(
            "inf"
        )  # steps committed earlier, in seconds since the epoch, are history
        self.seen: list[_Seen] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self, number: int) -> None:
        """Open so many streams; returns when each has its first bytes."""
        while len(self.tasks) < number:
            some = min(_CONNECTED_AT_ONCE, number - len(self.tasks))
            streams = await asyncio.gather(*(self._open() for _ in range(some)))
            for reader in streams:
                self.seen.append(_Seen())
                self.tasks.append(asyncio.create_task(self._follow(reader, self.seen[-1])))

    async def until_level(self) -> None:
        """Wait until every watcher has the newest event that any has."""
        newest = max(seen.last for seen in self.seen)
        while any(seen.last < newest for seen in self.seen):
            await asyncio.sleep(0.05)

    async def _open(self) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/api/v1/jobs/{self._job_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        self._writers.append(writer)
        return reader

    async def _follow(self, reader: asyncio.StreamReader, seen: _Seen) -> None:
        sequence = 0
        async for line in reader:
            if line.startswith(b"id: "):
                sequence = int(line[4:])
                seen.missing += abs(sequence - seen.last - 1)
                seen.last = sequence
            elif line.startswith(b"data: "):
                committed = self._committed(sequence, line)
                if committed is not None and committed > self.since:
                    seen.waits_s.append(time.time() - committed)

    def _committed(self, sequence: int, line: bytes) -> float | None:
        """Return when the step of an event was committed; none if it is no step's."""
        if sequence not in self._times:  # all watchers get the same, so one reading is enough
            event = json.loads(line[6:])
            is_step = event["kind"] == "step"
            self._times[sequence] = event["record"]["time"] if is_step else None
        return self._times[sequence]


async def _main(port: int, job_id: str, number: int) -> None:
    watchers = _Watchers(port, job_id)
    await watchers.connect(number)
    await watchers.until_level()
    watchers.since = time.time()
    _tell(connected=number)
    await asyncio.to_thread(sys.stdin.readline)
    watchers.since = float("inf")
    still = sum(not task.done() for task in watchers.tasks)
    await watchers.until_level()
    _tell(
        watchers=still,
        events_dropped=sum(seen.missing for seen in watchers.seen),
        waits_s=[wait for seen in watchers.seen for wait in seen.waits_s],
    )
    for task in watchers.tasks:
        task.cancel()


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api.watchers", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("job_id")
    parser.add_argument("number", type=int)
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.job_id, options.number))
