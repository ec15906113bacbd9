"""Small jobs for engine tests, and the gold standard: the same job in one plain process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mics_core.data.batches import build_batch
from mics_core.data.masking import build_masking
from mics_core.data.sources import build_samples
from mics_core.engine.models import build_meta_model
from mics_core.engine.optimizer import learning_rate
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.spec import JobSpec, parse_job_spec


@dataclass
class Trained:
    """Losses of all steps and the final parameters."""

    losses: list[float]
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


def train_in_one_process(spec: JobSpec) -> Trained:
    """Train with plain PyTorch: no sharding, no groups, the whole global batch at once."""
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
    losses = []
    for step in range(training.steps):
        size = training.global_batch_size
        positions = range(step * size, (step + 1) * size)
        batch = build_batch(samples, positions, seed=training.seed, masking=masking)
        inputs = {"input_ids": torch.from_numpy(batch.input_ids)}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(batch.attention_mask)
        output = model(**inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        loss = functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(batch.labels).flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        if training.gradient_clipping is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, {name: value.detach() for name, value in model.named_parameters()})


def relative_difference(ours: dict[str, torch.Tensor], gold: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all parameters over the norm of the gold standard's."""
    assert ours.keys() == gold.keys()
    difference = torch.cat([(ours[name] - gold[name]).double().flatten() for name in gold])
    return float(
        difference.norm() / torch.cat([v.double().flatten() for v in gold.values()]).norm()
    )
