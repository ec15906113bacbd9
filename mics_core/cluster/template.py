"""The process that forks those of a partition group, see `mics_core.cluster.warm`.

[Note: two templates]
The first call on a node becomes the node's template: it loads torch and the engine, all that does
not need to know the job. Its forks are templates themselves, one for each job: they load Ray, which
reads the id of the job once and for all, and their forks are the processes of the job.

[Note: what makes the forks safe]
A fork has one thread and a copy of everything else. So a template imports and does nothing more,
and looks afterwards whether it may be forked: it must have no thread of its own, hold no driver of
a device, and no random numbers may be drawn yet that Ray makes its ids of, or two forks would give
the same id to two things. Where something is not so every process starts the plain way. A template
serves only calls with the whole environment that it was started with, since any import may have
read any variable; the node's has been told no more of the job's than what all jobs have alike.

[Note: who ends a template]
The end of its raylet does, or a long time without calls and forks. Forks do not need it any more.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = [
    "FORKED",
    "JOB",
    "LENGTH_BYTES",
    "LOADED_FOR_FORKS",
    "NODE",
    "NODES_OF_FORKS",
    "PLAINLY",
    "STREAMS",
    "Call",
    "Template",
]

LOADED_FOR_FORKS = "MICS_LOADED_FOR_FORKS"
"""Variable with the names of modules that a job's workers need besides."""

NODES_OF_FORKS = "MICS_NODES_OF_FORKS"
"""Variable with the ids of the nodes that hold a group; elsewhere a template would serve nobody."""

LENGTH_BYTES = 4
STREAMS = (0, 1, 2)
FORKED, PLAINLY = b"forked", b"plainly"
"""What a template answers."""

_IDLE_S = 600.0
_CALLS_WITHIN_S = 5.0
_LONGEST_PLACE = 107
"""Bytes of a socket's path on Linux."""

_OF_ONE_PROCESS = frozenset({NODES_OF_FORKS, "SHLVL", "_"})
"""Variables that no import reads, and that differ between calls. A fork gets its own."""
_OF_ONE_JOB = frozenset({"RAY_JOB_ID"})
"""Variables that only Ray reads, and that differ between jobs."""
_FOR_IMPORTS = {"OPENBLAS_NUM_THREADS": "1"}  # numpy starts threads as it is loaded
_THREADS_THAT_KNOW_OF_FORKS = {"jemalloc_bg_thd"}  # pyarrow's allocator
_DRIVERS = ("libcuda.so", "libamdhip64.so")


@dataclass(frozen=True)
class Call:
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

    def place_of(self, level: Level) -> str:
        """Return a path beside the raylet's own socket, where a template may serve this call.

        Raises:
            ValueError: A socket cannot have such a long one.
        """
        same = sorted((k, v) for k, v in self.environment.items() if k not in level.may_differ)
        words = json.dumps([level.name, sys.executable, level.code(), same])
        key = hashlib.sha256(words.encode()).hexdigest()
        place = f"{self.told('raylet-name')}.{key[:8]}"
        if len(os.fsencode(place)) > _LONGEST_PLACE:
            raise ValueError(f"{place} is too long")
        return place

    def raylet(self) -> int:
        """Return the node's raylet, as a file that is readable when that is gone.

        Raises:
            OSError: It is gone.
        """
        return os.pidfd_open(int(self.environment["RAY_RAYLET_PID"]))

    def start_plainly(self) -> NoReturn:
        """Become the program as if Ray had started it."""
        os.execve(sys.executable, [sys.executable, *self.arguments], self.environment)

    def enter(self) -> None:
        """Have this process be where the call is made, with its environment."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)

    def start_here(self) -> None:
        """Run the program in this process, a fork."""
        self.enter()
        sys.argv = list(self.arguments)
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        if "numpy" in sys.modules:
            import numpy

            numpy.random.seed()  # Python's own generator does so by itself
        runpy.run_path(sys.argv[0], run_name="__main__")


@dataclass(frozen=True)
class Level:
    """One of the two kinds of template; see [Note: two templates].

    Args:
        name: What it is for.
        may_differ: Variables in which calls that it serves may differ.
        code: Tells the code that it loads from what is installed later.
        load: Loads what it is for; returns whether this process may be forked then.
        num_files: Files that come with a call.
    """

    name: str
    may_differ: frozenset[str]
    code: Callable[[], Sequence[int]]
    load: Callable[[], bool]
    num_files: int


class Template:
    """The process that forks the others.

    Args:
        place: Where it listens.
        level: What it is for.
        first: The call for which it is there.
        lock: Held by the only template of this place.
    """

    def __init__(self, place: str, level: Level, first: Call, lock: int):
        self._place, self._level, self._first, self._lock = place, level, first, lock
        self._raylet = first.raylet()
        Path(place).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)  # who may connect may run anything
        self._listener.bind(place)
        self._bound = Path(place).stat().st_ino
        os.umask(before)
        self._listener.listen(256)

    def serve(self, files: Sequence[int]) -> tuple[Call, Sequence[int]]:
        """Fork; return in every fork its call and the files of that, and in the template never.

        Args:
            files: Of the first call.
        """
        self._first.enter()
        os.environ.update(_FOR_IMPORTS)
        is_safe = self._level.load()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its forks
        if self._fork():
            if not is_safe:
                self._first.start_plainly()
            return self._first, files
        for file in files[len(STREAMS) :]:
            os.close(file)
        while True:
            awaited = (self._listener.fileno(), self._raylet)
            ready, _, _ = select.select(awaited, (), (), _IDLE_S)
            if self._raylet in ready or not (ready or _has_children()):
                self._unbind()
                os._exit(0)
            if ready:
                forked = self._answer(is_safe)
                if forked is not None:
                    return forked

    def _unbind(self) -> None:
        with suppress(FileNotFoundError):
            if Path(self._place).stat().st_ino == self._bound:
                Path(self._place).unlink()

    def _answer(self, is_safe: bool) -> tuple[Call, list[int]] | None:
        """Answer one call; return it in its fork, and nothing in the template."""
        client, _ = self._listener.accept()
        with client, suppress(OSError, ValueError), ExitStack() as received:
            client.settimeout(_CALLS_WITHIN_S)
            call, files = _receive(client, self._level.num_files, received)
            if is_safe and self._fork():
                return call, _taken_over(files)
            client.sendall(FORKED if is_safe else PLAINLY)
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


def _receive(
    client: socket.socket, num_files: int, open_files: ExitStack
) -> tuple[Call, list[int]]:
    """Return a call and what comes with it, which is open as long as `open_files`.

    Raises:
        ValueError: Who called is gone.
    """
    head, files, _, _ = socket.recv_fds(client, LENGTH_BYTES, num_files)
    for file in files:
        open_files.callback(os.close, file)
    words = b""
    while len(words) < int.from_bytes(head):
        part = client.recv(1 << 16)
        if not part:
            raise ValueError("a call broke off")
        words += part
    if len(files) != num_files:
        raise ValueError("a call without its files")
    return Call(**json.loads(words)), files


def _taken_over(files: Sequence[int]) -> list[int]:
    """Make the files of a call those of this process, a fork; it ends if it cannot."""
    try:
        for file, stream in zip(files, STREAMS, strict=False):
            os.dup2(file, stream)
        return [*STREAMS, *map(os.dup, files[len(STREAMS) :])]
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # or it would go on as if it were the template


def _has_children() -> bool:
    return bool(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _load_for_all_jobs() -> bool:
    """Import what does not need Ray."""
    try:
        import mics_core.comm.partition
        import mics_core.engine.build
        import mics_core.engine.loop  # noqa: F401

        for name in filter(None, os.environ.get(LOADED_FOR_FORKS, "").split(",")):
            importlib.import_module(name)
    except Exception:
        traceback.print_exc()  # who needs it will say so too
        return False
    gc.freeze()  # or the first collection of every fork copies it all
    # Ray would have read the id of the first job.
    return "ray" not in sys.modules and _has_nothing_of_its_own()


def _load_for_one_job() -> bool:
    """Import what the processes of a group need besides."""
    try:
        import ray.actor

        # Each class of actors draws an id as it is defined.
        ids, ray.actor.ActorClassID = ray.actor.ActorClassID, _IdsOfTheSystem
        import mics_core.cluster.group_trainer
        import mics_core.cluster.worker  # noqa: F401

        ray.actor.ActorClassID = ids
        ray._raylet.setproctitle("mics-elastic: template of workers")
    except Exception:
        traceback.print_exc()
        return False
    gc.freeze()
    return _may_be_forked()


def _times_of_code() -> list[int]:
    """Return when something was last installed, and when the newest of our modules was written."""
    installed, ours = Path(sysconfig.get_path("purelib")), Path(__file__).parents[1]
    newest = max(module.stat().st_mtime_ns for module in ours.rglob("*.py"))
    return [installed.stat().st_mtime_ns, newest]


NODE = Level(
    "node",
    _OF_ONE_PROCESS | _OF_ONE_JOB,
    _times_of_code,
    _load_for_all_jobs,
    len(STREAMS) + 1,
)
JOB = Level("job", _OF_ONE_PROCESS, tuple, _load_for_one_job, len(STREAMS))


class _IdsOfTheSystem:
    """Stands in for Ray's class of ids, whose generator forks would share once it has begun."""

    @staticmethod
    def from_random() -> object:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def _may_be_forked() -> bool:
    """See [Note: what makes the forks safe]."""
    return _has_nothing_of_its_own() and _id_of_a_fork() != _id_of_a_fork()


def _has_nothing_of_its_own() -> bool:
    """Whether no thread runs, and no driver of a device was loaded."""
    if threading.active_count() > 1:
        return False
    main_thread = str(os.getpid())
    threads = [path for path in Path("/proc/self/task").iterdir() if path.name != main_thread]
    if {(path / "comm").read_text().strip() for path in threads} - _THREADS_THAT_KNOW_OF_FORKS:
        return False
    loaded = Path("/proc/self/maps").read_text(errors="replace")
    return not any(driver in loaded for driver in _DRIVERS)


def _id_of_a_fork() -> bytes:
    """Return a random id as a fork of this process draws it."""
    from ray import WorkerID

    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, WorkerID.from_random().binary())
        finally:
            os._exit(0)
    os.close(write)
    drawn = os.read(read, 64)  # nothing if it failed, as the other one's then
    os.close(read)
    os.waitpid(pid, 0)
    return drawn
