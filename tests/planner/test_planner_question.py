"""A question can be written as JSON and asked again."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from planning import BY_NODE, CLUSTER, MODEL, layout, workload

from mics_core.planner.cost import predict
from mics_core.planner.question import Question

pytestmark = pytest.mark.pure


def test_a_question_survives_json_and_has_the_same_answer() -> None:
    question = Question(MODEL, CLUSTER, layout(4, 2, strategy=BY_NODE), workload(16))
    again = Question.from_json(json.loads(json.dumps(question.as_json())))
    assert again == question
    assert again.answer() == predict(MODEL, CLUSTER, question.layout, question.workload)


def errors_of_measured_layouts() -> dict[tuple[str, float | None, str], float]:
    """Today's prediction over the measured time, less one, of every row of ours."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "network.json"
    return {
        (row["layout"], row["link_mbit"], row["system"]): median(
            Question.from_json(value).answer().step_s for value in row["predicted_from"]
        )
        / row["step_s_median"]
        - 1.0
        for row in json.loads(results.read_text(encoding="utf-8"))
        if "predicted_from" in row
    }


def test_what_was_measured_is_predicted_within_a_fifth() -> None:
    errors = errors_of_measured_layouts()
    assert len(errors) >= 8
    for place, error in errors.items():
        assert abs(error) < 0.20, (place, error)
