"""The goals of the comparison, as ratios of medians of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.network.layouts import full_sharding, is_planned, parse_layout
from benchmarks.network.measure import Measured

__all__ = ["Goal", "evaluate"]

_BYTES_TOLERANCE = 0.01
"""Acknowledgements and packet headers differ from step to step by a few tenths of a per cent."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal on one network.

    Args:
        name: What is compared, and where.
        wanted: Smallest ratio that reaches the goal.
        ratio: What was measured; none where a system is missing.
    """

    name: str
    wanted: float
    ratio: float | None

    @property
    def is_reached(self) -> bool | None:
        """Whether it is reached; none where it was not measured."""
        return None if self.ratio is None else self.ratio >= self.wanted


@dataclass(frozen=True, slots=True)
class _Network:
    """The results of one layout and link."""

    layout: str
    link_mbit: float | None
    results: dict[str, Measured]

    @property
    def place(self) -> str:
        link = "unshaped" if self.link_mbit is None else f"{self.link_mbit:g} Mbit/s"
        return f"{self.layout}, {link}"

    @property
    def workers_per_node(self) -> int:
        return parse_layout(self.layout).workers_per_node

    @property
    def world_size(self) -> int:
        return parse_layout(self.layout).world_size

    def faster(self, ours: str, theirs: str, wanted: float) -> Goal:
        """Throughput of one system over another's."""
        return self._compare("speed", ours, theirs, wanted, lambda result: result.step_s)

    def leaner(self, ours: str, theirs: str, wanted: float) -> Goal:
        """Bytes that another system sends over one's own."""
        return self._compare("bytes", ours, theirs, wanted, lambda result: result.bytes_out)

    def _compare(
        self,
        what: str,
        ours: str,
        theirs: str,
        wanted: float,
        cost: Callable[[Measured], float],
    ) -> Goal:
        mine, other = self.results.get(ours), self.results.get(theirs)
        ratio = cost(other) / cost(mine) if mine is not None and other is not None else None
        return Goal(f"{self.place}: {what} of {ours} to {theirs}", wanted, ratio)


def evaluate(results: Sequence[Measured]) -> list[Goal]:
    """Return the goals of every network that was measured."""
    goals: list[Goal] = []
    for place in dict.fromkeys((result.layout, result.link_mbit) for result in results):
        here = [result for result in results if (result.layout, result.link_mbit) == place]
        working = {result.system: result for result in here if result.error is None}
        goals += _goals_of(_Network(*place, working))
    return goals


def _goals_of(network: _Network) -> Iterator[Goal]:
    in_node, whole = f"mics p={network.workers_per_node}", f"mics p={network.world_size}"
    if (network.layout, network.link_mbit) == ("4x2", 200):
        yield network.faster(in_node, "fsdp2 full", 5.0)
        yield network.faster(in_node, "fsdp2 2d deferred", 1.1)
    if (network.layout, network.link_mbit) == ("2x4", 200):
        yield network.faster(whole, "fsdp2 full", 1.5)
    for name in network.results:
        if is_planned(name):
            yield network.leaner(name, "fsdp2 2d deferred", 1 - _BYTES_TOLERANCE)
    others = [result for name, result in network.results.items() if name != "mics auto"]
    if others:
        best = min(others, key=lambda result: result.step_s)
        yield network.faster("mics auto", best.system, 0.95)
    if network.link_mbit is None:
        yield network.faster(in_node, "fsdp2 2d deferred", 0.99)
        # The same resharding on both sides: what is gathered stays, or nothing does.
        yield network.faster(in_node, "fsdp2 2d deferred kept", 0.99)
        fully_sharded = full_sharding(network.world_size)
        if fully_sharded in network.results:
            yield network.faster(fully_sharded, "fsdp2 full", 0.99)
        return
    # Like with like, and the planner's choice with each.
    yield network.faster(whole, "deepspeed zero3", 1.0)
    yield network.faster(in_node, "deepspeed mics", 1.0)
    yield network.faster(whole, f"deepspeed mics p={network.world_size}", 1.0)
    for name in network.results:
        if name.startswith("deepspeed"):
            yield network.faster("mics auto", name, 1.0)
