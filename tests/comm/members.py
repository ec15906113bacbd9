"""Processes that are members of replication groups and do as they are told, one thing at a time.

Unlike `tests.engine.worker_pool` they share no default world, may be asked separately, and may be
killed while they are busy.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness.processes import process_context
from mics_core.errors import MicsError

_ANSWER_S = 60.0


class MemberProcess:
    """A process that calls the functions that it is sent; each gets its dictionary of things."""

    def __init__(self) -> None:
        context = process_context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Send a call; `answer` waits for its result."""
        self._pipe.send((function, arguments))

    def answer(self, timeout_s: float = _ANSWER_S) -> Any:
        """Return the result of the oldest call, a message that it sent, or the error it raised.

        Raises:
            TimeoutError: There is none within the limit.
        """
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"process {self.pid} has not answered within {timeout_s} s")
        return self._pipe.recv()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and return its result."""
        self.begin(function, *arguments)
        return self.answer()

    @property
    def pipe(self) -> Connection:
        """What the answers come through."""
        return self._pipe

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """What is ready, for `multiprocessing.connection.wait`, when the process has ended."""
        return self._process.sentinel

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """End the process as the loss of its machine would."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)

    def close(self) -> None:
        """End the process, whatever it does, and make sure that it has gone."""
        self._pipe.close()
        self._process.join(1)
        if self._process.is_alive():
            self.kill()
        assert not self._process.is_alive(), f"process {self.pid} is left over"


@contextmanager
def member_processes(number: int) -> Iterator[list[MemberProcess]]:
    """Run processes; none is left afterwards."""
    members = [MemberProcess() for _ in range(number)]
    try:
        yield members
    finally:
        for member in members:
            member.close()


def ask_all(
    members: list[MemberProcess], function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """Call a function with the place of each member; return the results by place."""
    for place, member in enumerate(members):
        member.begin(function, place, *arguments)
    return [member.answer() for member in members]


class Things(dict[str, Any]):
    """What a member process keeps between calls, and its pipe for messages on the way."""

    def __init__(self, pipe: Connection):
        super().__init__()
        self._pipe = pipe

    def say(self, message: Any) -> None:
        self._pipe.send(message)


def _serve(pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    things = Things(pipe)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = function(things, *arguments)
        except (MicsError, RuntimeError, AssertionError) as error:
            answer = error
        pipe.send(answer)
    os._exit(0)  # peers may be gone already; nothing here needs a clean end


def seconds_since(start: float) -> float:
    """Seconds on the clock that all processes of a machine share."""
    return time.monotonic() - start
