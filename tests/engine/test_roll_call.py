"""A worker that is lost in the middle of a collective is named by those who are left."""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from multiprocessing.connection import wait
from operator import eq
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from torch.utils._pytree import tree_map

from mics_core.comm import partition, roll_call
from mics_core.comm.roll_call import Answers, RollCall, place_elsewhere
from mics_core.comm.store import MeetingStore, host_store
from mics_core.engine.membership import StaticMembership
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.spec import JobSpec
from tests.comm.members import MemberProcess, Things, member_processes
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups

START_S = 180.0
# A collective without a sign of the loss would wait for longer.
SOON_S = 60.0
ANSWER_S = 1.0
"""How long the dead are waited for, half as long as in a run: everybody here asks in turn."""


@dataclass(frozen=True, slots=True)
class Death:
    """Where a worker dies: as it comes to a collective.

    Args:
        place: Its rank in the world.
        owner: Who has the collective, as `pkgutil.resolve_name` takes it.
        name: The collective.
        call: How many times the worker has been through it.
        counts: Which calls count, by their first argument.
        steps: Steps of the run.
    """

    place: int
    owner: str
    name: str
    call: int
    counts: Callable[[Any], bool] | None = None
    steps: int = 50


UNITS, PARTITION = "mics_core.comm.units", "mics_core.comm.partition:PartitionGroup"
REPLICATION = "mics_core.comm.replication:ReplicationGroup"
CHECKPOINTER = "mics_core.engine.checkpoint:Checkpointer"
GATHER, SCATTER = "all-gather of unit", "reduce-scatter of unit"
BETWEEN_NODES = 1
VOTE = "exchange of the step's summary"


def is_vote(values: Any) -> bool:
    """Whether an exchange of the partition group is the vote; other exchanges are one number."""
    return len(values) > 4


def join_world(things: Things, place: int, port: int, size: int) -> None:
    # The store lives outside the world, as it does where a launcher keeps it.
    store = things["store"] = MeetingStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=place, world_size=size)


def train_until(
    things: Things,
    place: int,
    spec: JobSpec,
    layout: tuple[int, int, int],
    strategy: Strategy | None,
    death: Death,
) -> tuple[str, list[str]]:
    """Train until a worker is lost. Return how that ended it, and what broke across groups."""
    owner = pkgutil.resolve_name(death.owner)
    original, calls = getattr(owner, death.name), count()
    broken: list[str] = []

    def perhaps_die(*arguments: Any, **options: Any) -> Any:
        is_counted = death.counts is None or death.counts(arguments[1])
        if place == death.place and is_counted and next(calls) == death.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    def hear(_: Any, generation: int, step: int, error: str, *, has_state: bool) -> None:
        broken.append(f"step {step}: {error}")

    with (
        mock.patch.object(owner, death.name, perhaps_die),
        mock.patch.object(StaticMembership, "broken", hear),
        mock.patch.object(dist, "barrier"),  # nobody waits for one who is lost
        mock.patch.object(partition, "_ANSWER_S", ANSWER_S),
    ):
        try:
            train_over_groups(spec, *layout, strategy)
        except Exception as error:
            return f"{type(error).__name__}: {error}", broken
    raise AssertionError("nobody was lost")


def lose_one(
    path: Path, layout: tuple[int, int, int], strategy: Strategy | None, death: Death
) -> dict[int, tuple[str, list[str]]]:
    """Train on a layout until a worker has died. Return what the others say, the first one first.

    Who sees its connection break says at once who is missing, and ends, as a failed worker does;
    that breaks the connections of those who still wait in the collective.
    """
    path.write_bytes(Path(socket.__file__).read_bytes())
    num_groups, size, _ = layout
    spec = small_job(
        str(path),
        partition_size=size,
        training__steps=death.steps,
        groups__wanted=num_groups,
        checkpoint={"directory": str(path.parent / "checkpoints"), "interval_steps": 50},
    )
    store = host_store("127.0.0.1")
    said: dict[int, tuple[str, list[str]]] = {}
    with member_processes(num_groups * size) as members:
        for place, member in enumerate(members):
            member.begin(join_world, place, store.port, len(members))
        for member in members:
            assert member.answer() is None
        for place, member in enumerate(members):
            member.begin(train_until, place, spec, layout, strategy, death)
        assert wait([members[death.place].sentinel], START_S), "the victim still lives"
        waiting = {place: one for place, one in enumerate(members) if place != death.place}
        while waiting:
            place = first_to_answer(waiting)
            answer = waiting[place].answer()
            waiting.pop(place).kill()
            assert isinstance(answer, tuple), answer
            said[place] = answer
    return said


def first_to_answer(waiting: dict[int, MemberProcess]) -> int:
    ready = wait([member.pipe for member in waiting.values()], SOON_S)
    assert ready, f"ranks {[*waiting]} have not noticed that somebody is gone"
    return next(place for place, member in waiting.items() if member.pipe in ready)


# Step 0 has 15 gathers of each kind, 5 in each of its three micro-batches, 9 scatters and one vote.
# The victims die where everybody waits for that collective and for nothing else: in a backward, and
# after the last.
STAGED = default_strategy(4, 2)
INSIDE_A_GROUP = {
    "gather": (Strategy(), Death(2, UNITS, "gather_flat", 18), GATHER),
    "gather between nodes": (STAGED, Death(0, UNITS, "gather_column", 18), GATHER),
    "gather inside a node": (STAGED, Death(3, UNITS, "gather_rows", 18), GATHER),
    "scatter inside a node": (STAGED, Death(1, UNITS, "scatter_rows", 16), SCATTER),
    "scatter around the ring": (Strategy(), Death(1, UNITS, "scatter_flat", 16), SCATTER),
    "scatter between nodes": (STAGED, Death(2, UNITS, "scatter_columns", 16), SCATTER),
    "vote": (STAGED, Death(1, PARTITION, "gather_doubles", 1, is_vote), VOTE),
    "end of a checkpoint": (Strategy(), Death(2, CHECKPOINTER, "finish", 0, steps=1), VOTE),
}


@pytest.mark.parametrize("name", INSIDE_A_GROUP)
def test_a_worker_lost_in_a_collective_is_named_with_group_and_step(
    tmp_path: Path, name: str
) -> None:
    strategy, death, what = INSIDE_A_GROUP[name]
    said = lose_one(tmp_path / "text.txt", (1, 4, 2), strategy, death)
    for place, (text, _) in said.items():
        assert text.startswith(
            f"GroupFailedError: Partition group 0 broke at step 1 on rank {place}: the "
        ), text
    first = next(iter(said.values()))[0]
    assert f"(missing ranks [{death.place}])" in first
    assert any(f"the {what}" in text for text, _ in said.values()), said


def test_a_worker_lost_in_the_second_hop_is_named_by_its_group_and_breaks_the_others_step(
    tmp_path: Path,
) -> None:
    # Two groups on each of two nodes, so that the second hop has stages: inside, between, inside.
    death = Death(1, REPLICATION, "run_stage", 1, partial(eq, BETWEEN_NODES))
    said = lose_one(tmp_path / "text.txt", (4, 2, 4), None, death)
    mate = said.pop(0)[0]
    assert mate.startswith("GroupFailedError: Partition group 0 broke at step 1 on rank 0: "), mate
    assert f"the {VOTE} broke" in mate
    assert mate.endswith(
        "(missing ranks [1]) The missing workers' logs say why; the group is replaced."
    )
    heard = [one for _, broken in said.values() for one in broken]
    assert all(one.startswith("step 1: ") for one in heard), heard
    # The gradient's all-reduce, or the gathering of the summaries that runs beside it.
    assert any(" broke in replication group 1 of generation 1: " in one for one in heard), said


class BusyStore:
    """A store on a busy machine, which ends each short wait; ranks 1 and 2 have answered."""

    def clone(self) -> BusyStore:
        return self

    def set(self, key: str, value: str) -> None:
        pass

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        raise dist.DistStoreError("nothing so soon")

    def check(self, keys: list[str]) -> bool:
        return keys != ["here/0"]

    def get(self, key: str) -> bytes:
        return b"waits"


def test_who_has_answered_is_not_missing_however_long_the_first_was_waited_for() -> None:
    with mock.patch.object(roll_call, "PrefixStore", lambda _, store: store):
        asks = RollCall(BusyStore(), "group", 1, 3)
    assert asks.hold(0.0) == Answers((0,), {})


def test_who_is_in_the_users_code_is_named_unless_somebody_is_missing() -> None:
    found: list[str] = []
    # torch calls back, on behalf of this function.
    tree_map(lambda _: found.append(place_elsewhere(sys._getframe(1))), [0])
    name = "test_who_is_in_the_users_code_is_named_unless_somebody_is_missing"
    assert found[0].startswith(f"{name} ({__file__}:")
    assert str(Answers((), {1: found[0]})) == f"all ranks answer; rank 1 is in {found[0]}"
    assert str(Answers((2,), {1: found[0]})) == "missing ranks [2]"
