"""One worker's training step: two-hop gradient synchronisation with an all-or-none commit.

[Note: commit of a step]
A step goes through these exchanges, none of which asks a server:

1. Each micro-batch reduce-scatters its gradient inside the partition group and adds it to the
   shard: the first hop.
2. During the last micro-batch's backward the workers' summaries and then, unit by unit, the
   gradient shards are exchanged across the replication group: the second hop, once a step.
3. The workers of the group exchange the summaries that they have gathered and vote: has everybody's
   second hop succeeded? The same exchange adds up the squared gradient norm.
4. If all said yes, each applies the optimizer; else nobody does, and the group waits for the next
   generation, under which it goes on with its part of the gradient ([Note: work in hand] in
   `mics_core.engine.in_hand`). Loss, token count and gradient norm are looked at first.
   They are the same numbers on all workers, so if one is not finite all fail before any update.

So inside a partition group a step is committed by all workers or by none. Two groups may disagree
when a member dies during step 2; entering the next generation compares the committed steps, and who
is behind catches up while the others train on (`mics_core.engine.copying`). No exception leaves a
hook of FSDP2: an exception inside backward would leave gradients behind that spoil what is in hand.

Once a member is known to be gone, the step cannot be committed as it was divided. So before each
micro-batch the workers of the group ask each other whether somebody has heard of a loss, and if so
break the step off together. None of them has sent anything across the replication group by then, so
nobody else can have committed the step. The question costs one exchange on the host where the next
all-gather, or the last reduce-scatter, makes the workers wait for each other anyway.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mics_core.comm.partition import PartitionGroup
from mics_core.comm.replication import ReplicationGroup
from mics_core.comm.shared import SharedMemory
from mics_core.data.batches import Batch, build_batch
from mics_core.data.masking import build_masking
from mics_core.data.order import positions_of_worker, stream_seed
from mics_core.data.samples import Samples
from mics_core.data.sources import order_of
from mics_core.engine.catch_up import CatchUp
from mics_core.engine.checkpoint import CheckpointReport
from mics_core.engine.checkpoint_progress import NOTHING_TO_WRITE
from mics_core.engine.in_hand import Division, InHand
from mics_core.engine.optimizer import learning_rate
from mics_core.engine.reporting import Report, summary_of
from mics_core.engine.state import local_tensor
from mics_core.engine.step_checks import check_step
from mics_core.engine.summary import Share, StepCommit, Summary, combine, combine_groups
from mics_core.engine.units import UnitDriver
from mics_core.errors import ReplicationError
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
        self.data_order = order_of(spec, samples)
        self.passed_over: tuple[CheckpointReport, ...] = ()
        """Damaged checkpoints that the states do not come from."""
        self.link_use = units.link_use
        self.num_micro_batches = spec.num_micro_batches(partition.size)
        """Of a step, over all groups."""
        self._catch_up: CatchUp | None = None
        self._in_hand: InHand | None = None
        self._keeps_work = False
        self._wait_for_readers: Callable[[], None] = _wait_for_nobody
        self._units = units
        self._samples = samples
        self._device = device
        self._masking = build_masking(spec)

    def run_step(
        self,
        step: int,
        replication: ReplicationGroup,
        pending_generation: int,
        active: Sequence[int] | None = None,
        checkpoint: float = NOTHING_TO_WRITE,
        has_lost_member: Callable[[], bool] = lambda: False,
        done: Sequence[Collection[int]] = (),
    ) -> StepCommit | StepBroken:
        """Train one step; all workers of all groups of the generation must call it.

        See [Note: commit of a step].

        Args:
            step: Number of the step.
            replication: The worker's replication group.
            pending_generation: Highest generation number that this worker has heard of.
            active: Ranks of the members that take micro-batches; the others catch up. All by
                default.
            checkpoint: How far its checkpoint is (`Checkpointer.progress`).
            has_lost_member: Whether this worker has heard that a member is gone.
            done: The micro-batches of this step that each member has in hand, by rank (`in_hand`).
                Nothing by default.

        Returns:
            The commit, or why there is none; the same kind on all workers of a partition group.

        Raises:
            GroupFailedError: A sample was used twice or left out, or the loss or the gradient is
                not finite. No worker has applied the step.
            DataError: No sample of the step has a label.
        """
        active = range(replication.size) if active is None else active
        error = ""
        if self._catch_up is not None:
            error = self._advance(self._catch_up)
        report = Report(pending_generation, checkpoint)
        if self._catch_up is not None:
            full = self._catch_up.will_be_full(self.gradient_bytes)
            report = replace(report, behind=1.0, full=float(full))
        rank = replication.rank
        division = Division.of(self.num_micro_batches, replication.size, active, done)
        work = self._take_up(step, division, rank)
        if not self._run_micro_batches(
            work, division.left[rank], replication, report, has_lost_member
        ):
            self._units.give_up()
            self._keep(work)
            return StepBroken(
                step, replication.member.generation, "A member was lost: the step was broken off."
            )
        error, votes = self._vote(replication.size, error)
        if any(failed for failed, *_ in votes):
            self._units.end_step()
            self._keep(work)
            error = error or "Another worker of this partition group lost its replication group."
            return StepBroken(step, replication.member.generation, error)
        groups = combine_groups([vote[5:] for vote in votes], replication.size)
        # Every member divides by the same count, so that their shards stay equal to the bit.
        total = combine(groups)
        scale = self._nominal_tokens / total.num_tokens if total.num_tokens else 0.0
        norm = math.sqrt(sum(square for _, square, *_ in votes)) * scale
        shares = tuple(self._share(part) for part in division.parts)
        check_step(self.spec, step, total, groups, shares, norm)
        scale *= self._clipping(norm)
        if self._catch_up is None:
            self._apply(step, scale, listened=not division.left[rank])
        else:
            self._catch_up.keep(step, scale, self._units.gradients.flat)
            if all(has_received for _, _, _, _, has_received, *_ in votes):
                self._catch_up.all_have_received()
            self._units.end_step()
        return StepCommit(
            step=step,
            loss=total.loss_sum / total.num_tokens,
            num_tokens=int(total.num_tokens),
            gradient_norm=norm,
            learning_rate=learning_rate(step, self.spec.training),
            generation=replication.member.generation,
            num_groups=len(active),
            shares=shares,
            pending_generation=int(total.pending_generation),
            checkpoint=total.checkpoint,
            up_to_date=tuple(rank for rank, group in enumerate(groups) if not group.behind),
            waits_for_copy=bool(total.full),
            waited_s=self._mean_wait_s([waited_s for _, _, waited_s, *_ in votes]),
            waited_across_s=min(waited_s for _, _, _, waited_s, *_ in votes),
            in_hand=division.num_done / self.num_micro_batches,
        )

    def _vote(self, num_members: int, error: str) -> tuple[str, list[list[float]]]:
        """Wait for both hops, and tell the partition group how they went.

        Returns:
            The first error, empty without one, and what each worker of the group says: whether it
            has failed, its part of the gradient's squared norm, its two waits, whether its copy of
            the states is there, and the summaries that it has received.
        """
        try:
            rows, broken = self._units.finish()
            error = error or broken
            return error, self._ask(
                [
                    float(bool(error)),
                    0.0 if error else self._units.gradients.square_norm(),
                    self._units.waits.take(),
                    self._units.waits_across.take(),
                    float(self._catch_up is None or self._catch_up.has_received),
                    *Summary.flatten(rows, num_members),
                ]
            )
        finally:
            # The second hops of this group's other workers are on the same links. Having heard of
            # all, this worker's copies disturb none.
            self.link_use.end()

    def warm_up(self) -> None:
        """Compute one micro-batch of zeros and forget it; all workers of the group must call it.

        For a group that joins a run, before it says that it is ready: what a first micro-batch
        costs, compiling above all, its peers need not wait for later. Its parameters and buffers
        hold whatever the memory held, so they are set to zero first; the copy replaces them.
        """
        training = self.spec.training
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                local_tensor(tensor).zero_()
        zeros = np.zeros((training.settled_micro_batch_size, training.sequence_length), np.int64)
        mask = zeros + 1 if _needs_mask(self.model) else None
        self._units.begin_step([[0]])
        self._units.begin_micro_batch(is_first=True, is_last=False)
        self._loss(Batch(zeros, zeros, mask, zeros.size)).backward()
        self._units.end_micro_batch(0)
        self._units.give_up()
        self._units.waits.take()

    def keep_work(self) -> None:
        """From now on keep what is computed of a step that breaks, where the job allows for it."""
        if self.spec.engine.reuse_gradients:
            self._keeps_work = True
            self._units.keep_gradients()

    def in_hand(self, step: int) -> frozenset[int]:
        """Return the micro-batches of a step that are computed; same on all of the group."""
        work = self._in_hand
        return frozenset(work.micro_batches) if work and work.step == step else frozenset()

    def begin_catching_up(self, catch_up: CatchUp | None) -> None:
        """Set how this worker comes to its peers' states; none if it has them."""
        self._catch_up = catch_up

    @property
    def gradient_bytes(self) -> int:
        """Bytes of this worker's gradient."""
        return self._units.gradients.flat.nbytes

    @property
    def gradient_memory(self) -> SharedMemory | None:
        """What holds the gradient; other workers of the node may read it in the second hop."""
        return self._units.gradients.memory

    def must_wait_for_copy(self, limit_s: float) -> bool:
        """Wait a while for a copy that this worker needs to train on; whether it still does."""
        return self._catch_up is not None and self._catch_up.must_wait(limit_s)

    def wait_before_updates(self, wait: Callable[[], None]) -> None:
        """Set what the next update waits for: somebody still reads the states."""
        self._wait_for_readers = wait

    def _advance(self, catch_up: CatchUp) -> str:
        """Apply kept gradients if the copy is there; return what went wrong."""
        try:
            kept = catch_up.take()
        except ReplicationError as error:
            return str(error)
        for gradient in kept:
            self._units.gradients.flat.copy_(gradient.values)
            self._apply(gradient.step, gradient.scale, listened=True)
        if catch_up.has_arrived:
            self._catch_up = None
        return ""

    def close(self) -> None:
        """End the threads of the trainer's collectives."""
        self._units.close()

    @property
    def _nominal_tokens(self) -> int:
        """Divisor of every micro-batch's loss, so that gradients have their usual size; the true
        token count of the global batch, known only after the second hop, corrects it."""
        return self.spec.training.global_batch_size * self.spec.training.sequence_length

    def _take_up(self, step: int, division: Division, rank: int) -> InHand:
        """Begin a step: with what this worker has in hand, where the others count on it."""
        work, self._in_hand = self._in_hand, None
        goes_on = division.parts[rank] != division.left[rank]
        self._units.begin_step(division.parts, goes_on=goes_on)
        if goes_on:
            assert work is not None
            assert work.step == step
            return work
        return InHand(step, torch.zeros((), dtype=torch.float64, device=self._device))

    def _keep(self, work: InHand) -> None:
        """Keep what was computed of a step that broke."""
        if self._keeps_work and work.micro_batches:
            self._in_hand = work

    def _run_micro_batches(
        self,
        work: InHand,
        indices: Sequence[int],
        replication: ReplicationGroup,
        report: Report,
        has_lost_member: Callable[[], bool],
    ) -> bool:
        """Run this worker's part of the group's micro-batches and start both hops.

        Args:
            work: What it has of the step already; what it computes is entered.
            indices: The micro-batches to run.
            replication: The replication group.
            report: What it says of itself.
            has_lost_member: Whether it has heard that a member is gone.

        Returns:
            Whether all were run; if not, the step is to be broken off, and nothing was sent yet.
        """
        training, step = self.spec.training, work.step

        def summary() -> list[float]:
            # On a GPU it waits for the loss, so not at once.
            return summary_of(work.loss_sum, work.num_tokens, work.offsets, report)

        if not indices:
            self._units.send(replication, summary, has_gradient=bool(work.micro_batches))
        for place, index in enumerate(indices):
            if any(heard for (heard,) in self._ask([float(has_lost_member())])):
                return False
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
            self._units.begin_micro_batch(is_first=not work.micro_batches, is_last=is_last)
            # Dropout depends on what is computed, not on who computes it when.
            torch.manual_seed(stream_seed(training.seed, step, index, self.partition.rank))
            loss = self._loss(batch)
            work.micro_batches.add(index)
            work.loss_sum += loss.detach()
            work.num_tokens += batch.num_tokens
            work.offsets += [position - step * training.global_batch_size for position in positions]
            if is_last:
                self._units.begin_last_backward(replication, summary)
            (loss / self._nominal_tokens).backward()
            self._units.end_micro_batch(index)
        return True

    def _ask(self, values: Sequence[float]) -> list[list[float]]:
        """Gather the vectors of the partition group's workers, which are waited for."""
        with self._units.waits.timed():
            return self.partition.gather_doubles(values)

    def _mean_wait_s(self, waited_s: Sequence[float]) -> float | None:
        return sum(waited_s) / len(waited_s) if self._device.type == "cpu" else None

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

    def _share(self, micro_batches: Sequence[int]) -> Share:
        samples = self.partition.size * self.spec.training.settled_micro_batch_size
        return Share.of_micro_batches(micro_batches, samples)

    def _clipping(self, norm: float) -> float:
        """Return the factor of gradient clipping."""
        most = self.spec.training.gradient_clipping
        # The same formula as torch.nn.utils.clip_grad_norm_, its small constant included.
        return 1.0 if most is None else min(1.0, most / (norm + 1e-6))

    def _apply(self, step: int, scale: float, *, listened: bool) -> None:
        """Scale the gradient and update the shards."""
        self._wait_for_readers()
        self._wait_for_readers = _wait_for_nobody
        if scale != 1.0:
            self._units.gradients.flat.mul_(scale)
        self._units.hand_over(listened=listened)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.spec.training)
        self.optimizer.step()
        self._units.end_step()


def _wait_for_nobody() -> None:
    """Nobody reads the states."""


def _needs_mask(model: nn.Module) -> bool:
    mask = inspect.signature(model.forward).parameters.get("attention_mask")
    return mask is not None and mask.default is inspect.Parameter.empty
