"""Counts the remote calls that a worker's training thread makes, seen from the user's data."""

from __future__ import annotations

import os
import threading
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorMethod
from ray.remote_function import RemoteFunction

_calls: Counter[int] = Counter()
_is_counting = threading.Lock()


def note_calls(folder: Path, step: int) -> None:
    """Note how many remote calls this thread has made when it reads a sample of a step.

    Its first time makes one itself, by which is seen that they are counted.
    """
    if _is_counting.acquire(blocking=False):
        _count_from_now_on()
        ray.put(None)
    with (folder / f"calls-{os.getpid()}").open("ab", buffering=0) as calls:
        calls.write(b"%d %d\n" % (step, _calls[threading.get_ident()]))


def read_calls(folder: Path, pid: int) -> dict[int, int]:
    """Return the calls that a process had made when it last read a sample of each step."""
    lines = (folder / f"calls-{pid}").read_text().splitlines()
    return {int(step): int(calls) for step, calls in (line.split() for line in lines)}


def _count_from_now_on() -> None:
    for owner, name in (
        (ray, "get"),
        (ray, "wait"),
        (ray, "put"),
        (ActorMethod, "_remote"),
        (RemoteFunction, "_remote"),
    ):
        setattr(owner, name, _counted(getattr(owner, name)))


def _counted(function: Any) -> Any:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        _calls[threading.get_ident()] += 1
        return function(*arguments, **options)

    return call
