"""A question can be written as JSON and asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

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
