"""Enumerates the layouts that a job and a cluster allow, and turns down those that cannot be.

A layout is a partition size, a number of groups, a micro-batch size, whether activations are kept,
and a strategy. Whatever the job fixes is not varied. Three rules keep the number of layouts small:

- Routes are tried all flat, all hierarchical, and each collective by the faster of its two; since a
  step never gets longer when one collective gets shorter, no other mixture is faster.
- Micro-batch sizes are powers of two.
- Of one kind of layout, micro-batches above the first that does not fit the memory are not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mics_core.errors import BrokenRule
from mics_core.planner.amounts import amount
from mics_core.planner.collectives import Span, all_gather, reduce_scatter, span_of
from mics_core.planner.footprint import memory_of, usable_bytes
from mics_core.planner.layout import (
    ClusterShape,
    NodeShape,
    check_partition_size,
    num_groups_held,
)
from mics_core.planner.memory import compute_bytes_per_number, reduce_bytes_per_number
from mics_core.planner.prediction import Layout, Memory, Workload
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.shape import ModelShape
from mics_core.planner.strategy import Accumulation, Reshard, Route, Strategy
from mics_core.planner.words import described

__all__ = [
    "Choices",
    "Pins",
    "Refused",
    "candidates",
    "held_up_by_batch",
    "num_groups_of",
    "stage_problem",
    "strategies",
]

_LARGEST_MICRO_BATCH = 1024
_RESHARDS: tuple[Reshard, ...] = ("always", "node", "never")
_ACCUMULATIONS: tuple[Accumulation, ...] = ("group", "node")
_ROUTES: tuple[Route, ...] = ("hierarchical", "flat")


@dataclass(frozen=True, slots=True)
class Pins:
    """What a job fixes of its layout; `auto` leaves it to the planner."""

    partition_size: int | Literal["auto"] = "auto"
    micro_batch_size: int | Literal["auto"] = "auto"
    activation_checkpointing: bool | Literal["auto"] = "auto"
    reshard: Reshard | Literal["auto"] = "auto"
    accumulation: Accumulation | Literal["auto"] = "auto"
    hierarchical: Literal["auto", "always", "never"] = "auto"
    largest_groups: int | None = None
    """Partition groups that the job may have at most; none for as many as the cluster holds."""
    asks_for_one_group: bool = False
    """Whether the job asks for one as it stands, though it is planned for as many as the cluster
    holds; the plan then says so."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What is planned: a model and a workload on a cluster, and what is fixed."""

    model: ModelShape
    workload: Workload
    cluster: ClusterProfile
    pins: Pins = Pins()
    nodes: ClusterShape | None = None
    """The living nodes, whose placement rules then count; none for the cluster's own."""
    batch_problem: Callable[[int, int], BrokenRule | None] | None = None
    """Says why p and a micro-batch size do not suit the job's batch; none to ask that they divide
    it."""

    @property
    def shape(self) -> ClusterShape:
        """The nodes that placement goes by."""
        return self.nodes if self.nodes is not None else self.cluster.shape()

    @property
    def eventual_shape(self) -> ClusterShape:
        """The same nodes and those that the cluster is said to have beyond the living ones."""
        shape = self.shape
        missing = self.cluster.num_nodes - sum(shape.nodes_by_size.values())
        coming = (NodeShape(f"coming-{index}", self.k) for index in range(missing))
        return ClusterShape((*shape.nodes, *coming))

    @property
    def k(self) -> int:
        """Workers of a node; of the largest where they differ."""
        return self.cluster.workers_per_node

    def problem_of_batch(self, partition_size: int, micro_batch_size: int) -> BrokenRule | None:
        """Return why the batch does not divide so; None if it does."""
        if self.batch_problem is not None:
            return self.batch_problem(partition_size, micro_batch_size)
        samples, batch = partition_size * micro_batch_size, self.workload.global_batch_size
        if batch % samples:
            return BrokenRule(
                f"the global batch of {batch} is no multiple of {partition_size} ×"
                f" {micro_batch_size} samples.",
                "Change training.global_batch_size, training.micro_batch_size or partition_size.",
            )
        return None


@dataclass(frozen=True, slots=True)
class Refused:
    """A layout, or a kind of layouts, that cannot be."""

    partition_size: int
    what: str
    """Which layouts, in few words."""
    broken: BrokenRule
    """Why not, and perhaps what to do about it."""
    cause: Literal["placement", "strategy", "batch", "memory"]
    """The kind of reason."""
    memory: Memory | None = None
    """For a lack of memory: what a worker would need."""

    @property
    def reason(self) -> str:
        """Why not, as people read it."""
        return _sentence(str(self.broken))


def candidates(choices: Choices) -> Iterator[Layout | Refused]:
    """Yield every layout worth predicting and every refusal, by partition size ascending."""
    pins, shape = choices.pins, choices.shape
    if pins.partition_size == "auto" and choices.nodes is None and choices.cluster.num_nodes > 1:
        words = f"more than {choices.k} workers, but no multiple of {choices.k}"
        rule = "a partition group fits on one node or takes whole nodes of equal size."
        yield Refused(choices.k + 1, words, BrokenRule(rule), "placement")
    eventual = choices.eventual_shape
    for size in _sizes(choices, min(shape.num_workers, choices.workload.global_batch_size)):
        if problem := check_partition_size(size, shape):
            broken = BrokenRule(problem.rule, problem.remedy)
            yield Refused(size, f"p = {size}", broken, "placement")
            continue
        span = span_of(size, shape)
        if against := stage_problem(pins, span):
            yield Refused(size, f"p = {size}", against, "strategy")
        else:
            yield from _of_size(choices, size, span, num_groups_held(size, eventual))


def held_up_by_batch(choices: Choices) -> tuple[int, BrokenRule] | None:
    """Return the smallest partition size that the batch alone stands against, and how it does.

    Nodes hold it, it suits what the job fixes, and a layout of it fits the memory.
    """
    pins, shape, eventual = choices.pins, choices.shape, choices.eventual_shape
    usable = usable_bytes(choices.cluster.memory_bytes, choices.model)
    least = 1 if pins.micro_batch_size == "auto" else pins.micro_batch_size
    for size in _sizes(choices, shape.num_workers):
        broken = choices.problem_of_batch(size, least)
        if broken is None or check_partition_size(size, shape):
            continue
        span = span_of(size, shape)
        if stage_problem(pins, span):
            continue
        groups = _bounded(choices, size, least, num_groups_held(size, eventual))
        for kind in _kinds(choices, size, span):
            layout = replace(kind, num_groups=groups, micro_batch_size=least)
            if _memory(choices, layout, span).total <= usable:
                return size, broken
    return None


def _sizes(choices: Choices, largest: int) -> Iterable[int]:
    """Partition sizes to look at; on equal nodes those that cannot be placed are left out."""
    if choices.pins.partition_size != "auto":
        return (choices.pins.partition_size,)
    if choices.nodes is not None:
        return range(1, largest + 1)
    inside = range(1, min(choices.k, largest) + 1)
    return (*inside, *range(2 * choices.k, largest + 1, choices.k))


def num_groups_of(choices: Choices, partition_size: int, micro_batch_size: int) -> int:
    """Return the partition groups that a layout is planned with.

    All that the cluster holds, but no more than the job may have and than there are micro-batches.
    The whole cluster is counted on because the partition size is settled once, while groups come
    and go: it has to suit the largest number of them.
    """
    held = num_groups_held(partition_size, choices.eventual_shape)
    return _bounded(choices, partition_size, micro_batch_size, held)


def _bounded(choices: Choices, partition_size: int, micro_batch_size: int, held: int) -> int:
    """Return how many of the groups that the cluster holds a layout is planned with."""
    micro_batches = choices.workload.global_batch_size // (partition_size * micro_batch_size)
    bounds = [max(1, held), max(1, micro_batches)]
    if choices.pins.largest_groups is not None:
        bounds.append(choices.pins.largest_groups)
    return min(bounds)


def stage_problem(pins: Pins, span: Span) -> BrokenRule | None:
    """Return why a partition group on `span` cannot have what the job fixes, or None if it can."""
    pinned = [name for name in ("reshard", "accumulation") if getattr(pins, name) == "node"]
    if not pinned or span.has_stages:
        return None
    return BrokenRule(
        f"engine.{pinned[0]} 'node' needs a partition group over several nodes of several workers,"
        f" and this one takes {span.num_nodes} × {span.workers}.",
        "Leave it at 'auto', or choose a partition size over several whole nodes.",
    )


def strategies(choices: Choices, span: Span) -> Iterator[Strategy]:
    """Yield the strategies that suit a partition group on `span` and what the job fixes.

    Inside one node, and with one worker a node, there are no two stages: routes are flat, and
    nothing is kept or added up by node.
    """
    pins = choices.pins
    if not span.has_stages:
        yield from _strategies_without_stages(pins, span)
        return
    seen = set()
    for reshard in _RESHARDS if pins.reshard == "auto" else (pins.reshard,):
        for accumulation in _ACCUMULATIONS if pins.accumulation == "auto" else (pins.accumulation,):
            for gathers, scatters in _routes(choices, span):
                if reshard == "node" and "flat" in gathers:
                    continue
                if accumulation == "node" and "flat" in scatters:
                    continue
                strategy = Strategy(reshard, accumulation, *gathers, *scatters)
                if strategy not in seen:
                    seen.add(strategy)
                    yield strategy


def _strategies_without_stages(pins: Pins, span: Span) -> Iterator[Strategy]:
    if span.size > 1 and pins.reshard in ("auto", "never"):
        yield Strategy(reshard="never")
    if span.size == 1 or pins.reshard != "never":
        yield Strategy()


_Routes = tuple[Route, Route]


def _routes(choices: Choices, span: Span) -> Iterator[tuple[_Routes, _Routes]]:
    """Yield routes of the gathers and of the scatters, of a block and of the root each."""
    hierarchical: _Routes = ("hierarchical", "hierarchical")
    flat: _Routes = ("flat", "flat")
    if choices.pins.hierarchical != "never":
        yield hierarchical, hierarchical
    if choices.pins.hierarchical != "always":
        yield flat, flat
    if choices.pins.hierarchical == "auto":
        gathers, scatters = _faster_routes(choices, span)
        yield gathers, scatters
        yield hierarchical, scatters
        yield gathers, hierarchical


def _faster_routes(choices: Choices, span: Span) -> tuple[_Routes, _Routes]:
    precision, cluster = choices.workload.precision, choices.cluster
    compute, reduce = compute_bytes_per_number(precision), reduce_bytes_per_number(precision)
    units = (choices.model.block.parameters, choices.model.root.parameters)

    def gather(parameters: int) -> Route:
        times = {
            route: all_gather(parameters * compute, span, cluster, route).time_s
            for route in _ROUTES
        }
        return min(_ROUTES, key=times.__getitem__)

    def scatter(parameters: int) -> Route:
        times = {
            route: reduce_scatter(parameters * reduce, span, cluster, route).time_s
            for route in _ROUTES
        }
        return min(_ROUTES, key=times.__getitem__)

    return (gather(units[0]), gather(units[1])), (scatter(units[0]), scatter(units[1]))


def _of_size(choices: Choices, size: int, span: Span, held: int) -> Iterator[Layout | Refused]:
    """Yield the layouts of one placeable partition size, of which the cluster holds so many groups.

    Micro-batches that do not suit the batch are one refusal, with the reason of the smallest.
    """
    sizes = _micro_batches(choices, size)
    broken = {each: choices.problem_of_batch(size, each) for each in sizes}
    unsuited = [each for each in sizes if broken[each] is not None]
    if unsuited and (first := broken[unsuited[0]]) is not None:
        name = "micro-batch" if len(unsuited) == 1 else "micro-batches"
        what = f"p = {size}, {name} {', '.join(str(each) for each in unsuited)}"
        yield Refused(size, what, first, "batch")
    fitting = [each for each in sizes if broken[each] is None]
    if fitting:
        for kind in _kinds(choices, size, span):
            yield from _of_kind(choices, kind, span, held, fitting)


def _kinds(choices: Choices, size: int, span: Span) -> Iterator[Layout]:
    """Yield each choice of strategy and activations, as a layout of one sample and one group."""
    pinned = choices.pins.activation_checkpointing
    for is_checkpointed in (False, True) if pinned == "auto" else (pinned,):
        for strategy in strategies(choices, span):
            yield Layout(size, 1, 1, strategy, is_checkpointed)


def _micro_batches(choices: Choices, size: int) -> list[int]:
    pinned = choices.pins.micro_batch_size
    if pinned != "auto":
        return [pinned]
    largest = min(_LARGEST_MICRO_BATCH, max(1, choices.workload.global_batch_size // size))
    return [1 << exponent for exponent in range(largest.bit_length())]


def _of_kind(
    choices: Choices, kind: Layout, span: Span, held: int, micro_batches: Sequence[int]
) -> Iterator[Layout | Refused]:
    usable = usable_bytes(choices.cluster.memory_bytes, choices.model)
    for micro_batch in micro_batches:
        groups = _bounded(choices, kind.partition_size, micro_batch, held)
        layout = replace(kind, num_groups=groups, micro_batch_size=micro_batch)
        memory = _memory(choices, layout, span)
        if memory.total > usable:
            rule = f"it needs {_needs(memory, layout)} a worker of {amount(usable)} usable."
            what = described(layout)
            yield Refused(kind.partition_size, what, BrokenRule(rule), "memory", memory)
            return
        yield layout


def _memory(choices: Choices, layout: Layout, span: Span) -> Memory:
    return memory_of(choices.model, layout, choices.workload, span, choices.cluster.backend)


def _needs(memory: Memory, layout: Layout) -> str:
    held = memory.gathered + memory.gradients + memory.buckets + memory.update
    copies = f" + {amount(memory.copies)} of copies for others" if memory.copies else ""
    return (
        f"{amount(memory.total)} ({amount(memory.model_states)} of model states at p ="
        f" {layout.partition_size} + {amount(held)} of gathered units, gradients and update"
        f" + {amount(memory.activations)} of activations{copies})"
    )


def _sentence(text: str) -> str:
    """Begin with a capital, unless the first word is the name of a field."""
    first = text.split(" ", 1)[0]
    return text if "." in first or "_" in first else text[0].upper() + text[1:]
