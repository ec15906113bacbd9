"""Entering a generation: meet its members, and see who holds the newest states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from mics_core.comm.replication import ReplicationGroup
from mics_core.engine.catch_up import CatchUp, most_kept_bytes
from mics_core.engine.copying import Incoming, Outgoing
from mics_core.engine.holding import Holding
from mics_core.engine.in_hand import as_doubles as in_hand_as_doubles
from mics_core.engine.in_hand import from_doubles
from mics_core.engine.preparing import Preparation
from mics_core.engine.same_data import as_doubles, check_same_data
from mics_core.engine.state import buffer_places, state_tensors
from mics_core.engine.trainer import Trainer
from mics_core.errors import DataError, PartitionBrokenError, ReplicationError

__all__ = ["Entry", "enter"]

_LEAST_SILENCE_S = 5.0
"""A busy machine may wake a process up late."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A generation that has been entered.

    Args:
        replication: The worker's replication group.
        position: Its partition group's place in the generation.
        steps: Steps committed in each group's states, by place; -1 if it holds none.
        active: Places of the groups that take micro-batches from the first step on.
        done: The micro-batches of the first step that each group has in hand, by place.
        copying: The copy of the states that goes on beside the steps, if there is one.
        held: What the worker has while it catches up with the others; none if it need not.
        connect_s: Seconds that it took to connect, as far as that was not done before, and to meet:
            the wait for members that come later is included.
    """

    replication: ReplicationGroup
    position: int
    steps: tuple[int, ...]
    active: tuple[int, ...]
    done: tuple[frozenset[int], ...]
    copying: Incoming | Outgoing | None
    held: Holding | None
    connect_s: float

    def close(self) -> None:
        """Drop all connections."""
        self.replication.close()
        if self.copying is not None:
            self.copying.close()


def enter(
    trainer: Trainer,
    preparation: Preparation,
    holding: Holding,
    *,
    superseded: Callable[[], bool],
    silence_s: float,
) -> Entry | str:
    """Enter a generation with its other members; all workers of all its groups must call it.

    Args:
        trainer: The trainer.
        preparation: The connections, which are taken.
        holding: What the worker has. A member that is behind is put to the step of the others, and
            holds no state of that step until it has caught up ([Note: joining without holding
            anyone up]); `Entry.held` says what it has meanwhile.
        superseded: Whether a newer generation has been announced.
        silence_s: Time limit of the exchange in which they compare what they hold: all are there.

    Returns:
        The generation, or why it could not be entered; the same kind on all workers of the group.

    Raises:
        DataError: This group has other data than the run.
    """
    partition = trainer.partition
    entry: Entry | None = None
    replication: ReplicationGroup | None = None
    error, step, begin = "", holding.step, perf_counter()
    try:
        replication = preparation.take()
        replication.assemble(superseded)
        connect_s = perf_counter() - begin
        replication.limit_collectives(max(silence_s, _LEAST_SILENCE_S))
        step, entry = _compare(trainer, replication, holding, superseded, connect_s)
    except ReplicationError as broken:
        error = str(broken)
    except DataError:
        _drop(entry, replication)  # this group fails, and the others need not wait for it
        raise
    # See [Note: agreement inside a partition group] in `mics_core.engine.loop`.
    try:
        failed = any(failed for (failed,) in partition.gather_doubles([float(bool(error))]))
    except PartitionBrokenError:
        # This group is lost, and its peers are to know it before it asks who is missing.
        _drop(entry, replication)
        raise
    if not failed:
        assert entry is not None
        if entry.position not in entry.active:
            holding.step, holding.has_state = step, False
        return entry
    _drop(entry, replication)
    trainer.begin_catching_up(None)  # nothing of the copy is in the place of what it holds
    return error or "Another worker of this partition group could not enter the generation."


def _drop(entry: Entry | None, replication: ReplicationGroup | None) -> None:
    if entry is not None:
        entry.close()
    elif replication is not None:
        replication.close()


def _compare(
    trainer: Trainer,
    replication: ReplicationGroup,
    holding: Holding,
    superseded: Callable[[], bool],
    connect_s: float,
) -> tuple[int, Entry]:
    """Find out who holds the newest states, and begin to copy them to all others."""
    position, partition = replication.rank, trainer.partition
    mine = float(holding.step) if holding.has_state else -1.0
    in_hand = in_hand_as_doubles(trainer.in_hand(holding.step), trainer.num_micro_batches)
    rows = replication.gather_doubles([mine, *as_doubles(trainer.data_order), *in_hand], superseded)
    steps = tuple(int(step) for step, *_ in rows)
    newest = max(steps)
    if newest < 0:
        raise ReplicationError(
            f"No member of generation {replication.member.generation} holds the model states."
        )
    sources = tuple(rank for rank, step in enumerate(steps) if step == newest)
    check_same_data(trainer.data_order, [row[1:3] for row in rows], position, sources[0])
    done = tuple(
        from_doubles(words) if step == newest else frozenset() for step, _, _, *words in rows
    )
    listeners = [rank for rank, step in enumerate(steps) if step != newest]
    copying: Incoming | Outgoing | None = None
    held: Holding | None = None
    if listeners:
        copies = replication.open_copies(superseded)
        states = state_tensors(trainer.model, trainer.optimizer)
        if position in sources:
            copying = Outgoing(
                states,
                copies,
                sources.index(position),
                len(sources),
                listeners,
                trainer.link_use,
                at_once=buffer_places(trainer.model),
            )
            trainer.wait_before_updates(copying.wait_until_taken)
        else:
            held = replace(holding)
            copying = Incoming(states, copies, sources, beside=held.has_state)
            most = most_kept_bytes(trainer.gradient_bytes, partition.nodes.count(partition.node))
            trainer.begin_catching_up(CatchUp(copying, newest, held, most))
    return newest, Entry(replication, position, steps, sources, done, copying, held, connect_s)
