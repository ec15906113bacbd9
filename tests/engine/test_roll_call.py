"""A worker that is lost in the middle of a collective is named by those who are left."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from torch.utils._pytree import tree_map

from mics_core.comm import units as unit_collectives
from mics_core.comm.roll_call import Answers, place_elsewhere
from mics_core.comm.store import MeetingStore, host_store
from mics_core.engine.checkpoint import Checkpointer
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.spec import JobSpec
from tests.comm.members import MemberProcess, Things, member_processes
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups

SIZE = 4
START_S = 180.0
# A collective without a sign of the loss would wait for longer.
SOON_S = 60.0
FINISH = "finish"


@pytest.fixture
def members() -> Iterator[list[MemberProcess]]:
    with member_processes(SIZE) as processes:
        yield processes


def join_world(things: Things, place: int, port: int) -> None:
    # The store lives outside the world, as it does where a launcher keeps it.
    store = things["store"] = MeetingStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=place, world_size=SIZE)


def train_until(
    things: Things,
    place: int,
    spec: JobSpec,
    strategy: Strategy,
    function: str,
    victim: int,
    call: int,
) -> str:
    """Train; `victim` dies at its `call`-th use of a function. Return how it broke."""
    owner = Checkpointer if function == FINISH else unit_collectives
    original, calls = getattr(owner, function), iter(range(1_000_000))

    def perhaps_die(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call and place == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    with (
        mock.patch.object(owner, function, perhaps_die),
        mock.patch.object(dist, "barrier"),  # nobody waits for one who is lost
    ):
        try:
            train_over_groups(spec, 1, SIZE, 2, strategy)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError("nobody was lost")


@pytest.mark.parametrize(
    ("strategy", "function", "call", "what"),
    [
        (Strategy(), "gather_flat", 16, "all-gather of unit"),
        (default_strategy(4, 2), "scatter_columns", 16, "reduce-scatter of unit"),
        (Strategy(), FINISH, 0, "at step 1 "),
    ],
    ids=["gather", "scatter between nodes", "the end of a checkpoint"],
)
def test_a_lost_worker_is_named_with_group_and_step(
    members: list[MemberProcess],
    tmp_path: Path,
    strategy: Strategy,
    function: str,
    call: int,
    what: str,
) -> None:
    victim = 2
    path = tmp_path / "text.txt"
    path.write_bytes(Path(socket.__file__).read_bytes())
    spec = small_job(
        str(path),
        partition_size=SIZE,
        training__steps=1 if function == FINISH else 50,
        checkpoint={"directory": str(tmp_path / "checkpoints"), "interval_steps": 50},
    )
    store = host_store("127.0.0.1")
    for place, member in enumerate(members):
        member.begin(join_world, place, store.port)
    for member in members:
        assert member.answer() is None
    for place, member in enumerate(members):
        member.begin(train_until, place, spec, strategy, function, victim, call)
    assert wait([members[victim].sentinel], START_S), "the victim has not come to its end"
    # Who sees its connection break says at once who is missing, and ends, as a failed worker does;
    # that breaks the connections of those who still wait in the collective.
    waiting = {place: member for place, member in enumerate(members) if place != victim}
    texts: list[str] = []
    while waiting:
        place = first_to_answer(waiting)
        answer = waiting[place].answer()
        waiting.pop(place).kill()
        assert isinstance(answer, str), answer
        assert answer.startswith("GroupFailedError: Partition group 0 broke at step "), answer
        assert f" on rank {place}: the " in answer
        texts.append(answer)
    assert f"(missing ranks [{victim}])" in texts[0]
    assert any(what in text for text in texts)


def first_to_answer(waiting: dict[int, MemberProcess]) -> int:
    ready = wait([member.pipe for member in waiting.values()], SOON_S)
    assert ready, f"ranks {[*waiting]} have not noticed that {SIZE - len(waiting)} are gone"
    return next(place for place, member in waiting.items() if member.pipe in ready)


def test_who_is_in_the_users_code_is_named_unless_somebody_is_missing() -> None:
    found: list[str] = []
    # torch calls back, on behalf of this function.
    tree_map(lambda _: found.append(place_elsewhere(sys._getframe(1))), [0])
    name = "test_who_is_in_the_users_code_is_named_unless_somebody_is_missing"
    assert found[0].startswith(f"{name} ({__file__}:")
    assert str(Answers((), {1: found[0]})) == f"all ranks answer; rank 1 is in {found[0]}"
    assert str(Answers((2,), {1: found[0]})) == "missing ranks [2]"
