"""The goals of the comparison, as ratios of medians of one run.

[Note: what should have run]
Which systems a network's goals need is known before anything runs: those of `default_systems`, and
what was run beside them. One that failed or was not run leaves its goals without a ratio and with
the reason, and such a goal counts as missed, see [Note: nothing passes unmeasured] in
`benchmarks.harness.goals`.

[Note: the same layout]
Unshaped, our engine is held against bare FSDP2 where both do the same with what they gather and
reduce. What ours did is read from the layouts that the planner recorded, turn by turn, and not from
the system's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.goals import Goal
from benchmarks.network.layouts import (
    default_systems,
    full_sharding,
    is_planned,
    parse_layout,
)

__all__ = ["evaluate"]

_BYTES_TOLERANCE = 0.01
"""Acknowledgements and packet headers differ from step to step by a few tenths of a per cent."""
_FULL, _DEFERRED, _KEPT = "fsdp2 full", "fsdp2 2d deferred", "fsdp2 2d deferred kept"
_MESHES = {"never": _KEPT, "always": _DEFERRED}
"""By what our engine does with gathered parameters: the mesh that does the same."""


@dataclass(frozen=True, slots=True)
class _Network:
    """The rows of one layout and link, by system."""

    layout: str
    link_mbit: float | None
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def place(self) -> str:
        link = "unshaped" if self.link_mbit is None else f"{self.link_mbit:g} Mbit/s"
        return f"{self.layout}, {link}"

    @property
    def systems(self) -> list[str]:
        """Those that should have run, and what else did."""
        expected = default_systems(parse_layout(self.layout), self.link_mbit)
        return list(dict.fromkeys([*expected, *self.rows]))

    def faster(self, ours: str, theirs: str, wanted: float | None) -> Goal:
        """Throughput of one system over another's."""
        return self._compare("speed", ours, theirs, wanted, "step_s_median")

    def leaner(self, ours: str, theirs: str, wanted: float | None) -> Goal:
        """Bytes that another system sends over one's own."""
        return self._compare("bytes", ours, theirs, wanted, "bytes_out_per_node_per_step")

    def beside_the_fastest(self, ours: str, wanted: float) -> Goal:
        """Throughput over that of the fastest other system, of which none may be missing.

        Our full sharding may: it is there for its own comparison alone.
        """
        may_miss = full_sharding(parse_layout(self.layout).world_size)
        others = [system for system in self.systems if system not in (ours, may_miss)]
        if not self._why_missing(may_miss):
            others.append(may_miss)
        if reason := self._why_missing(*others):
            return Goal(f"{self.place}: speed of {ours} to the fastest other", wanted, None, reason)
        best = min(others, key=lambda system: self.rows[system]["step_s_median"])
        return self._compare(
            "speed", ours, best, wanted, "step_s_median", f"the fastest other, {best}"
        )

    def alike(self, ours: str, peers: Mapping[str, str], wanted: float) -> Goal:
        """Throughput over that of the peer with the same layout; see [Note: the same layout].

        Args:
            ours: Our system.
            peers: By resharding, who does the same.
            wanted: Smallest ratio that reaches the goal.
        """
        reason = self._why_missing(ours)
        ways = set() if reason else _ways_of(self.rows[ours])
        peer = peers.get(next(iter(ways))) if len(ways) == 1 else None
        if peer is None:
            words = " and ".join(sorted(ways)) or "by no layout that was recorded"
            reason = reason or f"{ours} gathered and reduced {words}, which no peer does"
            return Goal(
                f"{self.place}: speed of {ours} to FSDP2 of the same layout", wanted, None, reason
            )
        return self._compare(
            "speed", ours, peer, wanted, "step_s_median", f"{peer}, the same layout"
        )

    def _compare(
        self, what: str, ours: str, theirs: str, wanted: float | None, cost: str, words: str = ""
    ) -> Goal:
        reason = self._why_missing(ours, theirs)
        ratio = None if reason else self.rows[theirs][cost] / self.rows[ours][cost]
        return Goal(f"{self.place}: {what} of {ours} to {words or theirs}", wanted, ratio, reason)

    def _why_missing(self, *systems: str) -> str:
        """Return which of these have no result, and why; nothing if all have."""
        reasons = []
        for system in systems:
            if system not in self.rows:
                reasons.append(f"{system} was not run")
            elif "error" in self.rows[system]:
                reasons.append(f"{system} failed: {self.rows[system]['error']}")
        return "; ".join(reasons)


def evaluate(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Return the goals of every network that was measured.

    Args:
        rows: Of the results' file, as `Measured.as_row` gives them.
    """
    goals: list[Goal] = []
    for place in dict.fromkeys((row["layout"], row["link_mbit"]) for row in rows):
        here = [row for row in rows if (row["layout"], row["link_mbit"]) == place]
        goals += _goals_of(_Network(*place, {row["system"]: row for row in here}))
    return goals


def _goals_of(network: _Network) -> Iterator[Goal]:
    layout = parse_layout(network.layout)
    in_node, whole = f"mics p={layout.workers_per_node}", f"mics p={layout.world_size}"
    if (network.layout, network.link_mbit) == ("4x2", 200):
        yield network.faster(in_node, _FULL, 5.0)
        yield network.faster(in_node, _DEFERRED, 1.1)
        # The strongest that FSDP2 can be made: no goal, but nobody should have to look for it.
        yield network.faster(in_node, _KEPT, None)
    if (network.layout, network.link_mbit) == ("2x4", 200):
        yield network.faster(whole, _FULL, 1.5)
    for system in network.systems:
        if is_planned(system):
            yield network.leaner(system, _DEFERRED, 1 - _BYTES_TOLERANCE)
    yield network.beside_the_fastest("mics auto", 0.95)
    if network.link_mbit is None:
        yield network.faster(in_node, _DEFERRED, 0.99)
        yield network.alike(in_node, _MESHES, 0.99)
        yield network.alike(full_sharding(layout.world_size), {"always": _FULL}, 0.99)
        return
    # Like with like, and the planner's choice with each.
    yield network.faster(whole, "deepspeed zero3", 1.0)
    yield network.faster(in_node, "deepspeed mics", 1.0)
    yield network.faster(whole, f"deepspeed mics p={layout.world_size}", 1.0)
    for system in network.systems:
        if system.startswith("deepspeed"):
            yield network.faster("mics auto", system, 1.0)


def _ways_of(row: Mapping[str, Any]) -> set[str]:
    """Return how our engine resharded in each turn, or in words what else it did than FSDP2."""
    ways = set()
    for question in row.get("predicted_from", []):
        layout, strategy = question["layout"], dict(question["layout"]["strategy"])
        reshard, accumulation = strategy.pop("reshard"), strategy.pop("accumulation")
        if layout["micro_batch_size"] != 1 or layout["is_checkpointed"]:
            ways.add("with another micro-batch or checkpointing")
        elif accumulation != "group" or set(strategy.values()) != {"flat"}:
            ways.add("by node")
        else:
            ways.add(reshard)
    return ways
