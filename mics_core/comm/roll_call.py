"""Finds out who is missing after a collective of a partition group broke.

gloo's error names an address at best, and only a lost worker's neighbours have one: the others wait
on in the collective. So each worker has a thread that waits for an alarm at the store of its world,
over a connection of its own. Whoever sees a collective break rings it; the threads of all who still
live answer, also where their workers wait. Who has not answered after a while is missing. Who
answers but is in somebody else's code, such as a data source that does not return, says so: that is
whom the others wait for.
"""

from __future__ import annotations

import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread, get_ident
from time import monotonic
from types import FrameType
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import DistStoreError

__all__ = ["Answers", "RollCall", "place_elsewhere"]

_ALARM = "alarm"
_A_WHILE = timedelta(hours=1)
_WAITS = "waits"
_OURS = ("mics_core.comm", "mics_core.engine")
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of the workers of a partition group.

    Args:
        missing: Ranks that did not answer.
        elsewhere: Where in somebody else's code those ranks are that wait for no collective.
    """

    missing: tuple[int, ...]
    elsewhere: dict[int, str]

    def __str__(self) -> str:
        if self.missing:
            return f"missing ranks {[*self.missing]}"  # the others may be anywhere
        busy = [f"rank {rank} is in {where}" for rank, where in self.elsewhere.items()]
        return "; ".join(["all ranks answer", *busy])


class RollCall:
    """One worker's end of the roll call of its partition group.

    The thread that trains must build it.

    Args:
        store: The store of the group's world (torch's stubs leave out that it can be cloned).
        name: Tells the group from others of the same world.
        rank: This worker's rank in the group.
        size: Workers of the group.
    """

    def __init__(self, store: Any, name: str, rank: int, size: int):
        self._rank = rank
        self._size = size
        self._trains = get_ident()
        prefix = f"roll-call/{name}"
        self._caller = PrefixStore(prefix, store.clone())
        self._listener = PrefixStore(prefix, store.clone())
        if size > 1:
            Thread(target=self._listen, name="roll-call", daemon=True).start()

    def hold(self, wait_s: float) -> Answers:
        """Ring the alarm and return who answers within `wait_s` seconds, and what."""
        deadline = monotonic() + wait_s
        missing, elsewhere = [], {}
        try:
            self._caller.set(_ALARM, "rung")
        except RuntimeError:
            return Answers((0,), {})  # the world's rank 0 keeps the store
        for rank in range(self._size):
            if rank == self._rank:
                continue  # it asks
            answer = self._answer_of(rank, deadline)
            if answer is None:
                missing.append(rank)
            elif answer != _WAITS:
                elsewhere[rank] = answer
        return Answers(tuple(missing), elsewhere)

    def _answer_of(self, rank: int, deadline: float) -> str | None:
        """Return a rank's answer, or None if there is none when the time is over."""
        key = f"here/{rank}"
        try:
            if (left := deadline - monotonic()) > 0:
                with suppress(DistStoreError):
                    self._caller.wait([key], timedelta(seconds=left))
            # The first who is missing takes all the time. The others have answered meanwhile, and a
            # short wait could end before a busy machine has said so.
            return self._caller.get(key).decode() if self._caller.check([key]) else None
        except RuntimeError:
            return None

    def _listen(self) -> None:
        while True:
            try:
                self._listener.wait([_ALARM], _A_WHILE)
                where = place_elsewhere(sys._current_frames().get(self._trains))
                self._listener.set(f"here/{self._rank}", where or _WAITS)
            except RuntimeError as error:
                if "timed out" in str(error).lower() or "timeout" in str(error).lower():
                    continue  # a quiet hour
            return  # answered, or the store is gone with its host


def place_elsewhere(frame: FrameType | None) -> str:
    """Return where a thread is, if neither our engine nor our collectives have it: else nothing.

    The standard library and torch work for somebody: whoever called them counts.
    """
    while frame is not None and _works_for_others(Path(frame.f_code.co_filename)):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__", "").startswith(_OURS):
        return ""
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _works_for_others(file: Path) -> bool:
    if file.is_relative_to(_TORCH):
        return True
    is_installed = {"site-packages", "dist-packages"} & set(file.parts)
    return file.is_relative_to(_STANDARD_LIBRARY) and not is_installed
