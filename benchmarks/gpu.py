"""Measures model FLOP/s utilisation on one GPU: `python -m benchmarks.gpu`.

GPT-2 medium in bf16 with compiled blocks, trained by plain PyTorch and by our engine (p = 1) in
turn, against the matrix-multiply rate measured on the same GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from benchmarks.harness.jobs import gpt2, training_job, write_tokens
from benchmarks.harness.losses import largest_difference
from benchmarks.harness.output import RESULTS, write_results
from mics_core.comm.connecting import connect
from mics_core.comm.partition import form_partition_group
from mics_core.comm.replication import Member
from mics_core.data.batches import build_batch
from mics_core.data.sources import build_samples
from mics_core.elastic.plan import StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, block_names, shard_model
from mics_core.engine.trainer import StepBroken
from mics_core.spec import JobSpec

SEQUENCE_LENGTH = 1024
LAYERS, WIDTH = 24, 1024
MODEL = gpt2(hidden_size=WIDTH, num_layers=LAYERS, num_heads=16, vocab_size=50304)
LOSS_TOLERANCE = 0.02
"""Of losses in bf16: plain PyTorch casts operation by operation, the engine whole units."""

StepFunction = Callable[[int], float]


def main() -> int:
    """Run the benchmark; return 1 if the losses of any step differ, else 0."""
    options = _parse()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        with tempfile.TemporaryDirectory(prefix="mics-bench-") as folder:
            return _compare(options, device, Path(folder))
    finally:
        dist.destroy_process_group()


def _compare(options: argparse.Namespace, device: torch.device, folder: Path) -> int:
    spec = _job(options, folder)
    peak = _matmul_flops_per_s(device)
    print(f"matrix-multiply peak: {peak / 1e12:.1f} TFLOP/s in bf16")
    systems: dict[str, StepFunction] = {
        "torch": _build_torch(spec, device),
        "mics p=1": _build_mics(spec, device),
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    losses: dict[str, list[float]] = {name: [] for name in systems}
    for index in range(options.warm_up + options.steps):
        for name, step in systems.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            losses[name].append(step(index))
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    tokens = options.batch * SEQUENCE_LENGTH
    flops = _flops_per_token(spec) * tokens
    rows: list[dict[str, Any]] = []
    for name, all_times in times.items():
        counted = all_times[options.warm_up :]
        rows.append(
            {
                "system": name,
                "step_s_median": median(counted),
                "step_s_min": min(counted),
                "step_s_max": max(counted),
                "tokens_per_s": tokens / median(counted),
                "model_flops_utilisation": flops / median(counted) / peak,
                "loss": losses[name][-1],
            }
        )
        print(
            f"{name}: {rows[-1]['step_s_median']:.4f} s a step,"
            f" {rows[-1]['model_flops_utilisation']:.1%} of the peak, loss {losses[name][-1]:.4f}"
        )
    ratio = rows[0]["step_s_median"] / rows[1]["step_s_median"]
    print(f"speed of mics p=1 to torch: {ratio:.3f}")
    write_results(
        options.output,
        rows,
        gpu=torch.cuda.get_device_name(device),
        cuda=torch.version.cuda,
        matmul_flops_per_s=peak,
        model=MODEL,
        batch=options.batch,
        speed_to_torch=ratio,
    )
    largest = largest_difference(losses["torch"], losses["mics p=1"])
    if not largest <= LOSS_TOLERANCE:
        print(f"LOSSES DISAGREE by {largest:.1%}")
        return 1
    return 0


def _job(options: argparse.Namespace, folder: Path) -> JobSpec:
    job = training_job(
        write_tokens(folder, 1 << 24),
        MODEL,
        global_batch_size=options.batch,
        sequence_length=SEQUENCE_LENGTH,
        micro_batch_size=options.batch,
        precision="bf16",
    )
    changes = {"partition_size": 1, "engine": {"compile": True}, "resources": {"gpus": 1}}
    return JobSpec.model_validate(job.model_dump() | changes)


def _build_torch(spec: JobSpec, device: torch.device) -> StepFunction:
    """Build plain PyTorch as its users write it: autocast, compiled blocks, fused AdamW."""
    model = build_meta_model(spec)
    shard_model(model, None, ShardingOptions(device, seed=spec.training.seed))
    for name in block_names(model):
        model.get_submodule(name).compile()
    constants = spec.training.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=constants.learning_rate,
        betas=constants.betas,
        eps=constants.eps,
        weight_decay=constants.weight_decay,
        fused=True,
    )
    samples, size = build_samples(spec), spec.training.global_batch_size

    def step(index: int) -> float:
        positions = range(index * size, (index + 1) * size)
        batch = build_batch(samples, positions, seed=spec.training.seed)
        labels = torch.from_numpy(batch.labels).to(device)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=torch.from_numpy(batch.input_ids).to(device)).logits
        loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _build_mics(spec: JobSpec, device: torch.device) -> StepFunction:
    partition = form_partition_group([[0]], ["local"], device)
    trainer = build_trainer(spec, partition, device)
    replication = connect(
        StoreAddress("127.0.0.1", 0),  # a group of one needs no store
        Member(generation=1, replication_index=0, rank=0, size=1),
        superseded=lambda: False,
        timeout_s=60.0,
    )

    def step(index: int) -> float:
        outcome = trainer.run_step(index, replication, 1)
        if isinstance(outcome, StepBroken):
            raise RuntimeError(outcome.error)
        return outcome.loss

    return step


def _flops_per_token(spec: JobSpec) -> float:
    """Return 6 N + 12 L h s, as Chowdhery et al. count ("PaLM", JMLR 2023, appendix B)."""
    num_parameters = sum(parameter.numel() for parameter in build_meta_model(spec).parameters())
    return 6 * num_parameters + 12 * LAYERS * WIDTH * SEQUENCE_LENGTH


def _matmul_flops_per_s(device: torch.device, size: int = 8192, repeats: int = 30) -> float:
    """Return the best rate of a square bf16 product over a few rounds."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best_s = float("inf")
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            torch.matmul(left, right)
        end.record()
        torch.cuda.synchronize()
        best_s = min(best_s, begin.elapsed_time(end) / 1e3 / repeats)
    return 2 * size**3 / best_s


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--batch", type=int, default=16, help="samples of a step")
    add("--steps", type=int, default=20, help="measured steps")
    add("--warm-up", type=int, default=5, help="steps before them, which also compile")
    add("--output", type=Path, default=RESULTS / "gpu.json", help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
