"""The arithmetic of the weak-scaling benchmark: runs, rows, goals, and what the wire could cost.

[Note: could the network miss it]
Efficiency says something of communication only if a step would be longer without hiding it. What
leaves a node in a step is the second hop alone, an all-reduce of the gradients: `unhidden_share` is
its time on the link, as a share of a step that computes first and communicates afterwards. The
defaults are chosen so that it is a tenth among the most groups over the first link, and that an
engine which hides nothing would miss the goal by far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.goals import Goal
from benchmarks.network.measure import Measured

__all__ = [
    "FORWARD_S",
    "GOAL",
    "GROUPS",
    "LAYERS",
    "LINKS_MBIT",
    "NUM_MICRO_BATCHES",
    "NUM_STEPS",
    "OURS",
    "PARTITION_SIZE",
    "SYSTEMS",
    "TUNED",
    "VOCAB_SIZE",
    "WIDTH",
    "Emulated",
    "Run",
    "goals_of",
    "rows_of",
    "runs_of",
]

PARTITION_SIZE = 2
NUM_MICRO_BATCHES = 4
NUM_STEPS = 2
"""Measured steps of a turn, after one of warm-up."""
GOAL = 0.99
GROUPS = (2, 4, 8)
LINKS_MBIT = (200.0, 1000.0)
LAYERS, WIDTH, FORWARD_S = 8, 896, 0.15
VOCAB_SIZE = 64
"""Small, for nothing hides the gradient of the embedding: it is the last of backward."""

OURS = f"mics p={PARTITION_SIZE} planned=no reshard=never"
"""Not planned: the planner would time the emulated device for longer than the turn lasts. A bucket
of the usual size holds three of these eight layers, whose shards are 1.5 MiB each, and the last of
the three buckets has no backward left to hide behind: what is told of it has no goal."""
TUNED = f"{OURS} bucket_mib=1"
"""A bucket for each layer."""
SYSTEMS = (OURS, TUNED, "fsdp2 full")


@dataclass(frozen=True, slots=True)
class Run:
    """Some systems among a number of partition groups over one link."""

    link_mbit: float
    num_groups: int
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Emulated:
    """The emulated model's size and speed.

    Args:
        layers: Layers.
        width: Width of a layer; its square is most of its parameters.
        forward_s: Time of a layer's forward; its backward takes twice as long.
        vocab_size: Rows of the embedding, and columns of the head.
    """

    layers: int = LAYERS
    width: int = WIDTH
    forward_s: float = FORWARD_S
    vocab_size: int = VOCAB_SIZE

    @property
    def num_parameters(self) -> int:
        """Of layers with their norms, embedding and head."""
        return self.layers * (self.width + 2) * self.width + 2 * self.vocab_size * self.width

    @property
    def compute_s(self) -> float:
        """Emulated computing of a step."""
        return NUM_MICRO_BATCHES * self.layers * 3 * self.forward_s

    def wire_s(self, num_groups: int, link_mbit: float) -> float:
        """Return how long a node's link carries the second hop of a step, in fp32."""
        sent_bytes = 2 * (num_groups - 1) / num_groups * 4 * self.num_parameters
        return sent_bytes * 8 / (link_mbit * 1e6)

    def unhidden_share(self, num_groups: int, link_mbit: float) -> float:
        """Return the wire's share of a step that hides none of it."""
        wire_s = self.wire_s(num_groups, link_mbit)
        return wire_s / (self.compute_s + wire_s)


def runs_of(links: Sequence[float], groups: Sequence[int], systems: Sequence[str]) -> list[Run]:
    """Return what is run: all over the first link, the last of ours at the ends over others.

    Over a faster link the same processors have the same work, so what is lost there too is not the
    first link's doing.
    """
    runs = [Run(links[0], number, tuple(systems)) for number in groups]
    ours = tuple(system for system in systems if _is_ours(system))[-1:]
    for link_mbit in links[1:]:
        runs += [Run(link_mbit, number, ours) for number in sorted({groups[0], groups[-1]})]
    return runs


def rows_of(results: Mapping[Run, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Return the rows of the results' file; a system that failed has `error` in its row.

    `efficiency` counts from the fewest groups over the same link, and is none where there is no
    result of those.
    """
    rows: list[dict[str, Any]] = []
    fewest = _fewest((run.link_mbit, run.num_groups) for run in results)
    base = {
        (result.system, run.link_mbit): result.step_s
        for run, measured in results.items()
        for result in measured
        if result.error is None and run.num_groups == fewest[run.link_mbit]
    }
    for run, measured in results.items():
        for result in measured:
            row: dict[str, Any] = {
                "system": result.system,
                "groups": run.num_groups,
                "link_mbit": run.link_mbit,
            }
            if result.error is not None:
                rows.append(row | {"error": result.error})
                continue
            # The work of a group is the same among all numbers of groups.
            first_s = base.get((result.system, run.link_mbit))
            row["step_s_median"] = result.step_s
            row["efficiency"] = None if first_s is None else first_s / result.step_s
            rows.append(row)
    return rows


def goals_of(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Return the goals: our efficiency among more than the fewest groups, on every link.

    That with buckets of the usual size is told beside them, see `OURS`.
    """
    fewest = _fewest((row["link_mbit"], row["groups"]) for row in rows)
    return [
        Goal(
            f"{row['system']}, {row['groups']} groups, {row['link_mbit']:g} Mbit/s: efficiency",
            None if row["system"] == OURS else GOAL,
            row.get("efficiency"),
            _why_missing(row, fewest[row["link_mbit"]]),
        )
        for row in rows
        if _is_ours(row["system"]) and row["groups"] > fewest[row["link_mbit"]]
    ]


def _why_missing(row: Mapping[str, Any], fewest: int) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    return f"no result among {fewest} groups" if row["efficiency"] is None else ""


def _fewest(places: Iterable[tuple[float, int]]) -> dict[float, int]:
    """Return the fewest groups of each link."""
    found: dict[float, int] = {}
    for link_mbit, groups in places:
        found[link_mbit] = min(groups, found.get(link_mbit, groups))
    return found


def _is_ours(system: str) -> bool:
    return system.startswith("mics")
