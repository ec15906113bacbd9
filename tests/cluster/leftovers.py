"""Checks that nothing is left behind: by jobs in a living cluster, and by one that has ended."""

from __future__ import annotations

import os
import socket
from multiprocessing import resource_tracker
from urllib.parse import urlsplit

import psutil
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors

from benchmarks.harness.followed import MissingError, eventually
from benchmarks.harness.sockets import listeners, listeners_of

GONE_WITHIN_S = 20.0
_ALL_ACTORS = 10_000  # Ray lists a hundred where nobody asks for more


class Leftovers:
    """Watches what this test process starts, from now on."""

    def __init__(self) -> None:
        # Whoever starts processes by `multiprocessing` leaves one that lives as long as this one.
        resource_tracker.ensure_running()
        self._before = set(_descendants())
        self._seen: set[psutil.Process] = set()
        self._addresses: set[str] = set()
        self._listened: dict[str, str] = {}

    def look(self, *addresses: str) -> None:
        """Remember every process that runs now below this one, its ports, and addresses in use."""
        here = set(_descendants()) - self._before
        self._seen |= here
        self._listened |= listeners_of(process.pid for process in here)
        self._addresses |= set(addresses)

    def check(self) -> None:
        """Fail unless every process is gone and every port closed, whoever holds it by now."""
        assert self._seen, "no process was seen, so this check would prove nothing"
        assert self._listened, "no port was seen, so this check would prove nothing"

        def alive() -> list[psutil.Process]:
            now = self._seen | (set(_descendants()) - self._before)
            return [process for process in now if _lives(process)]

        eventually(
            lambda: not alive(), f"the end of {[_described(p) for p in alive()]}", GONE_WITHIN_S
        )
        still_listen = [self._listened[i] for i in self._listened.keys() & listeners().keys()]
        assert not still_listen, f"left open: {still_listen}"
        still_open = [address for address in self._addresses if _is_open(address)]
        assert not still_open, f"somebody still listens on {still_open}"


def check_that_jobs_left_nothing() -> None:
    """Fail unless the connected cluster, which lives, is as if no job had ever run there.

    Of actors that have ended, the processes have too.
    """
    try:
        eventually(lambda: not _held_by_jobs(), "the end of all that jobs held", GONE_WITHIN_S)
    except MissingError:
        raise AssertionError(f"jobs that ended still hold {_held_by_jobs()}") from None


def _held_by_jobs() -> list[str]:
    actors = list_actors(limit=_ALL_ACTORS)
    alive = [f"actor {actor.class_name}" for actor in actors if actor.state != "DEAD"]
    here = {process.pid for process in _descendants() if _lives(process)}
    left = [f"process {a.pid} of {a.class_name}" for a in actors if a.pid in here]
    reserved = [
        f"placement group {name}"
        for name, group in placement_group_table().items()
        if group["state"] != "REMOVED"
    ]
    total, free = ray.cluster_resources(), ray.available_resources()
    cpus = total.get("CPU", 0.0) - free.get("CPU", 0.0)
    return [*alive, *left, *reserved, *([f"{cpus:g} CPU slots"] if cpus else [])]


def _descendants() -> list[psutil.Process]:
    return psutil.Process(os.getpid()).children(recursive=True)


def _lives(process: psutil.Process) -> bool:
    try:
        # is_running() compares the start time too: another process with the same id is not it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:60]}"
    except psutil.Error:
        return f"{process.pid} (gone)"


def _is_open(address: str) -> bool:
    parts = urlsplit(address if "://" in address else f"//{address}")
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0
