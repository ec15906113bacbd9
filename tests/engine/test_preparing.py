"""The next generation's connections are made while the present one trains."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Event, current_thread
from weakref import finalize

import pytest
import torch

from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.store import StoreHost, host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.preparing import Preparation, Preparations
from mics_core.errors import ReplicationError
from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.switching import HEARD_AT, train_through_an_announcement
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4
STEPS = 6
SOON_S = 5.0


@pytest.mark.parametrize("size", [1, 2])
def test_a_generation_that_was_announced_is_connected_before_its_boundary(
    pool: WorkerPool, text: str, size: int
) -> None:
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * size,
        training__steps=STEPS,
        groups__wanted=2,
    )
    results = pool.run(train_through_an_announcement, spec, 2, size)
    workers = [result for result in results if result is not None]
    gold = train_in_one_process(spec).losses
    assert len(workers) == 2 * size
    for worker in workers:
        # It is pending only once connections stand, so it was not the boundary that made them.
        assert worker.generations == sorted(worker.generations)
        assert set(worker.generations) == {1, 2}
        (first, at_start), (second, committed) = worker.connects
        assert (first, at_start, second) == (1, 0, 2)
        assert HEARD_AT <= committed <= worker.generations.index(2)
        assert worker.losses == pytest.approx(gold, rel=1e-5)


@pytest.fixture
def store() -> StoreHost:
    return host_store("127.0.0.1")


def prepare(
    store: StoreHost,
    rank: int,
    superseded: Event | None = None,
    newcomers: tuple[int, ...] = (),
) -> Preparation:
    address = StoreAddress("127.0.0.1", store.port)
    plan = GenerationPlan(5, (0, 1), address, "test", newcomers=newcomers)
    return Preparation(
        plan,
        Member(generation=5, replication_index=0, rank=rank, size=2),
        superseded=superseded.is_set if superseded is not None else lambda: False,
        timeout_s=30.0,
    )


def connected(store: StoreHost, newcomers: tuple[int, ...] = ()) -> list[ReplicationGroup]:
    preparations = [prepare(store, rank, newcomers=newcomers) for rank in range(2)]
    return [preparation.take() for preparation in preparations]


def never() -> bool:
    return False


def test_connections_are_not_entered_before_all_are_at_the_boundary(store: StoreHost) -> None:
    groups = connected(store)
    with ThreadPoolExecutor(2) as threads:
        early = threads.submit(groups[0].assemble, never)
        with pytest.raises(TimeoutError):
            early.result(0.6)
        groups[1].assemble(never)
        early.result(SOON_S)
    assert ask(groups) == [[[0.0], [1.0]]] * 2
    close(groups)


def ask(groups: list[ReplicationGroup]) -> list[list[list[float]]]:
    """Have each member say its rank; return what each has heard."""
    with ThreadPoolExecutor(len(groups)) as threads:
        answers = [threads.submit(group.gather_doubles, [float(group.rank)]) for group in groups]
        return [answer.result(SOON_S) for answer in answers]


def close(groups: list[ReplicationGroup]) -> None:
    for group in groups:
        group.close()


def test_assembling_ends_when_a_newer_generation_is_announced(store: StoreHost) -> None:
    groups = connected(store)
    superseded = Event()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(groups[0].assemble, superseded.is_set)
        superseded.set()
        with pytest.raises(ReplicationError, match="The assembling of generation 5 was superseded"):
            waiting.result(SOON_S)
    close(groups)


def test_connections_for_the_copy_of_a_newcomer_are_made_ahead(store: StoreHost) -> None:
    first, second = connected(store, newcomers=(1,))
    store.close()  # nobody can meet any more
    sender, receiver = first.open_copies(never), second.open_copies(never)
    values, received = torch.arange(5.0), torch.empty(5)
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(sender.send, values, [1])
        receiver.receive([(received, 0)])
        sent.result(SOON_S)
    assert received.tolist() == values.tolist()
    sender.close()
    receiver.close()
    close([first, second])


def test_connections_for_a_copy_that_nobody_needs_are_closed_with_the_group(
    store: StoreHost,
) -> None:
    groups = connected(store, newcomers=(1,))
    gone = [Event() for _ in groups]
    for group, event in zip(groups, gone, strict=True):
        assert group._copies is not None
        finalize(group._copies, event.set)
    close(groups)
    assert all(event.wait(SOON_S) for event in gone)


def test_what_is_dropped_is_closed(store: StoreHost) -> None:
    first, second = prepare(store, 0), prepare(store, 1)
    group = second.take()
    first.drop()
    with pytest.raises(ReplicationError, match="of generation 5: "):
        group.gather_doubles([1.0])


def test_what_is_dropped_before_it_connects_waits_for_nobody(store: StoreHost) -> None:
    alone = prepare(store, 0)
    alone.drop()
    with pytest.raises(ReplicationError, match="Generation 5 was superseded"):
        alone.take()


def test_a_newer_generation_stays_prepared_while_an_older_one_is_entered() -> None:
    stores = {number: host_store("127.0.0.1") for number in (5, 6)}
    plans = {
        number: GenerationPlan(number, (0, 1), StoreAddress("127.0.0.1", store.port), "test")
        for number, store in stores.items()
    }

    def build(plan: GenerationPlan, position: int) -> Preparation:
        member = Member(plan.number, replication_index=0, rank=position, size=2)
        return Preparation(plan, member, superseded=never, timeout_s=SOON_S)

    workers = [Preparations(build) for _ in range(2)]
    for rank, worker in enumerate(workers):
        worker.begin(plans[6], rank)
    # Each has connected: the store has their addresses, and takes no others.
    newer = [worker._begun[6] for worker in workers]
    assert all(preparation._connected.exception(SOON_S) is None for preparation in newer)
    for number in (5, 6):
        taken = [worker.take(plans[number], rank) for rank, worker in enumerate(workers)]
        groups = [preparation.take() for preparation in taken]
        assert ask(groups) == [[[0.0], [1.0]]] * 2
        close(groups)


def test_an_older_generation_is_dropped_when_a_newer_one_is_prepared(store: StoreHost) -> None:
    address = StoreAddress("127.0.0.1", store.port)
    begun = {}

    def build(plan: GenerationPlan, position: int) -> Preparation:
        member = Member(plan.number, replication_index=0, rank=position, size=2)
        begun[plan.number] = Preparation(plan, member, superseded=never, timeout_s=30.0)
        return begun[plan.number]

    worker = Preparations(build)
    worker.begin(GenerationPlan(5, (0, 1), address, "test"), 0)
    worker.begin(GenerationPlan(6, (0, 1), address, "test"), 0)
    with pytest.raises(ReplicationError, match="Generation 5 was superseded"):
        begun[5].take()
    worker.drop()
    with pytest.raises(ReplicationError, match="Generation 6 was superseded"):
        begun[6].take()


def test_connecting_ends_when_a_newer_generation_is_announced(store: StoreHost) -> None:
    superseded = Event()
    alone = prepare(store, 0, superseded)
    superseded.set()
    with pytest.raises(ReplicationError, match="Generation 5 was superseded"):
        alone.take()


def test_no_thread_that_trains_destroys_the_connections_of_a_closed_generation(
    store: StoreHost,
) -> None:
    groups = connected(store)
    with ThreadPoolExecutor(2) as threads:
        copies = list(threads.map(lambda group: group.open_copies(never), groups))
    destroyers: Queue[str] = Queue()
    rings = [group._ring for group in groups]
    connections = [*(ring.whole for ring in rings if ring), *(copy._connections for copy in copies)]
    number = len(connections)
    for each in connections:
        finalize(each.group, lambda: destroyers.put(current_thread().name))
    close(groups)
    for copy in copies:
        copy.close()
    # Those who closed them are still there, as they are until the next generation is entered.
    assert [destroyers.get(timeout=SOON_S) for _ in range(number)] == ["closing"] * 4
    assert len(groups) == len(copies) == 2
