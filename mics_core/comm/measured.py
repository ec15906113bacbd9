"""How a probe measures, what it measured, and the cluster file that follows from it.

Pure arithmetic: timings of ring all-gathers become a latency and a bandwidth (the alpha-beta model
of Hockney, 1994, as Thakur et al., 2005, apply it to rings), and these become a `ClusterSpec`. The
measurement itself is `mics_core.comm.probing`; this half is apart from it so that a command line
can read the result without loading torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mics_core.errors import LayoutError, Problem
from mics_core.spec.cluster import ClusterSpec, LinkSpec
from mics_core.spec.peaks import PeakTflops

__all__ = [
    "ClusterFindings",
    "LinkFit",
    "ProbeReport",
    "ProbeSettings",
    "SizeTimings",
    "cluster_findings",
    "fit_link",
    "link_spec",
    "unmeasurable_link",
]

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_BYTES_PER_S_OF_GBIT = 1e9 / 8
_FIT_ROUNDS = 30
_ROUGH_FACTOR = 2.0
_MAX_BYTES_PER_S = 1e13
"""Faster than any link; what a fit answers when longer messages took no longer."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How thoroughly to measure.

    Args:
        message_bytes: What each rank contributes to the all-gathers, ascending.
        repetitions: Timed windows of each size.
        window_s: Small messages are sent back to back until a window lasts about this long, which
            hides how unevenly the ranks leave a barrier.
        size_budget_s: Sizes whose windows would take longer than this together are left out,
            except the smallest two, which a fit needs.
        compute_s: Time for the matrix products, and again for a model's block.
    """

    message_bytes: tuple[int, ...] = (
        *(4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB),
        *(1 * _MIB, 4 * _MIB, 16 * _MIB),
    )
    repetitions: int = 7
    window_s: float = 0.02
    size_budget_s: float = 5.0
    compute_s: float = 2.0

    @classmethod
    def quick(cls) -> ProbeSettings:
        """Return settings for a first impression, in a few seconds."""
        return cls(
            message_bytes=(4 * _KIB, 64 * _KIB, 512 * _KIB, 2 * _MIB),
            repetitions=3,
            size_budget_s=2.0,
            compute_s=0.5,
        )


@dataclass(frozen=True, slots=True)
class SizeTimings:
    """All-gathers of one message size.

    Args:
        bytes_per_rank: What each rank contributes.
        times_s: Seconds of one all-gather, one figure a repetition.
    """

    bytes_per_rank: int
    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle repetition."""
        return statistics.median(self.times_s)

    @property
    def spread(self) -> float:
        """Half of the distance between the repetitions' quartiles, as a share of the median."""
        if len(self.times_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times_s, n=4, method="inclusive")
        return (high - low) / 2.0 / self.median_s


@dataclass(frozen=True, slots=True)
class LinkFit:
    """Latency and bandwidth of one ring while its neighbours run at the same time.

    Args:
        ring_size: Ranks of the ring (n).
        rings_per_node: Rings that shared the link: 1 within a node, k between nodes.
        latency_s: Time of one round without content (alpha).
        bytes_per_s: Bandwidth of one ring (beta).
        timings: What the two were fitted to.
    """

    ring_size: int
    rings_per_node: int
    latency_s: float
    bytes_per_s: float
    timings: tuple[SizeTimings, ...]

    def all_gather_s(self, bytes_per_rank: float) -> float:
        """Return the predicted time of a ring all-gather: (n - 1) · (alpha + bytes / beta)."""
        return (self.ring_size - 1) * (self.latency_s + bytes_per_rank / self.bytes_per_s)

    @property
    def worst_factor(self) -> float:
        """Largest ratio, either way, between a measured median and its prediction; 1 is perfect."""
        ratios = [size.median_s / self.all_gather_s(size.bytes_per_rank) for size in self.timings]
        return max(max(ratio, 1.0 / ratio) for ratio in ratios)

    @property
    def spread(self) -> float:
        """Median over the sizes of the repetitions' spread."""
        return statistics.median(size.spread for size in self.timings)


def fit_link(ring_size: int, rings_per_node: int, timings: Sequence[SizeTimings]) -> LinkFit:
    """Fit latency and bandwidth to the medians of ring all-gathers.

    The squared error of the *logarithms* is least: small messages, which tell the latency, count as
    much as large ones, and a link that is no straight line is missed by the same factor above and
    below. A figure that noise drives below zero is set to its bound, and the other fitted alone.

    Args:
        ring_size: Ranks of the ring, at least 2.
        rings_per_node: Rings that shared the link.
        timings: At least one size.
    """
    assert ring_size > 1, ring_size
    assert timings, "a fit needs timings"
    sizes = [float(size.bytes_per_rank) for size in timings]
    rounds_s = [max(size.median_s, 1e-9) / (ring_size - 1) for size in timings]
    weights = [1.0 / round_s**2 for round_s in rounds_s]
    latency_s, s_per_byte = _weighted_line(sizes, rounds_s, weights)
    for _ in range(_FIT_ROUNDS):  # iteratively reweighted to the errors of the logarithms
        model_s = [latency_s + size * s_per_byte for size in sizes]
        weights = [_log_weight(model, t) for model, t in zip(model_s, rounds_s, strict=True)]
        latency_s, s_per_byte = _weighted_line(sizes, rounds_s, weights)
    return LinkFit(ring_size, rings_per_node, latency_s, 1.0 / s_per_byte, tuple(timings))


def _log_weight(model_s: float, round_s: float) -> float:
    """Weight under which the squared error has the slope of the squared error of the logarithm."""
    ratio = model_s / round_s
    if abs(ratio - 1.0) < 1e-6:
        return 1.0 / model_s**2
    return math.log(ratio) / (model_s * (model_s - round_s))


def _weighted_line(
    sizes: Sequence[float], rounds_s: Sequence[float], weights: Sequence[float]
) -> tuple[float, float]:
    """Return the intercept and slope of least weighted squared error, both within their bounds."""
    rows = list(zip(sizes, rounds_s, weights, strict=True))
    total = sum(weights)
    mean_size = sum(w * x for x, _, w in rows) / total
    mean_s = sum(w * t for _, t, w in rows) / total
    variance = sum(w * (x - mean_size) ** 2 for x, _, w in rows)
    slope = 0.0
    if variance > 0.0:
        slope = sum(w * (x - mean_size) * (t - mean_s) for x, t, w in rows) / variance
    intercept = mean_s - slope * mean_size
    if variance == 0.0 or intercept < 0.0:  # one size cannot tell the two apart: all is bandwidth
        intercept = 0.0
        slope = sum(w * x * t for x, t, w in rows) / sum(w * x * x for x, _, w in rows)
    if slope < 1.0 / _MAX_BYTES_PER_S:
        slope = 1.0 / _MAX_BYTES_PER_S
        intercept = max(0.0, mean_s - slope * mean_size)
    return intercept, slope


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the workers of a world measured together; the same on every rank.

    Args:
        nodes: Names of the nodes, in the order of their first ranks.
        workers_per_node: k.
        intra_node: Within each node, all nodes at once; none with one worker a node.
        inter_node: Between workers of the same local rank, all k rings at once; none on one node.
        tflops: Each worker's rate of matrix products in TFLOP/s, all busy at once, by rank; in bf16
            on GPUs, in fp32 on CPUs.
        block_tflops: Each worker's rate in forward and backward of a block like GPT-2's, all busy,
            by rank.
        memory_bytes_per_s: Bytes that each worker reads and writes in a second, all busy, by rank.
        memory_bytes: Memory of the smallest device; none on the CPU, whose workers share a node's.
        seconds: What the measurement took.
        other_tflops: Each worker's rate in other precisions, by precision; on GPUs.
    """

    nodes: tuple[str, ...]
    workers_per_node: int
    intra_node: LinkFit | None
    inter_node: LinkFit | None
    tflops: tuple[float, ...]
    block_tflops: tuple[float, ...]
    memory_bytes_per_s: tuple[float, ...]
    memory_bytes: int | None
    seconds: float
    other_tflops: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterFindings:
    """The cluster file of a report, and what a reader must know beside it, one sentence each."""

    spec: ClusterSpec
    notes: tuple[str, ...]


def cluster_findings(
    report: ProbeReport,
    *,
    name: str,
    memory_gib: float | None = None,
    inter_node: LinkSpec | None = None,
) -> ClusterFindings:
    """Return the cluster file that a report gives.

    Args:
        report: What was measured.
        name: The cluster's name.
        memory_gib: Memory of one worker; may be left out where the report has it.
        inter_node: The link between nodes where it is stated rather than measured.

    Raises:
        LayoutError: The link between nodes or the memory is neither measured nor stated.
    """
    notes = []
    if memory_gib is None and report.memory_bytes is not None:
        memory_gib = report.memory_bytes / _GIB
    if memory_gib is None:
        raise LayoutError(
            [
                Problem(
                    "memory_gib",
                    "(nothing)",
                    "the memory of a worker on the CPU is a share that nobody measured.",
                    "State it with --memory-gib.",
                )
            ]
        )
    if inter_node is not None:
        notes.append("inter_node was stated, not measured.")
    elif report.inter_node is not None:
        inter_node = link_spec(report.inter_node)
    else:
        raise unmeasurable_link(len(report.nodes))
    for kind, fit in (("intra_node", report.intra_node), ("inter_node", report.inter_node)):
        if fit is not None and fit.worst_factor > _ROUGH_FACTOR:
            notes.append(
                f"{kind} is rough: a message size took {fit.worst_factor:.1f} times more or less"
                " than latency and bandwidth say; measure again on an idle cluster."
            )
    if report.intra_node is not None:
        intra_node = link_spec(report.intra_node)
    else:
        intra_node = inter_node
        notes.append(
            "intra_node was set equal to inter_node: with one worker a node there is no link"
            " within a node to measure."
        )
    peak_tflops = statistics.median(report.tflops)
    spec = ClusterSpec(
        name=name,
        nodes=len(report.nodes),
        workers_per_node=report.workers_per_node,
        memory_gib=_rounded(memory_gib),
        peak_tflops=_peaks(peak_tflops, report.other_tflops),
        # The slowest worker's, for all wait for it. Other work may have slowed the products alone.
        efficiency=min(1.0, _rounded(min(report.block_tflops) / peak_tflops)),
        memory_gb_per_s=_rounded(statistics.median(report.memory_bytes_per_s) / 1e9),
        intra_node=intra_node,
        inter_node=inter_node,
    )
    return ClusterFindings(spec, tuple(notes))


def _peaks(main: float, others: Mapping[str, tuple[float, ...]]) -> float | PeakTflops:
    """Return one peak for every precision, or one for each where others were measured too."""
    if not others:
        return _rounded(main)
    rates = {precision: _rounded(statistics.median(rates)) for precision, rates in others.items()}
    return PeakTflops(bf16=_rounded(main), **rates)


def link_spec(fit: LinkFit) -> LinkSpec:
    """Return a link as the cluster file has it: the bandwidth is that of all its rings together."""
    bytes_per_s = fit.rings_per_node * fit.bytes_per_s
    return LinkSpec(
        bandwidth_gbit_per_s=_rounded(bytes_per_s / _BYTES_PER_S_OF_GBIT),
        latency_us=_rounded(fit.latency_s * 1e6),
    )


def unmeasurable_link(num_nodes: int) -> LayoutError:
    """Return the refusal of a probe that has too few nodes to see the link between them."""
    return LayoutError(
        [
            Problem(
                "inter_node",
                f"a cluster of {num_nodes} node",
                "the link between nodes is measured between at least two nodes.",
                "Add a node, or state the link with --inter-gbit and --inter-latency-us.",
            )
        ]
    )


def _rounded(value: float) -> float:
    """Four digits: more would claim an accuracy that no such measurement has."""
    return float(f"{value:.4g}")
