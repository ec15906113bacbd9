"""The memory model against what training really holds: every allocation of a run, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mics_core.comm.store import host_store
from mics_core.data.batches import Batch
from mics_core.data.order import micro_batches_of_group
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.ordered_hop import nodes_of
from mics_core.engine.state import state_tensors
from mics_core.engine.trainer import Trainer
from mics_core.planner.footprint import memory_of
from mics_core.planner.memory import Precision, logit_bytes
from mics_core.planner.ordering import most_nodes, sums_kept
from mics_core.planner.prediction import Layout
from mics_core.spec import JobSpec
from mics_core.spec.planning import shape_by_formula, workload_of
from tests.engine.jobs import small_job
from tests.engine.layouts import partition_group
from tests.engine.worker_pool import WorkerPool, running_pool

SHORT = {"family": "gpt2", "hidden_size": 128, "num_layers": 4, "num_heads": 4, "vocab_size": 4096}
WIDE = {"family": "gpt2", "hidden_size": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 20000}
BYTE_IDS = 257


def peak_of(run: Callable[[], object]) -> int:
    """Return the most bytes that tensors made in `run` took at once, on this thread."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = cast("Any", profiler).profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


# The loss.


class Head(nn.Module):
    """Logits of many words, and next to nothing else."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.embedding = nn.Embedding(BYTE_IDS, 16, dtype=dtype)
        self.projection = nn.Linear(16, 20_000, bias=False, dtype=dtype)
        self.projection.weight.requires_grad_(False)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.projection(self.embedding(input_ids)))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)],
)
def test_the_loss_takes_as_many_bytes_a_logit_as_the_planner_says(
    precision: Precision, dtype: torch.dtype
) -> None:
    ids = np.zeros((1, 64), np.int64)
    trainer = cast("Trainer", SimpleNamespace(model=Head(dtype), _device=torch.device("cpu")))

    def run() -> None:
        Trainer._loss(trainer, Batch(ids, ids, None, 64)).backward()  # type: ignore[no-untyped-call]

    run()
    measured = peak_of(run) / (64 * 20_000)
    assert measured == pytest.approx(logit_bytes(precision), rel=0.01)


# Whole steps of one worker; of several, threads of their own allocate too.


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(1) as pool:
        yield pool


def bytes_of_training(spec: JobSpec) -> int:
    """Train in this process; return the states' bytes with the most that came on top of them."""
    device = torch.device("cpu")
    partition = partition_group([[0]], ["node"], device)
    plan = GenerationPlan(
        1, (0,), StoreAddress("127.0.0.1", (store := host_store("127.0.0.1")).port), "test"
    )
    trainer = build_trainer(spec, partition, device)
    states = state_tensors(trainer.model, trainer.optimizer)
    held = sum(tensor.untyped_storage().nbytes() for tensor in states)
    held += trainer._units.gradients.flat.nbytes
    membership = StaticMembership(plan, 0)
    most = peak_of(lambda: train(lambda _: trainer, membership, begins_run=True))
    del store
    return held + most


@pytest.mark.parametrize(
    "changes",
    [
        {"model": SHORT},
        {"model": WIDE, "training__micro_batch_size": 2},
        {"model": SHORT, "training__precision": "bf16"},
        {"model": SHORT, "training__precision": "bf16", "training__sequence_length": 256},
        {"model": SHORT, "training__sequence_length": 256},
        {"model": SHORT, "training__precision": "fp64", "training__sequence_length": 256},
        {
            "model": SHORT,
            "training__sequence_length": 256,
            "training__activation_checkpointing": True,
        },
        {
            "model": SHORT,
            "training__determinism": "bitwise",
            "training__global_batch_size": 8,
        },
    ],
    ids=["root", "logits", "bf16", "bf16-long", "long", "fp64", "checkpointed", "bitwise"],
)
def test_the_memory_of_one_worker_is_what_it_holds_to_two_hundredths(
    pool: WorkerPool, tmp_path: Path, changes: dict[str, Any]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some bytes to train on, " * 2000)
    usual = {
        "training__steps": 2,
        "training__sequence_length": 32,
        "training__global_batch_size": 2,
        "training__optimizer": {"kind": "adamw", "learning_rate": 1e-3},
        "partition_size": 1,
    }
    spec = small_job(str(text), **(usual | changes))
    (measured,) = pool.run(bytes_of_training, spec)
    shape = shape_by_formula(spec, BYTE_IDS)
    assert shape is not None
    layout = Layout(
        1,
        1,
        spec.training.settled_micro_batch_size,
        is_checkpointed=spec.training.settled_activation_checkpointing,
    )
    modelled = memory_of(shape, layout, workload_of(spec), layout.span(1), "gloo")
    assert modelled.total == pytest.approx(measured, rel=0.02)


# The tree of `determinism: bitwise`.


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 7, 8, 12, 16, 31, 64, 100])
def test_the_planner_counts_the_sums_that_the_engine_keeps(num_micro_batches: int) -> None:
    for num_groups in range(1, num_micro_batches + 1):
        runs = [
            micro_batches_of_group(num_micro_batches, num_groups, group)
            for group in range(num_groups)
        ]
        nodes = max(len(nodes_of(run, num_micro_batches)) for run in runs)
        assert most_nodes(num_micro_batches, num_groups) == nodes
        kept = max(
            len(nodes_of(range(run.start, stop), num_micro_batches))
            for run in runs
            for stop in range(run.start, run.stop)
        )
        bound = sums_kept(num_micro_batches, num_groups)
        assert kept <= bound
        if num_groups == 1 or (num_micro_batches % num_groups == 0 and bound <= 1):
            assert kept == bound
