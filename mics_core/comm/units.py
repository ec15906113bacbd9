"""The collectives of one FSDP2 unit: its parameters' all-gather and its gradient's reduce-scatter.

They plug into FSDP2 through its `AllGather` and `ReduceScatter` interfaces and add what MiCS and
its successors need: stages by node, gathered parameters that stay inside the node for a whole step
(ZeRO++'s secondary partition, Wang et al., 2023), gradients that add up straight into the buffer
that the second hop sends, and on the host collectives that run beside the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from mics_core.comm.partition import collective
from mics_core.comm.stages import (
    Scratch,
    StageGroups,
    gather_column,
    gather_flat,
    gather_rows,
    scatter_columns,
    scatter_flat,
    scatter_rows,
)
from mics_core.comm.threads import CommThread, PendingWork
from mics_core.planner.strategy import Accumulation, Route

__all__ = ["ScatterScratch", "UnitGather", "UnitScatter"]


class UnitGather(AllGather):
    """All-gather of one unit's parameters.

    Args:
        name: The unit, for error messages.
        groups: Process groups of gathers.
        route: Flat or in stages.
        keeps_column: Whether what other nodes sent stays until `forget`.
        thread: Where collectives run on the host; none on a GPU, whose streams do the same.
    """

    def __init__(
        self,
        name: str,
        groups: StageGroups,
        route: Route,
        *,
        keeps_column: bool,
        thread: CommThread | None,
    ):
        self._what = f"all-gather of unit {name}"
        self._groups = groups
        self._route = route
        self._keeps_column = keeps_column
        self._thread = thread
        self._column: torch.Tensor | None = None

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return a buffer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Gather `input_tensor` (n), this rank's slice of `output_tensor` (p · n), by rank.

        All workers of the partition group must call it.
        """
        job = partial(self._gather, output_tensor, input_tensor)
        if self._thread is None:
            job()
            return None
        work = self._thread.submit(job)
        if async_op:
            return work
        work.wait()
        return None

    def forget(self) -> None:
        """Drop what other nodes sent; the parameters have changed."""
        self._column = None

    def _gather(self, output: torch.Tensor, shard: torch.Tensor) -> None:
        with collective(self._what):
            if self._route == "flat":
                gather_flat(output, shard, self._groups)
                return
            column = self._column
            if column is None:
                column = gather_column(shard, self._groups)
                if self._keeps_column:
                    self._column = column
            gather_rows(output, column, self._groups)


@dataclass(frozen=True, slots=True)
class ScatterScratch:
    """Buffers of the scatters, which run one at a time.

    Args:
        received: What an all-to-all receives.
        column: The sums of the intra-node stage.
    """

    received: Scratch = field(default_factory=Scratch)
    column: Scratch = field(default_factory=Scratch)


class UnitScatter(ReduceScatter):
    """Reduce-scatter of one unit's gradient, added up over the micro-batches of a step.

    FSDP2 takes a buffer for the sum from `allocate` and makes the parameters' `.grad` views of it.
    It is given the unit's part of the step's gradient buffer each time, and the sums are added up
    in it here, beside the computation. The `.grad` of the last scatter must therefore be cleared
    before the next, or FSDP2 would add the buffer to itself.

    FSDP2 scatters after the backward of each call of a unit. Autograd has the gradient of a
    parameter only when all calls have been through, so the scatters before the last may send zeros,
    and a call whose inputs need no gradient is scattered at the end of backward or with another. A
    unit that was called more than once is therefore complete when the whole backward is.

    Args:
        name: The unit, for error messages.
        groups: Process groups of scatters.
        route: Flat or in stages.
        accumulation: Over what each micro-batch is scattered.
        thread: Where collectives run on the host; none on a GPU.
        scratch: Buffers shared by all units of the thread.
        total: The unit's part of the gradient buffer (n).
        clear: Clears the `.grad` of the unit's parameters.
        done: Called once the last micro-batch's sum is complete, on the thread that made it; not
            for a unit that this micro-batch called more than once.
    """

    def __init__(
        self,
        name: str,
        groups: StageGroups,
        route: Route,
        accumulation: Accumulation,
        *,
        thread: CommThread | None,
        scratch: ScatterScratch,
        total: torch.Tensor,
        clear: Callable[[], None],
        done: Callable[[], None],
    ):
        self._what = f"reduce-scatter of unit {name}"
        self._groups = groups
        self._route = route
        self._accumulation = accumulation
        self._thread = thread
        self._scratch = scratch
        self._total = total
        self._clear = clear
        self._done = done
        self._node_sum: torch.Tensor | None = None
        self._before: torch.Tensor | None = None
        self._is_output = False
        self._is_empty = True
        self._is_added_up = True
        self._is_last = True
        self._num_calls = 0
        self._completes = False
        self._pending: list[PendingWork] = []

    def begin_step(self) -> None:
        """Forget the sum of the last step."""
        self._is_empty = True

    def begin_micro_batch(self, *, is_first: bool, is_last: bool) -> None:
        """Say which micro-batch of the step the next forward and backward belong to."""
        self._is_empty, self._is_last = self._is_empty or is_first, is_last
        self._num_calls, self._completes = 0, False

    def called(self) -> None:
        """Note a call of the unit's forward."""
        self._num_calls += 1

    def begin_last_backward(self) -> None:
        """Say that the backward of the step's last micro-batch begins; what is recomputed in it
        calls units again, and does not count."""
        self._completes = self._num_calls <= 1

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return the gradient buffer for the sum, and a fresh one for what is to be summed."""
        (num_elements,) = size
        if self._groups.grid.num_workers == 1:
            return self._allocate_alone(dtype, device)
        if num_elements == self._total.numel():
            assert dtype == self._total.dtype, (dtype, self._total.dtype)
            self._clear()
            return self._total
        assert num_elements == self._total.numel() * self._groups.grid.num_workers, size
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Sum `input_tensor` (p · n) over the workers into the gradient buffer (n).

        All workers of the partition group must call it. It does not wait; `wait` does.
        """
        assert output_tensor.data_ptr() == self._total.data_ptr()
        job = partial(
            self._scatter,
            input_tensor,
            add=not self._is_empty,
            is_last=self._is_last,
            completes=self._completes,
        )
        self._is_empty = False
        if self._thread is None:
            job()
        else:
            self._pending.append(self._thread.submit(job))
        return None

    def complete(self) -> None:
        """Bring together what has been added up inside each node, if that was not done.

        For a step whose last micro-batch was not known to be the last. All workers of the partition
        group must call it, after `wait`; it does not wait itself.
        """
        if self._is_empty or self._is_added_up:
            return
        if self._thread is None:
            self._bring_together()
        else:
            self._pending.append(self._thread.submit(self._bring_together))

    def wait(self) -> None:
        """Wait for all scatters under way; a unit without a gradient in this step becomes zero.

        Raises:
            RuntimeError: A worker of the partition group was lost.
        """
        pending, self._pending = self._pending, []
        for work in pending:
            work.wait()
        if self._is_empty:
            self._total.zero_()

    def add_alone(self, output: torch.Tensor) -> None:
        """Add up the gradient of a partition group of one worker, which has nobody to scatter to.

        FSDP2 then copies a micro-batch's gradient over the buffer instead of calling the scatter,
        and calls this all-reduce hook.
        """
        assert output.data_ptr() == self._total.data_ptr()
        if self._before is not None:
            output.add_(self._before)
            if self._before.is_cuda:
                # It comes from the stream of scatters, which could be given its memory again while
                # this stream still reads it.
                self._before.record_stream(torch.cuda.current_stream(self._before.device))
            self._before = None
        self._is_empty = False
        if self._completes:
            self._done()

    def _allocate_alone(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the input's buffer and the sum's in turn, as FSDP2 asks for them."""
        self._is_output = not self._is_output
        if not self._is_output:
            if not self._is_empty:
                self._before = self._total.clone()
            self._clear()
            return self._total
        return torch.empty(self._total.numel(), dtype=dtype, device=device)

    def _scatter(self, values: torch.Tensor, *, add: bool, is_last: bool, completes: bool) -> None:
        with collective(self._what):
            self._sum(values, add=add, is_last=is_last)
        if completes:
            self._done()

    def _sum(self, values: torch.Tensor, *, add: bool, is_last: bool) -> None:
        received = self._scratch.received
        if self._route == "flat":
            scatter_flat(self._total, values, self._groups, received, add=add)
        elif self._accumulation == "group":
            column = self._scratch.column.take(values, self._column_elements)
            scatter_rows(column, values, self._groups, received, add=False)
            scatter_columns(self._total, column, self._groups, received, add=add)
        else:
            if self._node_sum is None:
                self._node_sum = values.new_empty(self._column_elements)
            scatter_rows(self._node_sum, values, self._groups, received, add=add)
            self._is_added_up = False
            if is_last:
                self._add_up_nodes()

    def _bring_together(self) -> None:
        with collective(self._what):
            self._add_up_nodes()

    def _add_up_nodes(self) -> None:
        assert self._node_sum is not None
        received = self._scratch.received
        scatter_columns(self._total, self._node_sum, self._groups, received, add=False)
        self._is_added_up = True

    @property
    def _column_elements(self) -> int:
        return self._groups.grid.num_nodes * self._total.numel()
