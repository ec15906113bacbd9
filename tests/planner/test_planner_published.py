"""The published figures: what was fitted, what came out, and that the page says the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mics_core.planner.clusters import CLUSTER_NAMES, close_cluster_names, named_cluster
from mics_core.planner.memory import Precision
from mics_core.planner.parameters import count_parameters
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.published import (
    EFFICIENCY,
    GPT_100B,
    GPT_175B,
    LATENCY_S,
    fit_constants,
    other_assumptions,
    published_rows,
)

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parent.parent.parent


def cluster(name: str) -> ClusterProfile:
    found = named_cluster(name)
    assert found is not None
    return found


def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["docs_tables"] = module
    found.loader.exec_module(module)
    return module


def test_the_constants_are_the_rounded_fit() -> None:
    efficiency, latency_s = fit_constants(cluster("p4d.24xlarge"))
    assert pytest.approx(efficiency, abs=0.005) == EFFICIENCY
    assert pytest.approx(latency_s, abs=10e-6) == LATENCY_S


def test_the_predictions_are_within_five_per_cent_of_the_published_figures() -> None:
    rows = published_rows(cluster("p4d.24xlarge"), cluster("p4de.24xlarge"))
    assert sum(not row.is_fitted for row in rows) == 3
    for row in rows:
        assert abs(row.error) < 0.05, row


def test_other_assumptions_do_not_explain_the_published_figures() -> None:
    others = other_assumptions(cluster("p4d.24xlarge"))
    found = {(each.micro_batch_size, each.zero_hides): each for each in others}
    scaling = {key: round(each.zero_weak_scaling) for key, each in found.items()}
    assert scaling == {(1, False): 83, (3, False): 67, (4, False): 63, (2, True): 47}
    reached = {key for key, each in found.items() if each.reaches_mics}
    assert reached == {(3, False), (4, False), (2, True)}


@pytest.mark.long
def test_the_tables_of_the_scaling_page_are_what_the_planner_says() -> None:
    module = generator()
    written = module.SCALING.read_text(encoding="utf-8")
    assert "| 100B, weak scaling 128 to 512, ZeRO-3 | % | 72.0 |" in written
    assert written == module.with_tables(written), "run `python docs/generate.py`"


def test_the_assumed_models_have_their_published_sizes() -> None:
    assert count_parameters(GPT_100B).total == pytest.approx(100e9, rel=0.02)
    assert count_parameters(GPT_175B).total == pytest.approx(175e9, rel=0.02)


def test_named_clusters_are_found_and_close_names_proposed() -> None:
    assert set(CLUSTER_NAMES) >= {"p3dn.24xlarge", "p4d.24xlarge", "p5.48xlarge"}
    found = named_cluster("p4d.24xlarge", 3)
    assert found is not None
    assert (found.num_workers, found.inter_node.bandwidth_bytes_per_s) == (24, 50e9)
    assert found.host_bytes_per_s == 15.75e9
    assert named_cluster("p4x") is None
    assert "p4d.24xlarge" in close_cluster_names("p4d.24xl")


PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp64")


@pytest.mark.parametrize(
    ("name", "tflops", "memory_gib", "memory_gb_per_s", "nvlink_gb_per_s", "network_gb_per_s"),
    [
        ("p3dn.24xlarge", (15.7, 15.7, 7.8), 32, 900, 150, 12.5),
        ("p4d.24xlarge", (19.5, 312, 19.5), 40, 1555, 300, 50),
        ("p4de.24xlarge", (19.5, 312, 19.5), 80, 2039, 300, 50),
        ("p5.48xlarge", (67, 989, 67), 80, 3350, 450, 400),
    ],
)
def test_a_named_cluster_has_the_figures_of_its_sources(
    name: str,
    tflops: tuple[float, ...],
    memory_gib: int,
    memory_gb_per_s: float,
    nvlink_gb_per_s: float,
    network_gb_per_s: float,
) -> None:
    found = cluster(name)
    assert (found.num_nodes, found.workers_per_node) == (8, 8)
    assert [found.peak(precision) / 1e12 for precision in PRECISIONS] == list(tflops)
    assert found.memory_bytes == memory_gib << 30
    assert found.memory_bytes_per_s == memory_gb_per_s * 1e9
    assert found.intra_node.bandwidth_bytes_per_s == nvlink_gb_per_s * 1e9
    assert found.inter_node.bandwidth_bytes_per_s == network_gb_per_s * 1e9


def test_every_named_cluster_states_every_precision_and_says_which_it_lacks() -> None:
    lacking = {name: [p for p in PRECISIONS if cluster(name).lacks(p)] for name in CLUSTER_NAMES}
    assert lacking.pop("p3dn.24xlarge") == ["bf16"]
    assert set(map(tuple, lacking.values())) == {()}
    assert all(cluster(name).states_peak(p) for name in CLUSTER_NAMES for p in PRECISIONS)
