"""A group that was to begin the run comes when others have: its first weights count no more."""

from __future__ import annotations

from contextlib import suppress

import torch
import torch.distributed as dist

from mics_core.comm.store import host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job
from tests.engine.layouts import partition_group
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4


class Told(StaticMembership):
    """Keeps what its group says of a broken generation, after which there is no other."""

    has_state: bool | None = None

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        self.has_state = has_state


def come_alone(spec: JobSpec, begins_run: bool) -> tuple[int, bool | None] | None:
    """Enter a generation alone; return the steps done, and what was told if it broke."""
    device = torch.device("cpu")
    world = dist.get_world_size()
    partition = partition_group([[0], list(range(1, world))], ["node"] * world, device)
    if dist.get_rank() > 0:
        return None
    store = host_store("127.0.0.1")
    address = StoreAddress("127.0.0.1", store.port)
    membership = Told(GenerationPlan(1, (0,), address, "A test.", begins_run=begins_run), 0)
    with suppress(RuntimeError):  # there is no other plan after one that breaks
        train(
            lambda initialise: build_trainer(spec, partition, device, initialise=initialise),
            membership,
            begins_run=True,
        )
    return len(membership.commits), membership.has_state


def test_only_a_generation_that_begins_the_run_begins_with_first_weights(
    pool: WorkerPool, text: str
) -> None:
    spec = small_job(text, partition_size=1, training__steps=3)
    assert pool.run(come_alone, spec, True)[0] == (3, None)
    assert pool.run(come_alone, spec, False)[0] == (0, False)
