"""One worker's training step: two-hop gradient synchronisation with an all-or-none commit.

[Note: commit of a step]
A step goes through these exchanges, none of which asks a server:

1. Each micro-batch reduce-scatters its gradient inside the partition group (FSDP2) and adds it to
   the shard: the first hop.
2. The summaries of the group's workers are gathered inside the group.
3. The groups' summaries and then the gradient shards are exchanged across the replication group:
   the second hop, once a step.
4. The workers of the group vote: has everybody's second hop succeeded? The same exchange adds up
   the squared gradient norm.
5. If all said yes, each applies the optimizer; else nobody does, the gradient is thrown away, and
   the group waits for the next generation.

So inside a partition group a step is committed by all workers or by none. Two groups may disagree
when a member dies during step 3; entering the next generation compares the committed steps and
copies the states from a group that is ahead (`mics_core.engine.loop`). No exception leaves a hook
of FSDP2: an exception inside backward would leave gradients behind that spoil the repeated step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
from mics_core.engine.state import local_gradients
from mics_core.engine.summary import StepCommit, Summary, combine
from mics_core.errors import GroupFailedError, ReplicationError
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
        optimizer: The optimizer over its shards.
        samples: The training data.
        partition: The worker's partition group.
        device: Where the shards live.
    """

    def __init__(
        self,
        spec: JobSpec,
        model: nn.Module,
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
        mine = replace(
            self._run_micro_batches(step, replication), pending_generation=float(pending_generation)
        )
        group = combine(self.partition.gather_doubles(mine.as_vector()))
        error, rows = "", [group.as_vector()]
        gradients = local_gradients(self.model)
        try:
            rows = replication.gather_doubles(group.as_vector())
            replication.all_reduce(gradients)
        except ReplicationError as broken:
            error = str(broken)
        # Every member divides by the same count, so that their shards stay equal to the bit.
        total = combine(rows)
        scale = self._nominal_tokens / total.num_tokens if total.num_tokens else 0.0
        square = 0.0 if error else _square_norm(gradients) * scale * scale
        num_broken, square_norm = self.partition.sum_doubles([float(bool(error)), square])
        if num_broken:
            self.optimizer.zero_grad(set_to_none=True)
            error = error or "Another worker of this partition group lost its replication group."
            return StepBroken(step, replication.member.generation, error)
        self._check(step, total, [Summary(*row) for row in rows])
        rate = self._apply(step, gradients, scale, math.sqrt(square_norm))
        return StepCommit(
            step=step,
            loss=total.loss_sum / total.num_tokens,
            num_tokens=int(total.num_tokens),
            gradient_norm=math.sqrt(square_norm),
            learning_rate=rate,
            generation=replication.member.generation,
            num_groups=replication.size,
            shares=tuple(Summary(*row).share for row in rows),
            pending_generation=int(total.pending_generation),
        )

    @property
    def _nominal_tokens(self) -> int:
        """Divisor of every micro-batch's loss, so that gradients have their usual size; the true
        token count of the global batch, known only after the second hop, corrects it."""
        return self.spec.training.global_batch_size * self.spec.training.sequence_length

    def _run_micro_batches(self, step: int, replication: ReplicationGroup) -> Summary:
        """Run this worker's part of the group's micro-batches; the first hop is inside."""
        training = self.spec.training
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        num_tokens, offsets = 0, []
        for index in micro_batches_of_group(
            self._num_micro_batches, replication.size, replication.rank
        ):
            positions = positions_of_worker(
                step,
                index,
                global_batch_size=training.global_batch_size,
                micro_batch_size=training.micro_batch_size,
                partition_size=self.partition.size,
                rank=self.partition.rank,
            )
            batch = build_batch(self._samples, positions, seed=training.seed, masking=self._masking)
            # Dropout depends on what is computed, not on who computes it when.
            torch.manual_seed(stream_seed(training.seed, step, index, self.partition.rank))
            loss = self._loss(batch)
            (loss / self._nominal_tokens).backward()
            loss_sum += loss.detach()
            num_tokens += batch.num_tokens
            offsets += [position - step * training.global_batch_size for position in positions]
        return Summary(
            loss_sum=loss_sum.item(),
            num_tokens=num_tokens,
            num_samples=len(offsets),
            first_offset=min(offsets),
            offset_sum=sum(offsets),
            offset_square_sum=sum(offset * offset for offset in offsets),
            pending_generation=0,
        )

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

    def _apply(self, step: int, gradients: list[torch.Tensor], scale: float, norm: float) -> float:
        """Scale the gradient, clip it and update the shards; return the learning rate."""
        training = self.spec.training
        if training.gradient_clipping is not None:
            # The same formula as torch.nn.utils.clip_grad_norm_, its small constant included.
            scale *= min(1.0, training.gradient_clipping / (norm + 1e-6))
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        rate = learning_rate(step, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate


def _run_of(group: Summary) -> tuple[int, int]:
    return int(group.first_offset), int(group.num_samples)


def _square_norm(tensors: list[torch.Tensor]) -> float:
    """Squared norm over all `tensors`, added up in double precision."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.numel()])
    if not norms:
        return 0.0
    return float(torch.stack([norm.double() for norm in norms]).square().sum())
