"""A group joins: it copies the states while the others train on, and changes no result."""

from __future__ import annotations

import pytest

from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.joins import WAITS_FOR, Joined, train_with_a_join
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 6
STEPS, JOIN_AFTER, ARRIVE_AFTER = 20, 2, 3
SWITCH = JOIN_AFTER + 1
"""The step that the second generation begins with: the one before carries the news of it."""
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}


def join(
    pool: WorkerPool,
    text: str,
    groups: tuple[int, int],
    size: int,
    *,
    begins_run: bool = False,
    compiles_s: float = 0.0,
    silence_s: float = 15.0,
    snapshot_s: float = 0.0,
    arrive_after: int = ARRIVE_AFTER,
    most_kept: int | None = None,
    **changes: object,
) -> tuple[list[Joined], list[float]]:
    """Return what the workers saw, by rank, and the losses of one process."""
    options = {"training__precision": "fp64", "training__optimizer": ADAMW, **changes}
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=6 * size,
        training__steps=STEPS,
        groups__wanted=groups[1],
        **options,
    )
    join_at = (JOIN_AFTER, arrive_after)
    times = (compiles_s, silence_s, snapshot_s)
    results = pool.run(
        train_with_a_join, spec, groups, size, *join_at, begins_run, *times, most_kept
    )
    return [result for result in results if result is not None], train_in_one_process(spec).losses


@pytest.mark.parametrize(
    ("groups", "size", "begins_run"),
    [((1, 2), 1, False), ((2, 3), 2, False), ((1, 3), 2, False), ((2, 3), 2, True)],
    ids=["1 and 1", "2 and 1, sharded", "1 and 2 at once", "one that holds older states"],
)
def test_members_train_on_while_a_newcomer_copies(
    pool: WorkerPool, text: str, groups: tuple[int, int], size: int, begins_run: bool
) -> None:
    before, after = groups
    workers, gold = join(pool, text, groups, size, begins_run=begins_run)
    members, newcomers = workers[: before * size], workers[before * size :]
    for worker in members:
        assert worker.losses == pytest.approx(gold, rel=1e-10)
        assert worker.entries == [(1, 0), (2, SWITCH)]
    first = STEPS - members[0].num_groups[::-1].index(before)
    # It heard at least so many steps before the copy arrived, and the members took all of them.
    assert SWITCH + ARRIVE_AFTER <= first < STEPS
    for worker in members:
        assert worker.num_groups == [before] * first + [after] * (STEPS - first)
    for worker in newcomers:
        assert worker.losses == pytest.approx(gold[SWITCH:], rel=1e-10)
        # It enters when it holds the states: its share of micro-batches begins with that step.
        assert worker.entries == [(2, first)]
    for rank in range(size):
        assert len({worker.digest for worker in workers[rank::size]}) == 1


def test_a_newcomers_first_share_of_a_step_may_take_long(pool: WorkerPool, text: str) -> None:
    # Compiling, say. The others' limit follows their own steps, which take milliseconds.
    workers, gold = join(pool, text, (2, 3), 1, compiles_s=3.0, silence_s=0.5)
    for worker in workers[:2]:
        assert worker.losses == pytest.approx(gold, rel=1e-10)
        assert worker.entries == [(1, 0), (2, SWITCH)]
        assert worker.num_groups[-1] == 3


def test_members_update_their_states_when_the_snapshot_of_them_is_taken(
    pool: WorkerPool, text: str
) -> None:
    # Their steps take milliseconds: each would change the states long before that.
    workers, gold = join(pool, text, (2, 3), 1, snapshot_s=0.02)
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)
    assert len({worker.digest for worker in workers}) == 1


@pytest.mark.parametrize(
    "engine",
    [{"offload_optimizer": True}, {"reshard": "never"}, {"reshard": "always"}],
    ids=lambda engine: " ".join(f"{key} {value}" for key, value in engine.items()),
)
def test_warming_up_leaves_no_trace_however_states_move(
    pool: WorkerPool, text: str, engine: dict[str, object]
) -> None:
    workers, gold = join(pool, text, (1, 2), 2, engine=engine)
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)
    for rank in range(2):
        assert len({worker.digest for worker in workers[rank::2]}) == 1


def test_a_newcomer_has_compiled_before_it_is_ready(pool: WorkerPool, text: str) -> None:
    compiles = {"engine": {"compile": True}}
    workers, gold = join(pool, text, (1, 2), 2, **compiles)
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)
    before = workers[0].graphs[0]
    for worker in workers[2:]:
        ready, end = worker.graphs
        assert before < ready == end, "its peers waited for a compilation"


def test_a_join_changes_no_bit_where_determinism_is_bitwise(pool: WorkerPool, text: str) -> None:
    changes = {"training__determinism": "bitwise", "training__precision": "fp32"}
    workers, _ = join(pool, text, (2, 3), 2, **changes)
    check_the_bits(pool, text, workers, changes)


def test_members_wait_for_a_copy_when_a_newcomer_may_keep_no_more_gradients(
    pool: WorkerPool, text: str
) -> None:
    changes = {"training__determinism": "bitwise", "training__precision": "fp32"}
    most = 6
    workers, _ = join(pool, text, (2, 3), 2, arrive_after=STEPS, most_kept=most, **changes)
    # They wait once, after the step with which it is full. In the next one it says that its copy is
    # there, and in the two that follow it applies four gradients and the rest.
    first = SWITCH + most + 3
    for worker in workers[:4]:
        assert worker.num_groups == [2] * first + [3] * (STEPS - first)
        assert worker.entries == [(1, 0), (2, SWITCH)]
    for worker in workers[4:]:
        assert worker.entries == [(2, first)]
    rounds = {worker.rounds for worker in workers}
    assert len(rounds) == 1, "all wait for as long"
    assert rounds.pop() >= WAITS_FOR
    check_the_bits(pool, text, workers, changes)


def check_the_bits(
    pool: WorkerPool, text: str, workers: list[Joined], changes: dict[str, str]
) -> None:
    """The states at the end are those of a run of one group of two that nobody joins."""
    spec = small_job(
        text,
        partition_size=2,
        training__global_batch_size=12,
        training__steps=STEPS,
        training__optimizer=ADAMW,
        **changes,
    )
    alone = pool.run(train_over_groups, spec, 1, 2)
    for rank in range(2):
        assert {worker.digest for worker in workers[rank::2]} == {alone[rank]["digest"]}
