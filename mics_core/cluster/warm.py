"""Starts Ray's workers as forks of a process that has already loaded what they need.

    python -P -m mics_core.cluster.warm DEFAULT_WORKER.py --raylet-name=... ...

Ray calls this in place of Python, as the `py_executable` of a runtime environment. A process of a
partition group loads torch, the engine and Ray Train: several seconds of a processor each, while
the run waits for the group. Here a *template* (`mics_core.cluster.template`) has loaded them, and
forks a process for every call. Forks also share the memory of what is loaded.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from mics_core.cluster.template import (
    FORKED,
    JOB,
    LENGTH_BYTES,
    NODE,
    PLAINLY,
    STREAMS,
    Call,
    Template,
)

__all__ = ["python_of_forks"]


def python_of_forks(python: str) -> str:
    """Return the `py_executable` that starts processes this way.

    Args:
        python: Path of Python; a node without it uses the one that its own path finds.
    """
    script = 'exec "$(command -v "$0" || command -v python3)" -P -m mics_core.cluster.warm "$@"'
    return f"sh -c {shlex.quote(script)} {shlex.quote(python)}"


def main(arguments: list[str]) -> None:
    """Have the program of `arguments` started by a template, or become one."""
    call = Call(arguments, str(Path.cwd()), dict(os.environ))
    try:
        if not call.is_where_its_group_is:
            call.start_plainly()
        of_job = call.place_of(JOB)
        os.close(call.raylet())
    except (KeyError, ValueError, StopIteration, OSError):
        call.start_plainly()  # not called as Ray does
    lock = _ask_or_lock(of_job, call)
    if lock is None:
        return
    # Nobody serves this job here. A fork of the node's template shall, and hold the lock for it.
    of_node = call.place_of(NODE)
    lock_of_node = _ask_or_lock(of_node, call, lock)
    if lock_of_node is None:
        return
    call, files = Template(of_node, NODE, call, lock_of_node).serve([*STREAMS, lock])
    try:
        template = Template(call.place_of(JOB), JOB, call, files[-1])
    except ProcessLookupError:
        return  # its raylet has gone meanwhile
    call, _ = template.serve(STREAMS)
    call.start_here()


def _ask_or_lock(place: str, call: Call, *files: int) -> int | None:
    """Have the template of a place take a call, or return the lock of a place without one."""
    while True:
        lock = _lock_of(f"{place}.lock")
        if lock is not None:
            return lock
        answer = _ask(place, call, *files)
        if answer == FORKED:
            return None
        if answer == PLAINLY:
            call.start_plainly()


def _lock_of(path: str) -> int | None:
    """Take a lock for as long as the returned file is open; none if somebody holds it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _ask(place: str, call: Call, *files: int) -> bytes:
    """Return what the template answers; nothing if it is not there yet, or not any more.

    Args:
        place: Where it listens.
        call: What it is to start.
        files: What goes with the call besides the streams.
    """
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(place)
        if _user_of(client) != os.geteuid():
            return PLAINLY  # the folder may be everybody's, and the environment is nobody else's
        words = json.dumps(asdict(call)).encode()
        socket.send_fds(client, [len(words).to_bytes(LENGTH_BYTES)], [*STREAMS, *files])
        client.sendall(words)
        if answer := client.recv(16):
            return answer
    select.select([], [], [], 0.01)  # it has its lock before its socket, and longer
    return b""


def _user_of(connection: socket.socket) -> int:
    form = struct.Struct("3i")  # process, user, group
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    return int(form.unpack(credentials)[1])


if __name__ == "__main__":
    main(sys.argv[1:])
