"""A question can be written as JSON and asked again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planning import BY_NODE, CLUSTER, MODEL, layout, workload

from mics_core.planner.candidates import Choices, Pins
from mics_core.planner.cost import predict
from mics_core.planner.plan import Plan, plan_layout
from mics_core.planner.question import Question

pytestmark = pytest.mark.pure


def test_a_question_survives_json_and_has_the_same_answer() -> None:
    question = Question(MODEL, CLUSTER, layout(4, 2, strategy=BY_NODE), workload(16))
    again = Question.from_json(json.loads(json.dumps(question.as_json())))
    assert again == question
    assert again.answer() == predict(MODEL, CLUSTER, question.layout, question.workload)


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
