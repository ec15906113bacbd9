"""A group joins: it copies the states while the others train on, and changes no result."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.joins import Joined, train_with_a_join
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

STEPS, JOIN_AFTER, ARRIVE_AFTER = 30, 2, 3
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
    computing_s: float = 0.0,
    never_full: bool = False,
    arrive_after: int = ARRIVE_AFTER,
    **changes: Any,
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
    times = (compiles_s, silence_s, snapshot_s, computing_s, never_full)
    results = pool.run(train_with_a_join, spec, groups, size, *join_at, begins_run, *times)
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


def reaches_of(workers: list[Joined]) -> list[str]:
    """Whom the second hops of the steps from the switch on reached, by all workers alike."""
    num_steps = STEPS - SWITCH
    assert len({tuple(worker.reaches[-num_steps:]) for worker in workers}) == 1
    return workers[0].reaches[-num_steps:]


def test_the_gradient_is_summed_up_without_who_listens_until_the_last_alone_is_missing(
    pool: WorkerPool, text: str
) -> None:
    # Nothing piles up: a step leaves the links the time for a gradient.
    settings: dict[str, Any] = {
        "computing_s": 0.02,
        "never_full": True,
        "training__gradient_clipping": 0.5,
    }
    workers, gold = join(pool, text, (2, 3), 2, **settings)
    reaches = reaches_of(workers)
    without = reaches.index("WITH_LISTENERS")
    assert without >= ARRIVE_AFTER
    with_it = reaches.count("WITH_LISTENERS")
    assert reaches == ["WITHOUT_LISTENERS"] * without + ["WITH_LISTENERS"] * with_it + ["ALL"] * (
        STEPS - SWITCH - without - with_it
    )
    assert with_it <= 2
    for rank in range(2):
        members, newcomer = workers[rank:4:2], workers[4 + rank]
        whole = members[0].reductions[0]
        assert whole > 0
        assert [worker.reductions for worker in members] == [[whole] * STEPS] * 2
        assert newcomer.reductions == [0] * without + [whole] * (STEPS - SWITCH - without)
        # It clips by the norm of a gradient that it has not got yet.
        assert newcomer.norms == members[0].norms[SWITCH:]
        assert max(newcomer.norms) > 0.5
        assert len({worker.digest for worker in (*members, newcomer)}) == 1
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)


def test_who_listens_takes_part_in_the_second_hop_when_gradients_pile_up(
    pool: WorkerPool, text: str
) -> None:
    # Nothing of the states arrives in twelve steps, so the first gradient is too much already.
    workers, gold = join(pool, text, (2, 3), 1, arrive_after=12)
    reaches = reaches_of(workers)
    assert reaches[:2] == ["WITHOUT_LISTENERS"] * 2
    assert reaches[2:12] == ["WITH_LISTENERS"] * 10
    assert reaches[-1] == "ALL"
    assert "WITHOUT_LISTENERS" not in reaches[2:]
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)
    assert len({worker.digest for worker in workers}) == 1


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
    assert reaches_of(workers)[-1] == "ALL"
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
    workers, gold = join(pool, text, (1, 2), 2, engine={"compile": True})
    for worker in workers:
        assert worker.losses == pytest.approx(gold[-len(worker.losses) :], rel=1e-10)
    before = workers[0].graphs[0]
    for worker in workers[2:]:
        ready, end = worker.graphs
        assert before < ready == end, "its peers waited for a compilation"


def test_a_join_changes_no_bit_where_determinism_is_bitwise(pool: WorkerPool, text: str) -> None:
    changes: dict[str, Any] = {
        "training__determinism": "bitwise",
        "training__precision": "fp32",
    }
    workers, _ = join(pool, text, (2, 3), 2, **changes)
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
