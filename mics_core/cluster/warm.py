"""Starts Ray's workers as forks of a process that has already loaded what they need.

    python -P -m mics_core.cluster.warm DEFAULT_WORKER.py --raylet-name=... ...

Ray calls this in place of Python, as the `py_executable` of a runtime environment. A process of a
partition group loads torch, Ray Train and the engine: several seconds of a processor each, while
the run waits for the group. Here the first call on a node becomes the node's *template*, which
loads them once, and forks a process for every call. Forks also share the memory of what is loaded.

[Note: what makes the forks safe]
A fork has one thread and a copy of everything else. So the template imports and does nothing more,
and looks afterwards whether it may be forked: it must have no thread of its own, hold no driver of
a device, and no random numbers may be drawn yet that Ray makes its ids of, or two forks would give
the same id to two things. Where something is not so every process starts the plain way. A template
serves only calls with the whole environment that it was started with, since any import may have
read any variable; Ray reads the id of the job so.

[Note: who ends a template]
The end of its raylet does, or a long time without calls and forks. Forks do not need it any more.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import sys
import threading
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ["LOADED_FOR_FORKS", "NODES_OF_FORKS", "python_of_forks"]

LOADED_FOR_FORKS = "MICS_LOADED_FOR_FORKS"
"""Variable with the names of modules that a job's workers need besides."""

NODES_OF_FORKS = "MICS_NODES_OF_FORKS"
"""Variable with the ids of the nodes that hold a group; elsewhere a template would serve nobody."""

_IDLE_S = 600.0
_CALLS_WITHIN_S = 5.0
_LENGTH_BYTES = 4
_STREAMS = (0, 1, 2)
_FORKED, _PLAINLY = b"forked", b"plainly"

_OF_ONE_PROCESS = frozenset({NODES_OF_FORKS, "SHLVL", "_"})
"""Variables that no import reads, and that differ between calls. A fork gets its own."""
_FOR_IMPORTS = {"OPENBLAS_NUM_THREADS": "1"}  # numpy starts threads as it is loaded
_THREADS_THAT_KNOW_OF_FORKS = {"jemalloc_bg_thd"}  # pyarrow's allocator
_DRIVERS = ("libcuda.so", "libamdhip64.so")


def python_of_forks(python: str) -> str:
    """Return the `py_executable` that starts processes this way.

    Args:
        python: Path of Python; a node without it uses the one that its own path finds.
    """
    script = 'exec "$(command -v "$0" || command -v python3)" -P -m mics_core.cluster.warm "$@"'
    return f"sh -c {shlex.quote(script)} {shlex.quote(python)}"


@dataclass(frozen=True)
class _Call:
    """What Ray wants to be started: a program, and how."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]

    def told(self, name: str) -> str:
        """Return an argument of the program.

        Raises:
            StopIteration: It has none of that name.
        """
        begin = f"--{name}="
        return next(word for word in self.arguments if word.startswith(begin)).removeprefix(begin)

    @property
    def is_where_its_group_is(self) -> bool:
        """Whether others of its group start on this node too."""
        return self.told("node-id") in self.environment[NODES_OF_FORKS].split(",")

    @property
    def meeting_place(self) -> str:
        """Path beside the raylet's own socket, the same for calls that one template may serve."""
        same = sorted((k, v) for k, v in self.environment.items() if k not in _OF_ONE_PROCESS)
        words = json.dumps([sys.executable, same])
        key = hashlib.sha256(words.encode()).hexdigest()
        return f"{self.told('raylet-name')}.{key[:8]}"

    def start_plainly(self) -> NoReturn:
        """Become the program as if Ray had started it."""
        os.execve(sys.executable, [sys.executable, *self.arguments], self.environment)

    def start_here(self) -> None:
        """Run the program in this process, a fork."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = list(self.arguments)
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        if "numpy" in sys.modules:
            import numpy

            numpy.random.seed()  # Python's own generator does so by itself
        runpy.run_path(sys.argv[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Have the template fork the program of `arguments`, or become the template."""
    call = _Call(arguments, str(Path.cwd()), dict(os.environ))
    try:
        if not call.is_where_its_group_is:
            call.start_plainly()
        place, raylet = call.meeting_place, os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    except (KeyError, ValueError, StopIteration, OSError):
        call.start_plainly()  # not called as Ray does
    while True:
        lock = _lock_of(f"{place}.lock")
        if lock is not None:
            _Template(place, raylet, lock).serve(call).start_here()
            return
        answer = _ask(place, call)
        if answer == _FORKED:
            return
        if answer == _PLAINLY:
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


def _ask(place: str, call: _Call) -> bytes:
    """Return what the template answers; nothing if it is not there yet, or not any more."""
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(place)
        if _user_of(client) != os.geteuid():
            return _PLAINLY  # the folder may be everybody's, and the environment is nobody else's
        words = json.dumps(asdict(call)).encode()
        socket.send_fds(client, [len(words).to_bytes(_LENGTH_BYTES)], list(_STREAMS))
        client.sendall(words)
        if answer := client.recv(16):
            return answer
    select.select([], [], [], 0.01)  # it has its lock before its socket, and longer
    return b""


def _user_of(connection: socket.socket) -> int:
    form = struct.Struct("3i")  # process, user, group
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    return int(form.unpack(credentials)[1])


class _Template:
    """The process that forks the others.

    Args:
        place: Where it listens.
        raylet: Its raylet, as a file that is readable when that is gone.
        lock: Held by the only template of this place.
    """

    def __init__(self, place: str, raylet: int, lock: int):
        self._place, self._raylet, self._lock = place, raylet, lock
        Path(place).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)  # who may connect may run anything
        self._listener.bind(place)
        os.umask(before)
        self._listener.listen(256)

    def serve(self, first: _Call) -> _Call:
        """Fork; return in every fork what it is to run, and in the template never."""
        is_safe = _load() and _may_be_forked()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its forks
        if self._fork():
            return first if is_safe else first.start_plainly()
        while True:
            awaited = (self._listener.fileno(), self._raylet)
            ready, _, _ = select.select(awaited, (), (), _IDLE_S)
            if self._raylet in ready or not (ready or _has_children()):
                Path(self._place).unlink()
                os._exit(0)
            if ready:
                call = self._answer(is_safe)
                if call is not None:
                    return call

    def _answer(self, is_safe: bool) -> _Call | None:
        """Answer one call; return it in its fork, and nothing in the template."""
        client, _ = self._listener.accept()
        with client, suppress(OSError, ValueError), ExitStack() as streams:
            client.settimeout(_CALLS_WITHIN_S)
            call, files = _receive(client, streams)
            if is_safe and self._fork():
                for file, stream in zip(files, _STREAMS, strict=True):
                    os.dup2(file, stream)
                return call
            client.sendall(_FORKED if is_safe else _PLAINLY)
        return None

    def _fork(self) -> bool:
        """Fork; return whether this is the fork."""
        if os.fork():
            return False
        os.setpgid(0, 0)  # Ray ends a worker's whole group of processes
        self._listener.close()
        os.close(self._raylet)
        os.close(self._lock)  # or a fork would hold it when the template is gone
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return True


def _receive(client: socket.socket, open_files: ExitStack) -> tuple[_Call, list[int]]:
    """Return a call and its streams, which are open as long as `open_files`.

    Raises:
        ValueError: Who called is gone.
    """
    head, files, _, _ = socket.recv_fds(client, _LENGTH_BYTES, len(_STREAMS))
    for file in files:
        open_files.callback(os.close, file)
    words = b""
    while len(words) < int.from_bytes(head):
        part = client.recv(1 << 16)
        if not part:
            raise ValueError("a call broke off")
        words += part
    if len(files) != len(_STREAMS):
        raise ValueError("a call without its streams")
    return _Call(**json.loads(words)), files


def _has_children() -> bool:
    return bool(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _load() -> bool:
    """Import what the processes of a group need; return whether that went well."""
    os.environ.update(_FOR_IMPORTS)
    try:
        import ray.actor

        # Each class of actors draws an id as it is defined.
        ids, ray.actor.ActorClassID = ray.actor.ActorClassID, _IdsOfTheSystem
        import mics_core.cluster.group_trainer
        import mics_core.cluster.worker  # noqa: F401

        for name in filter(None, os.environ.get(LOADED_FOR_FORKS, "").split(",")):
            importlib.import_module(name)
        ray.actor.ActorClassID = ids
        ray._raylet.setproctitle("mics-elastic: template of workers")
    except Exception:
        traceback.print_exc()  # who needs it will say so too
        return False
    gc.freeze()  # or the first collection of every fork copies it all
    return True


class _IdsOfTheSystem:
    """Stands in for Ray's class of ids, whose generator forks would share once it has begun."""

    @staticmethod
    def from_random() -> object:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def _may_be_forked() -> bool:
    """See [Note: what makes the forks safe]."""
    if threading.active_count() > 1:
        return False
    main_thread = str(os.getpid())
    threads = [path for path in Path("/proc/self/task").iterdir() if path.name != main_thread]
    if {(path / "comm").read_text().strip() for path in threads} - _THREADS_THAT_KNOW_OF_FORKS:
        return False
    loaded = Path("/proc/self/maps").read_text(errors="replace")
    return not any(driver in loaded for driver in _DRIVERS) and _id_of_a_fork() != _id_of_a_fork()


def _id_of_a_fork() -> bytes:
    """Return a random id as a fork of this process draws it."""
    from ray import WorkerID

    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, WorkerID.from_random().binary())
        os._exit(0)
    os.waitpid(pid, 0)
    drawn = os.read(read, 64)
    os.close(read)
    os.close(write)
    return drawn


if __name__ == "__main__":
    main(sys.argv[1:])
