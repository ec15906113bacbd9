"""From timings to a cluster file: the fit finds the latency and bandwidth behind them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mics_core.comm.measured import (
    LinkFit,
    ProbeReport,
    SizeTimings,
    cluster_findings,
    fit_link,
    link_spec,
)
from mics_core.errors import LayoutError
from mics_core.spec.cluster import LinkSpec, parse_cluster_spec
from mics_core.spec.peaks import PeakTflops
from mics_core.spec.planning import profile_of

pytestmark = pytest.mark.pure

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
STATED = LinkSpec(bandwidth_gbit_per_s=10.0, latency_us=50.0)


def timings(
    ring_size: int,
    latency_s: float,
    bytes_per_s: float,
    *,
    noise: float = 0.0,
    seed: int = 0,
    sizes: tuple[int, ...] = SIZES,
) -> list[SizeTimings]:
    """Timings of a link with these figures; `noise` is the largest deviation of a repetition."""
    chance = random.Random(seed)
    return [
        SizeTimings(
            size,
            tuple(
                (ring_size - 1)
                * (latency_s + size / bytes_per_s)
                * (1.0 + chance.uniform(-noise, noise))
                for _ in range(5)
            ),
        )
        for size in sizes
    ]


def report_of(
    intra: LinkFit | None, inter: LinkFit | None, nodes: int = 2, memory_bytes: int | None = 8 << 30
) -> ProbeReport:
    names = tuple(f"n{number}" for number in range(nodes))
    return ProbeReport(
        names,
        2,
        intra,
        inter,
        tflops=(0.1, 0.3, 0.2, 9.0),
        block_tflops=(0.2, 0.1, 0.15, 6.0),
        memory_bytes_per_s=(2e9, 4e9, 3e9, 3e9),
        memory_bytes=memory_bytes,
        seconds=1.0,
    )


# The fit.


@pytest.mark.parametrize("ring_size", [2, 3, 16])
@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(5e-6, 2e10), (1e-3, 2.5e7), (0.0, 1e9)])
def test_the_fit_recovers_latency_and_bandwidth(
    ring_size: int, latency_s: float, bytes_per_s: float
) -> None:
    fit = fit_link(ring_size, 1, timings(ring_size, latency_s, bytes_per_s))
    assert fit.latency_s == pytest.approx(latency_s, rel=1e-6, abs=1e-12)
    assert fit.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-6)
    assert fit.worst_factor == pytest.approx(1.0)
    assert fit.spread == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_fit_recovers_both_through_noise(seed: int) -> None:
    fit = fit_link(4, 2, timings(4, 2e-4, 1e8, noise=0.3, seed=seed))
    assert fit.latency_s == pytest.approx(2e-4, rel=0.25)
    assert fit.bytes_per_s == pytest.approx(1e8, rel=0.25)
    assert 1.0 < fit.worst_factor < 1.5
    assert 0.0 < fit.spread < 0.3


def test_a_link_that_is_no_straight_line_is_missed_alike_above_and_below() -> None:
    straight = timings(2, 1e-4, 1e9)
    bent = [*straight[:-1], SizeTimings(SIZES[-1], (4 * straight[-1].median_s,))]
    fit = fit_link(2, 1, bent)
    ratios = [size.median_s / fit.all_gather_s(size.bytes_per_rank) for size in bent]
    assert max(ratios) == pytest.approx(fit.worst_factor)
    assert 1.3 < max(ratios) < 3.0
    assert 1.3 < 1.0 / min(ratios) < 3.0


def test_figures_stay_possible_whatever_the_timings_say() -> None:
    falling = [SizeTimings(4 << 10, (2e-3,)), SizeTimings(1 << 20, (1e-3,))]
    steep = [SizeTimings(4 << 10, (1e-6,)), SizeTimings(1 << 20, (1.0,))]
    for odd in (falling, steep, falling[:1], [SizeTimings(1, (0.0,)), SizeTimings(2, (0.0,))]):
        fit = fit_link(2, 1, odd)
        assert fit.latency_s >= 0.0
        assert 0.0 < fit.bytes_per_s < float("inf")
        assert link_spec(fit).bandwidth_gbit_per_s > 0.0


def test_a_nodes_bandwidth_is_that_of_all_its_rings() -> None:
    link = link_spec(fit_link(2, 4, timings(2, 123.456e-6, 1e9)))
    assert link.bandwidth_gbit_per_s == pytest.approx(4 * 8.0)
    assert link.latency_us == 123.5


# From a report to a cluster file.


def test_a_report_becomes_a_cluster() -> None:
    intra, inter = fit_link(2, 1, timings(2, 1e-5, 2e9)), fit_link(2, 2, timings(2, 1e-4, 1e9))
    findings = cluster_findings(report_of(intra, inter), name="x")
    assert findings.notes == ()
    assert findings.spec.peak_tflops == 0.25
    assert findings.spec.efficiency == 0.4  # the slowest worker, over the peak
    assert findings.spec.memory_gb_per_s == 3
    assert findings.spec.memory_gib == 8.0
    assert findings.spec.intra_node == link_spec(intra)
    assert findings.spec.inter_node == link_spec(inter)
    assert cluster_findings(report_of(intra, inter), name="x", memory_gib=3).spec.memory_gib == 3


def test_rates_in_several_precisions_become_one_peak_each() -> None:
    inter = fit_link(2, 1, timings(2, 1e-4, 1e9))
    rates = {"fp32": (0.02, 0.04, 0.03, 0.03), "fp64": (0.01, 0.01, 0.01, 0.02)}
    found = cluster_findings(replace(report_of(None, inter), other_tflops=rates), name="x")
    assert found.spec.peak_tflops == PeakTflops(bf16=0.25, fp32=0.03, fp64=0.01)
    assert found.spec.efficiency == 0.4  # of bf16, in which the block was measured
    profile = profile_of(parse_cluster_spec(found.spec.model_dump(mode="json")), "nccl")
    assert profile.peak("fp32") == pytest.approx(0.03e12)
    assert profile.peak("bf16") == pytest.approx(0.25e12)


def test_one_node_needs_a_stated_link() -> None:
    intra = fit_link(2, 1, timings(2, 1e-5, 2e9))
    with pytest.raises(LayoutError, match=r"cluster of 1 node is refused.*--inter-gbit"):
        cluster_findings(report_of(intra, None, nodes=1), name="x")
    findings = cluster_findings(report_of(intra, None, nodes=1), name="x", inter_node=STATED)
    assert findings.spec.inter_node == STATED
    assert findings.notes == ("inter_node was stated, not measured.",)


def test_one_worker_a_node_takes_the_link_between_nodes_and_says_so() -> None:
    inter = fit_link(2, 1, timings(2, 1e-4, 1e9))
    findings = cluster_findings(report_of(None, inter), name="x")
    assert findings.spec.intra_node == findings.spec.inter_node == link_spec(inter)
    assert "set equal to inter_node" in findings.notes[0]


def test_a_block_that_is_faster_than_the_products_reaches_all_of_the_peak() -> None:
    inter = fit_link(2, 1, timings(2, 1e-4, 1e9))
    report = replace(report_of(None, inter), block_tflops=(0.3, 0.4, 0.3, 0.3))
    assert cluster_findings(report, name="x").spec.efficiency == 1.0


def test_memory_that_nobody_knows_is_refused() -> None:
    inter = fit_link(2, 1, timings(2, 1e-4, 1e9))
    with pytest.raises(LayoutError, match=r"memory_gib.*State it with --memory-gib"):
        cluster_findings(report_of(None, inter, memory_bytes=None), name="x")


def test_a_rough_measurement_says_so() -> None:
    bent = [*timings(2, 1e-4, 1e9), SizeTimings(64 << 20, (5.0,))]
    findings = cluster_findings(report_of(None, fit_link(2, 2, bent)), name="x")
    assert "inter_node is rough" in findings.notes[0]
    assert "measure again on an idle cluster" in findings.notes[0]
