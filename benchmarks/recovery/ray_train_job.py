"""Ray Train's elastic training, as its users write it: FSDP2 over all workers, checkpoints by DCP.

    python -m benchmarks.recovery.ray_train_job ADDRESS FOLDER TOKENS FORWARD_S

runs on the cluster at ADDRESS until it is ended, and its workers write their steps to FOLDER/steps.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from benchmarks.harness.site import Site
from benchmarks.network.systems import fsdp2
from benchmarks.network.systems.plain import PlainTraining
from benchmarks.recovery.ray_train import CHECKPOINT_EVERY, RESIZE_INTERVAL_S, STEPS
from benchmarks.recovery.setting import (
    GLOBAL_BATCH_SIZE,
    NUM_GROUPS,
    PARTITION_SIZE,
    build_spec,
)
from benchmarks.recovery.steps import StepWriter
from mics_core.engine.allocator import keep_freed_memory

_ROOT = Path(__file__).resolve().parents[2]


def main(address: str, folder: Path, tokens: Path, forward_s: float) -> None:
    """Train until somebody ends this process."""
    ray.init(
        address=address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}},
    )
    TorchTrainer(
        _train,
        train_loop_config={
            "folder": str(folder / STEPS),
            "tokens": str(tokens),
            "forward_s": forward_s,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(PARTITION_SIZE, (NUM_GROUPS + 1) * PARTITION_SIZE),
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        ),
        run_config=ray.train.RunConfig(
            name="ray-train",
            storage_path=str(folder / "storage"),
            failure_config=ray.train.FailureConfig(max_failures=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


def _train(config: dict[str, Any]) -> None:
    """Train on one worker, from the last reported checkpoint on."""
    torch.set_num_threads(1)
    keep_freed_memory()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    training = _build(Path(config["tokens"]), config["forward_s"], rank, world_size)
    step = _restore(training)
    generation = _agree_on_a_generation()
    node = ray.get_runtime_context().get_node_id()
    writer = StepWriter(Path(config["folder"]), node, rank)
    while True:
        training.step(step)
        writer.write(generation=generation, step=step, num_workers=world_size)
        step += 1
        if step % CHECKPOINT_EVERY == 0:
            _report(training, step)


def _build(tokens: Path, forward_s: float, rank: int, world_size: int) -> PlainTraining:
    # Ray Train takes any number of workers; where the batch cannot be divided, it is rounded up.
    batch_size = -(-GLOBAL_BATCH_SIZE // world_size) * world_size
    site = Site(rank, ("node",) * world_size, "")
    return fsdp2.build("fsdp2 full", build_spec(tokens, forward_s, batch_size), site)


def _agree_on_a_generation() -> int:
    """Return a number that is the same on all workers, and larger than that of earlier ones."""
    generation = torch.tensor([time.time_ns()])
    distributed.broadcast(generation, src=0)
    return int(generation.item())


def _restore(training: PlainTraining) -> int:
    """Load the last reported checkpoint, if there is one; return the step to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    model, optimizer = get_state_dict(training.model, training.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "step": 0}
    with checkpoint.as_directory() as folder:
        dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        training.model,
        training.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
    )
    step: int = state["step"]
    return step


def _report(training: PlainTraining, step: int) -> None:
    """Save all shards and report them; every worker must call it."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    with tempfile.TemporaryDirectory() as folder:
        dcp.save({"model": model, "optimizer": optimizer, "step": step}, checkpoint_id=folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
