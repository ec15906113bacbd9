"""Drives the units of a model through the micro-batches of a step.

It gives FSDP2 the collectives of `mics_core.comm.units`, says what stays gathered between
micro-batches, and brings the gradient of all micro-batches together in one buffer, from which the
second hop starts unit by unit.

[Note: gradients of a step]
FSDP2 adds a micro-batch's gradient to `.grad` in the thread that runs backward. Here `.grad` is
cleared before each scatter, FSDP2 sets it to views of the gradient buffer, and the scatter adds
up in the buffer itself. A model that one worker holds whole has no scatter: its `.grad` are views
of the buffer from the beginning, and autograd adds to them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mics_core.comm.partition import PartitionGroup
from mics_core.comm.replication import ReplicationGroup
from mics_core.comm.threads import CommThread, Waits
from mics_core.comm.units import ScatterScratch, UnitGather, UnitScatter
from mics_core.engine.gradients import GradientBuffer, shard_elements
from mics_core.engine.link_use import LinkUse
from mics_core.engine.ordered_hop import OrderedHop
from mics_core.engine.second_hop import SecondHop
from mics_core.engine.sharding import ShardedModel, Unit
from mics_core.planner.strategy import Strategy

__all__ = ["UnitDriver"]

_SCATTERS_UNDER_WAY = 2


class UnitDriver:
    """The units of one worker.

    Args:
        sharded: The model.
        partition: The worker's partition group.
        strategy: How it moves its model states.
        dtype: Type of shards and gradients.
        device: Where they live.
        bucket_bytes: Smallest size of a bucket of the second hop but the last.
        offloads: Whether shards and optimizer are in the host's memory.
        ordered_micro_batches: Micro-batches of a step, over all groups, where gradients are to be
            added up in one order (`mics_core.engine.ordered_hop`).
    """

    def __init__(
        self,
        sharded: ShardedModel,
        partition: PartitionGroup,
        strategy: Strategy,
        *,
        dtype: torch.dtype,
        device: torch.device,
        bucket_bytes: int,
        offloads: bool = False,
        ordered_micro_batches: int | None = None,
    ):
        self._strategy = strategy
        self._partition_size = partition.size
        self._offloads = offloads
        self._device = device
        self._root = sharded.module
        # Backward completes the blocks from last to first and what is outside them at the end.
        self._units = (*reversed(sharded.units[1:]), sharded.units[0])
        self.gradients = GradientBuffer(
            [(unit.name, unit.num_elements) for unit in self._units],
            dtype=dtype,
            device=device,
            bucket_bytes=bucket_bytes,
        )
        self._ordered: OrderedHop | None = None
        if ordered_micro_batches is not None:
            self._ordered = OrderedHop(self.gradients.flat, ordered_micro_batches)
        self._second_hop = self._ordered or SecondHop(self.gradients)
        self.link_use = LinkUse()
        self._gathers: list[UnitGather] = []
        self._scatters: list[UnitScatter] = []
        self._is_last = False
        self._parameters_left: list[int] = []
        self._threads: list[CommThread] = []
        self.waits = Waits()
        """How long the thread that computes has waited; on a GPU it does not wait itself."""
        self.waits_across = Waits()
        """How long this worker had nothing left to do but to wait for the second hop."""
        if sharded.is_whole:
            self._attach_whole()
        else:
            self._attach_sharded(sharded, partition, on_host=device.type == "cpu")

    def begin_step(self, parts: Sequence[Sequence[int]], *, goes_on: bool = False) -> None:
        """Begin a step: parameters may have changed since the last.

        Args:
            parts: The micro-batches of the replication group's members, by rank.
            goes_on: Whether the step broke, and this worker goes on with the gradient that it has.
        """
        for gather in self._gathers:
            gather.forget()
        self._second_hop.begin_step(parts, goes_on=goes_on)
        if not goes_on:
            for scatter in self._scatters:
                scatter.begin_step()
        elif not self._scatters:
            self._set_whole_gradients()

    def begin_micro_batch(self, *, is_first: bool, is_last: bool) -> None:
        """Prepare for the forward and backward of one micro-batch."""
        alone = self._ordered is not None  # each micro-batch's gradient by itself
        self._is_last = is_last
        self._parameters_left = [
            sum(parameter.requires_grad for parameter in unit.parameters) for unit in self._units
        ]
        if not self._scatters:
            if is_first or alone:
                self.gradients.flat.zero_()
                self._set_whole_gradients()
            return
        for scatter in self._scatters:
            scatter.begin_micro_batch(is_first=is_first or alone, is_last=is_last or alone)
        if self._strategy.reshard == "never" and isinstance(self._root, FSDPModule):
            self._root.set_reshard_after_backward(is_last)

    def begin_last_backward(
        self, replication: ReplicationGroup, summary: Callable[[], list[float]]
    ) -> None:
        """Begin the backward with which the second hop overlaps."""
        self.link_use.begin()
        self._second_hop.begin(replication, summary)
        for scatter in self._scatters:
            scatter.begin_last_backward()

    def send(
        self,
        replication: ReplicationGroup,
        summary: Callable[[], list[float]],
        *,
        has_gradient: bool,
    ) -> None:
        """Begin the second hop of a step of which nothing is left to compute here.

        All workers of the partition group must call it. Others may still compute, so copies need
        not leave the links to it yet.

        Args:
            replication: The replication group that the gradient crosses.
            summary: Computes this worker's summary of the step.
            has_gradient: Whether this worker has a part of the gradient; else it adds zero.
        """
        if not has_gradient:
            self.gradients.flat.zero_()
        for scatter in self._scatters:
            scatter.complete()
        self._second_hop.begin(replication, summary)

    def end_micro_batch(self, index: int) -> None:
        """Note that a micro-batch's backward has been run.

        Raises:
            RuntimeError: A worker of the partition group was lost.
        """
        if self._ordered is not None:
            self._wait_for_scatters()
            self._ordered.micro_batch_complete(index)

    def keep_gradients(self) -> None:
        """From now on let a step whose second hop broke go on (`begin_step`)."""
        self._second_hop.keep_gradients()

    def finish(self) -> tuple[list[list[float]], str]:
        """Wait for both hops.

        Returns:
            The summaries of the replication group's members, and the first error of the second
            hop; empty without one.

        Raises:
            RuntimeError: A worker of the partition group was lost.
        """
        self._wait_for_scatters()
        if self._device.type == "cuda":
            # Backward is only queued. The second hop waits for it in any case; waiting for it here
            # keeps this worker's own time apart from that of the others.
            torch.cuda.current_stream(self._device).synchronize()
        with self.waits.timed(), self.waits_across.timed():
            return self._second_hop.finish()

    def give_up(self) -> None:
        """End a step before its last micro-batch.

        Raises:
            RuntimeError: A worker of the partition group was lost.
        """
        self._wait_for_scatters()
        self._clear_gradients()
        if self._strategy.reshard == "never":
            # Gathered for the micro-batches that do not come; what follows may change them.
            for module in self._root.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def hand_over(self, *, listened: bool) -> None:
        """Give the optimizer the gradient, where it does not see the buffer itself.

        With offload FSDP2 has copied every micro-batch's sum to the host before the second hop;
        the true gradient replaces these copies. Without micro-batches nothing has set gradients,
        and neither has FSDP2 those of a unit that took no part: they are zero, on every member.

        Args:
            listened: Whether no micro-batch was computed since the step began.
        """
        if not self._scatters:
            if listened:
                self._set_whole_gradients()
            return
        replaces = self._offloads or listened
        for index, unit in enumerate(self._units):
            if not (replaces or any(_lacks_gradient(each) for each in unit.parameters)):
                continue
            part, offset = self.gradients.of_unit(index), 0
            if self._offloads:
                part = part.cpu()
            for parameter in unit.parameters:
                if not parameter.requires_grad:
                    continue
                assert isinstance(parameter, DTensor)
                local = parameter.to_local()
                values = part[offset : offset + local.numel()].view_as(local)
                parameter.grad = DTensor.from_local(
                    values,
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
                offset += shard_elements([parameter], self._partition_size)

    def end_step(self) -> None:
        """Let go of the gradient, though not of what the next step may go on with."""
        self._clear_gradients()

    def close(self) -> None:
        """End the threads."""
        self._second_hop.close()
        for thread in self._threads:
            thread.close()

    def _attach_whole(self) -> None:
        for index, unit in enumerate(self._units):
            for parameter in unit.parameters:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(self._accumulated, index))

    def _accumulated(self, index: int, _: torch.Tensor) -> None:
        self._parameters_left[index] -= 1
        if self._is_last and self._parameters_left[index] == 0:
            self._second_hop.unit_complete(index)

    def _set_whole_gradients(self) -> None:
        for index, unit in enumerate(self._units):
            part, offset = self.gradients.of_unit(index), 0
            for parameter in unit.parameters:
                if parameter.requires_grad:
                    end = offset + parameter.numel()
                    parameter.grad = part[offset:end].view_as(parameter)
                    offset = end

    def _attach_sharded(
        self, sharded: ShardedModel, partition: PartitionGroup, *, on_host: bool
    ) -> None:
        gather_thread = scatter_thread = None
        if on_host:
            gather_thread = CommThread("gathers", waits=self.waits)
            scatter_thread = CommThread("scatters", _SCATTERS_UNDER_WAY, self.waits)
            self._threads = [gather_thread, scatter_thread]
        scratch = ScatterScratch()
        for index, unit in enumerate(self._units):
            self._attach_unit(index, unit, partition, (gather_thread, scatter_thread), scratch)
        if not on_host:
            return
        # Gathers that return at once need to be told what comes next; streams find out themselves.
        modules = [unit.module for unit in sharded.units]
        for module, following in pairwise(modules):
            assert isinstance(module, FSDPModule)
            assert isinstance(following, FSDPModule)
            module.set_modules_to_forward_prefetch([following])
        assert isinstance(self._root, FSDPModule)
        self._root._set_unshard_async_op(True)

    def _attach_unit(
        self,
        index: int,
        unit: Unit,
        partition: PartitionGroup,
        threads: tuple[CommThread | None, CommThread | None],
        scratch: ScatterScratch,
    ) -> None:
        strategy, module = self._strategy, unit.module
        assert isinstance(module, FSDPModule)
        if strategy.reshard == "never":
            module.set_reshard_after_forward(False, recurse=False)
        name = repr(unit.name) if unit.is_block else "outside the blocks"
        gather = UnitGather(
            name,
            partition.gathers,
            strategy.gather_block if unit.is_block else strategy.gather_root,
            keeps_column=strategy.reshard == "node",
            thread=threads[0],
        )
        scatter = UnitScatter(
            name,
            partition.scatters,
            strategy.scatter_block if unit.is_block else strategy.scatter_root,
            strategy.accumulation,
            thread=threads[1],
            scratch=scratch,
            total=self.gradients.of_unit(index),
            clear=partial(_clear, unit.parameters),
            done=partial(self._second_hop.unit_complete, index),
        )
        module.set_custom_all_gather(gather)
        module.set_custom_reduce_scatter(scatter)
        # Compiled blocks run it as it is, like the hooks of FSDP2.
        module.register_forward_pre_hook(torch.compiler.disable(lambda *_: scatter.called()))
        if partition.size == 1:
            module.set_all_reduce_hook(scatter.add_alone)
        self._gathers.append(gather)
        self._scatters.append(scatter)

    def _wait_for_scatters(self) -> None:
        for scatter in self._scatters:
            scatter.wait()

    def _clear_gradients(self) -> None:
        for unit in self._units:
            _clear(unit.parameters)


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _lacks_gradient(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.grad is None
