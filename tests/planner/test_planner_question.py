"""A question can be written as JSON and asked again."""

from __future__ import annotations

import json

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
