"""Chooses a layout where nothing is known of the network: by memory alone.

The partition size is MiCS' own choice, the smallest that fits. With that size activations are kept
if they fit, and the micro-batch is the largest power of two that fits. The strategy is the paper's
unless the job fixes parts of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mics_core.errors import BrokenRule
from mics_core.planner.amounts import amount
from mics_core.planner.candidates import Pins, stage_problem
from mics_core.planner.collectives import Span, span_of
from mics_core.planner.footprint import memory_of, reserve_in_words, usable_bytes, usable_percent
from mics_core.planner.layout import ClusterShape, LayoutProblem, check_partition_size
from mics_core.planner.partition import NoPartitionFits, choose_partition_size
from mics_core.planner.prediction import Layout, Memory, Workload
from mics_core.planner.profile import Backend
from mics_core.planner.shape import ModelShape
from mics_core.planner.strategy import Route, Strategy

__all__ = ["MemoryChoice", "choose_by_memory", "pinned_strategy", "stage_refusal"]

_LARGEST_MICRO_BATCH = 32


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """A layout of one partition group that fits."""

    layout: Layout
    reason: str
    """Why this one, in one sentence."""


def pinned_strategy(pins: Pins, span: Span) -> Strategy:
    """Return the paper's strategy with the job's own choices in it.

    Inside one node, and with one worker a node, there are no two stages, and routes are flat.
    """
    reshard = "always" if pins.reshard == "auto" else pins.reshard
    accumulation = "group" if pins.accumulation == "auto" else pins.accumulation
    if not span.has_stages or pins.hierarchical == "never":
        return Strategy(reshard="never" if reshard == "never" and span.size > 1 else "always")
    route: Route = "hierarchical"
    return Strategy(reshard, accumulation, route, route, route, route)


def choose_by_memory(
    model: ModelShape,
    workload: Workload,
    pins: Pins,
    memory_bytes: int,
    nodes: ClusterShape,
    batch_problem: Callable[[int, int], BrokenRule | None],
    backend: Backend = "nccl",
) -> MemoryChoice | LayoutProblem:
    """Choose what the job leaves open of its layout.

    Args:
        model: The model.
        workload: What of the job the layout cannot change.
        pins: What the job fixes.
        memory_bytes: Memory of one worker.
        nodes: The living nodes; if none has workers yet, placement is not checked.
        batch_problem: Says why p and a micro-batch size do not suit the batch; None if they do.
        backend: What runs the collectives.

    Returns:
        The choice, or what stands against all.
    """
    least = Layout(
        partition_size=1,
        num_groups=pins.largest_groups or 1,
        micro_batch_size=1 if pins.micro_batch_size == "auto" else pins.micro_batch_size,
        is_checkpointed=pins.activation_checkpointing is not False,
    )

    def memory(layout: Layout) -> Memory:
        span = span_of(layout.partition_size, nodes)
        return memory_of(model, layout, workload, span, backend)

    def of_size(size: int) -> Layout:
        strategy = pinned_strategy(pins, span_of(size, nodes))
        return replace(least, partition_size=size, strategy=strategy)

    if pins.partition_size == "auto":
        parts = memory(least)

        def unit_bytes(size: int) -> int:
            # Of more workers another moment may need most, with less activations and more units.
            found = memory(of_size(size))
            return int(found.total - found.model_states - parts.activations)

        found = choose_partition_size(
            model_state_bytes=int(parts.model_states),
            unit_bytes=unit_bytes,
            activation_bytes=int(parts.activations),
            worker_memory_bytes=memory_bytes,
            cluster=nodes,
            percent=usable_percent(model),
            batch_problem=lambda size: (
                stage_problem(pins, span_of(size, nodes))
                or batch_problem(size, least.micro_batch_size)
            ),
        )
        if isinstance(found, NoPartitionFits):
            return found.problem
        layout, reason = of_size(found.partition_size), found.reason
    else:
        if problem := check_partition_size(pins.partition_size, nodes):
            return problem
        if against := stage_problem(pins, span_of(pins.partition_size, nodes)):
            return stage_refusal(pins.partition_size, against)
        layout, reason = of_size(pins.partition_size), "The specification asks for this size."
    usable = usable_bytes(memory_bytes, model)

    def fits(candidate: Layout) -> bool:
        suits = batch_problem(candidate.partition_size, candidate.micro_batch_size) is None
        return suits and memory(candidate).total <= usable

    if not fits(layout):
        return _nothing_fits(layout, memory(layout), usable, batch_problem)
    if pins.activation_checkpointing == "auto":
        kept = replace(layout, is_checkpointed=False)
        layout = kept if fits(kept) else layout
    if pins.micro_batch_size == "auto":
        sizes = [1 << exponent for exponent in range(_LARGEST_MICRO_BATCH.bit_length())]
        layout = [
            larger for size in sizes if fits(larger := replace(layout, micro_batch_size=size))
        ][-1]
    words = _reason(pins, layout, reason, memory(layout), usable)
    return MemoryChoice(layout, f"{words.removesuffix('.')}{reserve_in_words(model)}.")


def stage_refusal(partition_size: int, broken: BrokenRule) -> LayoutProblem:
    """Return what `stage_problem` found as a problem of the layout."""
    return LayoutProblem(f"partition_size {partition_size}", broken.rule, broken.remedy)


def _reason(pins: Pins, layout: Layout, reason: str, memory: Memory, usable: int) -> str:
    chosen = []
    if pins.micro_batch_size == "auto":
        chosen.append(f"micro-batches of {layout.micro_batch_size}")
    if pins.activation_checkpointing == "auto":
        chosen.append("checkpointing" if layout.is_checkpointed else "no checkpointing")
    if not chosen:
        return reason
    return (
        f"{reason.removesuffix('.')}; with {' and '.join(chosen)} a worker needs"
        f" {amount(memory.total)} of {amount(usable)} usable."
    )


def _nothing_fits(
    layout: Layout,
    memory: Memory,
    usable: int,
    batch_problem: Callable[[int, int], BrokenRule | None],
) -> LayoutProblem:
    size, micro_batch = layout.partition_size, layout.micro_batch_size
    value = f"partition_size {size} with micro-batches of {micro_batch}"
    if against := batch_problem(size, micro_batch):
        remedy = against.remedy or "Change training.global_batch_size or partition_size."
        return LayoutProblem(value, against.rule, remedy)
    return LayoutProblem(
        value,
        f"it needs {amount(memory.total)} a worker, but {amount(usable)} is usable.",
        "Choose a larger partition_size or leave it at 'auto', or give each worker more memory.",
    )
