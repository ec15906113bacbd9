"""The weak-scaling benchmark's runs and rows."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.harness.world import Step
from benchmarks.network.measure import Measured
from benchmarks.weak.__main__ import OURS, TUNED, Run, rows_of, runs_of


def test_slower_links_are_measured_at_the_ends_alone() -> None:
    everything = [OURS, TUNED, "fsdp2 full"]
    runs = runs_of([1000.0, 200.0], [2, 4, 8], everything)
    fast, ours = tuple(everything), (OURS, TUNED)
    assert runs == [
        *(Run(1000.0, number, fast) for number in (2, 4, 8)),
        *(Run(200.0, number, ours) for number in (2, 8)),
    ]
    # A step takes about 16 seconds: three of each turn, and as long as a step to start and end.
    assert sum(len(run.systems) for run in runs) * 16 * 3.3 < 720


def test_efficiency_counts_from_the_fewest_groups_over_the_same_link() -> None:
    def run(link_mbit: float, groups: int, step_s: float) -> tuple[Run, list[Measured]]:
        step = Step(step_s, 1.0, 0, 0)
        measured = Measured(OURS, f"{groups}x2", link_mbit, turns=[[step]])
        return Run(link_mbit, groups, (OURS,)), [measured]

    results = dict([run(1000.0, 2, 1.0), run(1000.0, 8, 1.25), run(200.0, 2, 3.0)])
    found = {(row["link_mbit"], row["groups"]): row["efficiency"] for row in rows_of(results)}
    assert found == {(1000.0, 2): 1.0, (1000.0, 8): 0.8, (200.0, 2): 1.0}
