"""One worker's training step: two-hop gradient synchronisation with an all-or-none commit.

[Note: commit of a step]
A step goes through these exchanges, none of which asks a server:

1. Each micro-batch reduce-scatters its gradient inside the partition group and adds it to the
   shard: the first hop.
2. During the last micro-batch's backward the workers' summaries and then, unit by unit, the
   gradient shards are exchanged across the replication group: the second hop, once a step.
3. The workers of the group exchange the summaries that they have gathered and vote: has everybody's
   second hop succeeded? The same exchange adds up the squared gradient norm.
4. If all said yes, each applies the optimizer; else nobody does, the gradient is thrown away, and
   the group waits for the next generation.

So inside a partition group a step is committed by all workers or by none. Two groups may disagree
when a member dies during step 2; entering the next generation compares the committed steps and
copies the states from a group that is ahead (`mics_core.engine.loop`). No exception leaves a hook
of FSDP2: an exception inside backward would leave gradients behind that spoil the repeated step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from mics_core.comm.partition import PartitionGroup
from mics_core.comm.replication import ReplicationGroup
from mics_core.data.batches import Batch, build_batch
from mics_core.data.masking import build_masking
from mics_core.data.order import micro_batches_of_group, positions_of_worker, stream_seed
from mics_core.data.samples import Samples
from mics_core.engine.optimizer import learning_rate
from mics_core.engine.summary import StepCommit, Summary, combine, combine_groups
from mics_core.engine.units import UnitDriver
from mics_core.errors import GroupFailedError
from mics_core.spec.job import JobSpec

__all__ = ["StepBroken", "Trainer"]


@dataclass(frozen=True, slots=True)
class StepBroken:
    """A step that was not committed: a member of a replication group was lost."""

    step: int
    generation: int
    error: str


class Trainer:
    """The shards, the optimizer and the data of one worker.

    Args:
        spec: The job.
        model: The sharded model (`mics_core.engine.sharding.shard_model`).
        units: Its units, which move parameters and gradients.
        optimizer: The optimizer over its shards.
        samples: The training data.
        partition: The worker's partition group.
        device: Where the shards live.
    """

    def __init__(
        self,
        spec: JobSpec,
        model: nn.Module,
        units: UnitDriver,
        optimizer: torch.optim.Optimizer,
        samples: Samples,
        partition: PartitionGroup,
        device: torch.device,
    ):
        self.spec = spec
        self.model = model
        self.optimizer = optimizer
        self.partition = partition
        self.committed_steps = 0
        self._units = units
        self._samples = samples
        self._device = device
        self._masking = build_masking(spec)
        self._num_micro_batches = spec.num_micro_batches(partition.size)

    def run_step(
        self, step: int, replication: ReplicationGroup, pending_generation: int
    ) -> StepCommit | StepBroken:
        """Train one step; all workers of all groups of the generation must call it.

        See [Note: commit of a step].

        Args:
            step: Number of the step.
            replication: The worker's replication group.
            pending_generation: Highest generation number that this worker has heard of.

        Returns:
            The commit, or why there is none; the same kind on all workers of a partition group.

        Raises:
            GroupFailedError: A sample was used twice or left out, or the loss is not finite.
        """
        self._run_micro_batches(step, replication, pending_generation)
        rows, error = self._units.finish()
        votes = self.partition.gather_doubles(
            [
                float(bool(error)),
                0.0 if error else self._units.gradients.square_norm(),
                *Summary.flatten(rows, replication.size),
            ]
        )
        if any(broken for broken, *_ in votes):
            self._units.end_step()
            error = error or "Another worker of this partition group lost its replication group."
            return StepBroken(step, replication.member.generation, error)
        groups = combine_groups([vote[2:] for vote in votes], replication.size)
        # Every member divides by the same count, so that their shards stay equal to the bit.
        total = combine(groups)
        scale = self._nominal_tokens / total.num_tokens if total.num_tokens else 0.0
        norm = math.sqrt(sum(square for _, square, *_ in votes)) * scale
        self._check(step, total, groups)
        rate = self._apply(step, scale, norm)
        return StepCommit(
            step=step,
            loss=total.loss_sum / total.num_tokens,
            num_tokens=int(total.num_tokens),
            gradient_norm=norm,
            learning_rate=rate,
            generation=replication.member.generation,
            num_groups=replication.size,
            shares=tuple(group.share for group in groups),
            pending_generation=int(total.pending_generation),
        )

    def close(self) -> None:
        """End the threads of the trainer's collectives."""
        self._units.close()

    @property
    def _nominal_tokens(self) -> int:
        """Divisor of every micro-batch's loss, so that gradients have their usual size; the true
        token count of the global batch, known only after the second hop, corrects it."""
        return self.spec.training.global_batch_size * self.spec.training.sequence_length

    def _run_micro_batches(
        self, step: int, replication: ReplicationGroup, pending_generation: int
    ) -> None:
        """Run this worker's part of the group's micro-batches and start both hops."""
        training = self.spec.training
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        num_tokens, offsets = 0, []
        indices = micro_batches_of_group(
            self._num_micro_batches, replication.size, replication.rank
        )
        self._units.begin_step()
        for place, index in enumerate(indices):
            positions = positions_of_worker(
                step,
                index,
                global_batch_size=training.global_batch_size,
                micro_batch_size=training.settled_micro_batch_size,
                partition_size=self.partition.size,
                rank=self.partition.rank,
            )
            batch = build_batch(self._samples, positions, seed=training.seed, masking=self._masking)
            is_last = place == len(indices) - 1
            self._units.begin_micro_batch(is_first=place == 0, is_last=is_last)
            # Dropout depends on what is computed, not on who computes it when.
            torch.manual_seed(stream_seed(training.seed, step, index, self.partition.rank))
            loss = self._loss(batch)
            loss_sum += loss.detach()
            num_tokens += batch.num_tokens
            offsets += [position - step * training.global_batch_size for position in positions]
            if is_last:
                summary = _summary(loss_sum, num_tokens, offsets, pending_generation)
                self._units.begin_last_backward(replication, summary)
            (loss / self._nominal_tokens).backward()
            self._units.end_micro_batch(index)

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Sum of the token losses of one micro-batch of this worker; a scalar."""
        inputs = {"input_ids": torch.from_numpy(batch.input_ids).to(self._device)}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(batch.attention_mask).to(self._device)
        labels = torch.from_numpy(batch.labels).to(self._device)
        output = self.model(**inputs)
        logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )

    def _check(self, step: int, total: Summary, groups: list[Summary]) -> None:
        whole = total.covers(0, self.spec.training.global_batch_size)
        runs = all(group.covers(*_run_of(group)) for group in groups)
        if not (whole and runs):
            raise GroupFailedError(
                f"Step {step} used {int(total.num_samples)} samples that are not the global batch"
                f" of {self.spec.training.global_batch_size}, each once.",
                remedy="This is a fault of mics-elastic; please report it with the job's events.",
            )
        if not math.isfinite(total.loss_sum):
            raise GroupFailedError(
                f"The loss of step {step} is {total.loss_sum}: training has diverged.",
                remedy="Lower training.optimizer.learning_rate, add warm-up or gradient_clipping.",
            )

    def _apply(self, step: int, scale: float, norm: float) -> float:
        """Scale the gradient, clip it and update the shards; return the learning rate."""
        training = self.spec.training
        if training.gradient_clipping is not None:
            # The same formula as torch.nn.utils.clip_grad_norm_, its small constant included.
            scale *= min(1.0, training.gradient_clipping / (norm + 1e-6))
        if scale != 1.0:
            self._units.gradients.flat.mul_(scale)
        self._units.hand_over()
        rate = learning_rate(step, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._units.end_step()
        return rate


def _summary(
    loss_sum: torch.Tensor, num_tokens: int, offsets: list[int], pending_generation: int
) -> Callable[[], list[float]]:
    """Return what computes a worker's summary: on a GPU it waits for the loss, so not at once."""
    return lambda: Summary(
        loss_sum=loss_sum.item(),
        num_tokens=num_tokens,
        num_samples=len(offsets),
        first_offset=min(offsets),
        offset_sum=sum(offsets),
        offset_square_sum=sum(offset * offset for offset in offsets),
        pending_generation=pending_generation,
    ).as_vector()


def _run_of(group: Summary) -> tuple[int, int]:
    return int(group.first_offset), int(group.num_samples)
