"""What every peer shares: the whole model with the common weights, the batches, and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness.site import Site
from mics_core.data.batches import build_batch
from mics_core.data.order import positions_of_worker
from mics_core.data.sources import build_samples
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.planner.question import Question
from mics_core.spec import JobSpec

__all__ = ["PlainTraining", "build_optimizer", "build_whole_model"]


def build_whole_model(spec: JobSpec) -> nn.Module:
    """Build the model with the initial weights that our engine draws, on this worker alone."""
    options = ShardingOptions(torch.device("cpu"), spec.training.precision, seed=spec.training.seed)
    model = build_meta_model(spec)
    shard_model(model, None, options)  # in place; no mesh leaves it whole
    return model


def build_optimizer(model: nn.Module, spec: JobSpec) -> torch.optim.Optimizer:
    """Build the job's AdamW over a peer's parameters."""
    constants = spec.training.optimizer
    assert constants.kind == "adamw", constants
    return torch.optim.AdamW(
        model.parameters(),
        lr=constants.learning_rate,
        betas=constants.betas,
        eps=constants.eps,
        weight_decay=constants.weight_decay,
        fused=True,
    )


class PlainTraining:
    """The step of a peer that looks like one `nn.Module`; each peer says what a micro-batch needs.

    The worker's loss is the mean over its own tokens, and the peers average gradients over workers,
    as their users do. All samples have the same number of tokens, so that is the global mean.

    Args:
        model: The wrapped model.
        optimizer: Over its parameters.
        spec: What to train.
        site: The worker's place.
    """

    description = ""
    question: Question | None = None

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, spec: JobSpec, site: Site
    ):
        self.model = model
        self.optimizer = optimizer
        self._spec = spec
        self._site = site
        self._samples = build_samples(spec)
        self.num_micro_batches = spec.num_micro_batches(site.world_size)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return the context in which a micro-batch runs forward and backward."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add up the gradient of one micro-batch's mean loss."""
        (loss / self.num_micro_batches).backward()

    def update(self) -> None:
        """Apply the optimizer after the last micro-batch."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, index: int) -> float:
        """Train one step; return this worker's part of its mean loss."""
        total = self.run_micro_batches(index)
        self.update()
        return total / (self.num_micro_batches * self._site.world_size)

    def run_micro_batches(self, index: int) -> float:
        """Run forward and backward of a step; return the sum of the micro-batches' losses."""
        total = 0.0
        for number, (inputs, labels) in enumerate(self._batches(index)):
            with self.micro_batch(is_last=number == self.num_micro_batches - 1):
                output = self.model(input_ids=inputs)
                logits = output if isinstance(output, torch.Tensor) else output.logits
                loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
                self.backward(loss)
            total += loss.item()
        return total

    def _batches(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this worker's micro-batches: input ids and labels, (micro_batch, sequence)."""
        training = self._spec.training
        for number in range(self.num_micro_batches):
            positions = positions_of_worker(
                step,
                number,
                global_batch_size=training.global_batch_size,
                micro_batch_size=training.settled_micro_batch_size,
                partition_size=self._site.world_size,
                rank=self._site.rank,
            )
            batch = build_batch(self._samples, positions, seed=training.seed)
            yield torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
