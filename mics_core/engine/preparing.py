"""Connecting to the members of the next generation while the present one still trains.

[Note: the next generation's connections]
A generation is announced at some moment of a step, and entered one or two step boundaries later.
Its members connect in between, in the background, each as soon as it has heard: the connections
belong to nobody's step. They say nothing about entering. At the boundary each member tells the
store that it is there and waits for all others, and the first exchange follows. Who hears of the
generation at the boundary alone connects there, and a newcomer as soon as it is ready. If another
generation is announced meanwhile, what was connected is dropped. What a member has told a store
stands, though, so that it cannot connect to one generation twice: who still has to go through an
older generation keeps what it has begun of the newer one.

Where groups join, the connections for the copy of the model states are made in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event, Thread

from mics_core.comm.connecting import connect
from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.shared import SharedMemory
from mics_core.elastic.plan import GenerationPlan

__all__ = ["Preparation", "Preparations"]


class Preparation:
    """One worker's connections to its peers of a generation, begun at once.

    Args:
        plan: The generation, of which the worker's partition group is a member.
        member: The worker's place in it.
        superseded: Whether a newer generation has been announced.
        timeout_s: Time limit of connecting, and later of each collective.
        missing: Is told the groups that are waited for, here and later when all assemble.
        memory: What holds the gradient, if others on the node may read it.
    """

    def __init__(
        self,
        plan: GenerationPlan,
        member: Member,
        *,
        superseded: Callable[[], bool],
        timeout_s: float,
        missing: Callable[[tuple[int, ...]], None] | None = None,
        memory: SharedMemory | None = None,
    ):
        assert plan.store is not None
        self.number = plan.number
        self._address = plan.store
        self._member = member
        self._copies = bool(plan.newcomers)
        self._superseded = superseded
        self._timeout_s = timeout_s
        self._groups = plan.groups
        self._missing = missing
        self._memory = memory
        self._is_dropped = Event()
        self._connected: Future[ReplicationGroup] = Future()
        Thread(target=self._connect, name=f"generation-{plan.number}", daemon=True).start()

    def take(self) -> ReplicationGroup:
        """Wait for the connections; they are the caller's from now on.

        Raises:
            ReplicationError: The store or a member cannot be reached, or the generation is
                superseded.
        """
        return self._connected.result()

    def drop(self) -> None:
        """Connect no more, and close what is connected; `take` must not have been called."""
        self._is_dropped.set()
        self._connected.add_done_callback(_close)

    def _miss(self, places: tuple[int, ...]) -> None:
        if self._missing is not None:
            self._missing(tuple(self._groups[place] for place in places))

    def _connect(self) -> None:
        try:
            self._connected.set_result(
                connect(
                    self._address,
                    self._member,
                    superseded=lambda: self._is_dropped.is_set() or self._superseded(),
                    timeout_s=self._timeout_s,
                    copies=self._copies,
                    missing=self._miss,
                    memory=self._memory,
                )
            )
        except BaseException as error:
            self._connected.set_exception(error)


class Preparations:
    """One worker's connections to the generations that it has heard of and not entered yet.

    Args:
        build: Begins to connect to a generation, in which the group has this position.
    """

    def __init__(self, build: Callable[[GenerationPlan, int], Preparation]):
        self._build = build
        self._begun: dict[int, Preparation] = {}

    def begin(self, plan: GenerationPlan, position: int) -> None:
        """Begin to connect to a generation, unless that was done, and drop older ones."""
        for number in [number for number in self._begun if number < plan.number]:
            self._begun.pop(number).drop()
        if plan.number not in self._begun:
            self._begun[plan.number] = self._build(plan, position)

    def take(self, plan: GenerationPlan, position: int) -> Preparation:
        """Return the connections to a generation, which are the caller's: those begun, or new."""
        self.begin(plan, position)
        return self._begun.pop(plan.number)

    def drop(self) -> None:
        """Drop all."""
        for preparation in self._begun.values():
            preparation.drop()
        self._begun.clear()


def _close(connected: Future[ReplicationGroup]) -> None:
    if connected.exception() is None:
        connected.result().close()
