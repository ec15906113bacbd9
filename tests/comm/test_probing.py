"""Measuring a real world of four workers: what it finds predicts messages it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from mics_core.comm.measured import LinkFit, ProbeReport, ProbeSettings, cluster_findings
from mics_core.comm.probing import measure_cluster, measure_link
from tests.engine.worker_pool import WorkerPool, running_pool

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
QUICK = ProbeSettings(message_bytes=SIZES[::2], repetitions=5, compute_s=0.2)
NODES = ("a", "b", "a", "b")
"""Ranks in turns, as a launcher that does not group them might number them."""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(4) as pool:
        yield pool


def measured(nodes: tuple[str, ...], settings: ProbeSettings) -> ProbeReport:
    return measure_cluster(nodes, torch.device("cpu"), settings)


def test_every_rank_has_the_same_report_of_a_whole_world(pool: WorkerPool) -> None:
    reports = pool.run(measured, NODES, QUICK)
    report: ProbeReport = reports[0]
    for other in reports:
        assert (other.intra_node, other.inter_node) == (report.intra_node, report.inter_node)
        assert other.tflops == report.tflops
        assert other.block_tflops == report.block_tflops
    assert (report.nodes, report.workers_per_node) == (("a", "b"), 2)
    assert len(report.tflops) == 4
    assert all(rate > 0.0 for rate in report.tflops)
    assert len(report.block_tflops) == 4
    assert all(rate > 0.0 for rate in report.block_tflops)
    assert len(report.memory_bytes_per_s) == 4
    # No memory moves a byte in less than a picosecond, none that trains in more than a microsecond.
    assert all(1e6 < rate < 1e12 for rate in report.memory_bytes_per_s)
    for fit, rings_per_node in ((report.intra_node, 1), (report.inter_node, 2)):
        assert fit is not None
        assert (fit.ring_size, fit.rings_per_node) == (2, rings_per_node)
        assert tuple(size.bytes_per_rank for size in fit.timings) == QUICK.message_bytes
        assert all(len(size.times_s) == QUICK.repetitions for size in fit.timings)
        assert fit.bytes_per_s > 0.0
    cluster_findings(report, name="x", memory_gib=1.0)


def test_the_measurement_leaves_no_process_group_behind(pool: WorkerPool) -> None:
    before = pool.run(process_groups)
    pool.run(measured, NODES, ProbeSettings((1024, 4096), 2, 0.001, 1.0, 0.01))
    assert pool.run(process_groups) == before


def process_groups() -> int:
    return len(dist.distributed_c10d._world.pg_map)


def fit_and_one_more(num_bytes: int) -> tuple[LinkFit, float]:
    device, control = torch.device("cpu"), dist.new_group(backend="gloo")
    rings = ((0, 2), (1, 3))
    fit = measure_link(rings, device, control, 2, QUICK)
    alone = ProbeSettings(message_bytes=(num_bytes,), repetitions=7)
    other = measure_link(rings, device, control, 2, alone)
    dist.destroy_process_group(control)
    return fit, other.timings[0].median_s


def test_the_fit_predicts_a_size_it_was_not_fitted_to(pool: WorkerPool) -> None:
    fit, measured_s = pool.run(fit_and_one_more, 512 << 10)[0]
    assert measured_s / 3 < fit.all_gather_s(512 << 10) < measured_s * 3


def test_sizes_beyond_the_time_budget_are_left_out(pool: WorkerPool) -> None:
    settings = ProbeSettings(SIZES, 2, 0.001, size_budget_s=1e-6, compute_s=0.01)
    for report in pool.run(measured, NODES, settings):
        assert len(report.intra_node.timings) == len(report.inter_node.timings) == 2


def test_one_node_or_one_worker_a_node_leaves_a_link_unknown(pool: WorkerPool) -> None:
    settings = ProbeSettings((1024, 65536), 2, 0.001, compute_s=0.01)
    one_node = pool.run(measured, ("a",) * 4, settings)[0]
    assert one_node.inter_node is None
    assert one_node.intra_node.ring_size == 4
    one_worker = pool.run(measured, ("a", "b", "c", "d"), settings)[0]
    assert one_worker.intra_node is None
    assert (one_worker.inter_node.ring_size, one_worker.inter_node.rings_per_node) == (4, 1)


def test_unequal_nodes_are_refused(pool: WorkerPool) -> None:
    with pytest.raises(AssertionError, match=r"3 on a, 1 on b is refused.*Use 1 workers on each"):
        pool.run(measured, ("a", "a", "a", "b"), QUICK)
