"""Small jobs for engine tests, and the gold standard: the same job in one plain process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mics_core.data.batches import Batch, build_batch
from mics_core.data.masking import build_masking
from mics_core.data.order import stream_seed
from mics_core.data.sources import build_samples
from mics_core.engine.models import build_meta_model
from mics_core.engine.optimizer import learning_rate
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.spec import JobSpec, parse_job_spec


@dataclass
class Trained:
    """Losses and gradient norms (before clipping) of all steps, and the final parameters."""

    losses: list[float]
    norms: list[float]
    parameters: dict[str, torch.Tensor]


def small_job(path: str, **changes: Any) -> JobSpec:
    """A two-block model of odd sizes; `changes` are set by dotted path, `__` for the dot."""
    job: dict[str, Any] = {
        "name": "small",
        # 66 and the 257 ids of bytes divide by neither 4 nor 2 x 2.
        "model": {"family": "gpt2", "hidden_size": 66, "num_layers": 2, "num_heads": 3},
        "data": {"kind": "text", "paths": [path]},
        "training": {
            "sequence_length": 16,
            "global_batch_size": 12,
            "micro_batch_size": 1,
            "steps": 3,
            "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
            "gradient_clipping": 1.0,
        },
        "groups": {"wanted": 1},
    }
    for name, value in changes.items():
        *folders, last = name.split("__")
        place = job
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return parse_job_spec(job)


def train_in_one_process(spec: JobSpec, partition_size: int | None = None) -> Trained:
    """Train with plain PyTorch: no sharding, no groups, the whole global batch at once.

    Dropout needs the partition size: its seeds are those of the workers' micro-batches. Each of
    these is then computed by itself, and their gradients are added up.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine several wait for each other most of the time
    try:
        return _train(spec, partition_size)
    finally:
        torch.set_num_threads(num_threads)


def _train(spec: JobSpec, partition_size: int | None) -> Trained:
    training = spec.training
    options = ShardingOptions(torch.device("cpu"), training.precision, seed=training.seed)
    model = shard_model(build_meta_model(spec), None, options).module
    constants = training.optimizer
    optimizer: torch.optim.Optimizer
    if constants.kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=constants.momentum)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            betas=constants.betas,
            eps=constants.eps,
            weight_decay=constants.weight_decay,
        )
    samples, masking = build_samples(spec), build_masking(spec)
    losses, norms = [], []
    for step in range(training.steps):
        pieces = [
            (seed, build_batch(samples, positions, seed=training.seed, masking=masking))
            for seed, positions in _pieces(spec, step, partition_size)
        ]
        num_tokens = sum(batch.num_tokens for _, batch in pieces)
        optimizer.zero_grad()
        loss = 0.0
        for seed, batch in pieces:
            if seed is not None:
                torch.manual_seed(seed)
            part = _loss_sum(model, batch) / num_tokens
            part.backward()
            loss += part.item()
        most = math.inf if training.gradient_clipping is None else training.gradient_clipping
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), most).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        optimizer.step()
        losses.append(loss)
    return Trained(
        losses, norms, {name: value.detach() for name, value in model.named_parameters()}
    )


def _pieces(
    spec: JobSpec, step: int, partition_size: int | None
) -> Iterator[tuple[int | None, range]]:
    """Yield the positions of a step that are computed at once, each with its seed of dropout."""
    training = spec.training
    size = training.global_batch_size
    if partition_size is None:
        yield None, range(step * size, (step + 1) * size)
        return
    piece = training.settled_micro_batch_size
    for number in range(size // piece):
        micro_batch, rank = divmod(number, partition_size)
        first = step * size + number * piece
        seed = stream_seed(training.seed, step, micro_batch, rank)
        yield seed, range(first, first + piece)


def _loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    inputs = {"input_ids": torch.from_numpy(batch.input_ids)}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = torch.from_numpy(batch.attention_mask)
    output = model(**inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    labels = torch.from_numpy(batch.labels).flatten()
    return functional.cross_entropy(
        logits.flatten(0, 1), labels, ignore_index=-100, reduction="sum"
    )


def relative_difference(ours: dict[str, torch.Tensor], gold: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all parameters over the norm of the gold standard's."""
    assert ours.keys() == gold.keys()
    difference = torch.cat([(ours[name] - gold[name]).double().flatten() for name in gold])
    return float(
        difference.norm() / torch.cat([v.double().flatten() for v in gold.values()]).norm()
    )
