"""A question can be written as JSON and asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from planning import BY_NODE, CLUSTER, MODEL, layout, workload

from mics_core.planner.candidates import Choices, Pins
from mics_core.planner.cost import predict
from mics_core.planner.plan import Plan, plan_layout
from mics_core.planner.profile import ClusterProfile, Peaks
from mics_core.planner.question import Question

pytestmark = pytest.mark.pure


BY_PRECISION = replace(CLUSTER, peak_flops_per_s=Peaks(fp32=1e9, bf16=1e9, lacking=("bf16",)))


@pytest.mark.parametrize("cluster", [CLUSTER, BY_PRECISION], ids=["one peak", "by precision"])
def test_a_question_survives_json_and_has_the_same_answer(cluster: ClusterProfile) -> None:
    question = Question(MODEL, cluster, layout(4, 2, strategy=BY_NODE), workload(16))
    again = Question.from_json(json.loads(json.dumps(question.as_json())))
    assert again == question
    assert again.answer() == predict(MODEL, cluster, question.layout, question.workload)


def errors_of_measured_layouts() -> dict[tuple[str, float | None, str], float]:
    """Today's prediction over the measured time, less one, of every row of ours."""
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    files = [results / name for name in ("network.json", "predicted.json")]
    rows = [row for each in files if each.exists() for row in json.loads(each.read_text("utf-8"))]
    return {
        (row["layout"], row["link_mbit"], row["system"]): median(
            Question.from_json(value).answer().step_s for value in row["predicted_from"]
        )
        / row["step_s_median"]
        - 1.0
        for row in rows
        if "predicted_from" in row
    }


def test_on_the_measured_networks_no_plan_sends_more_than_is_needed() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "network.json"
    rows = [
        row
        for row in json.loads(results.read_text(encoding="utf-8"))
        if row["system"] == "mics p=8" and "predicted_from" in row
    ]
    assert len(rows) == 6
    for row in rows:
        for value in row["predicted_from"]:
            asked = Question.from_json(value)
            pins = Pins(partition_size=8, micro_batch_size=1, activation_checkpointing=False)
            plan = plan_layout(Choices(asked.model, asked.workload, asked.cluster, pins))
            assert isinstance(plan, Plan)
            # Twice the gradient over the nodes, less what stays: what the deferred mesh sends.
            nodes, whole = asked.cluster.num_nodes, 4 * asked.model.parameters
            sent = plan.choice.prediction.traffic.total
            assert sent <= 2 * (nodes - 1) / nodes * whole * 1.001, row


def test_what_was_measured_is_predicted_within_a_fifth() -> None:
    errors = errors_of_measured_layouts()
    assert len(errors) >= 8
    for place, error in errors.items():
        assert abs(error) < 0.20, (place, error)
