"""Whatever comes in, a specification comes out or a SpecificationError: never another exception."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.errors import SpecificationError
from mics_core.spec import JobSpec, parse_job_spec

pytestmark = pytest.mark.pure

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "gpt2", "bert", "text", "callable", "file", "a.b:c", "/data/x"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
VALID: dict[str, Any] = {
    "name": "example",
    "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 2},
    "data": {"kind": "text", "paths": ["/data/*.txt"], "column": "text"},
    "tokenizer": {"kind": "file", "path": "/t.json", "end_of_document": "</s>"},
    "training": {
        "sequence_length": 16,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "steps": 4,
        "optimizer": {"kind": "adamw", "betas": [0.9, 0.95], "learning_rate": 0.1},
        "schedule": {"kind": "cosine", "warmup_steps": 1},
    },
    "partition_size": 2,
    "groups": {"minimum": 1, "wanted": 1, "maximum": 2},
    "resources": {"cpus": 1, "custom": {"special": 1}},
    "checkpoint": {"directory": "/ckpt", "keep": 2},
}


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value that can be replaced."""
    if not isinstance(value, dict):
        return [prefix]
    inner = [place for key, item in value.items() for place in places(item, (*prefix, key))]
    return [*([prefix] if prefix else []), *inner]


@st.composite
def damaged_jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid job in which one to three places hold something else, or nothing, or more."""
    value = copy.deepcopy(VALID)
    for place in draw(st.lists(st.sampled_from(places(VALID)), min_size=1, max_size=3)):
        holder: Any = value
        for key in place[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        if draw(st.booleans()):
            holder[place[-1]] = draw(ANYTHING)
        else:
            holder.pop(place[-1], None)
            holder.update(draw(st.dictionaries(st.text(max_size=8), SCALARS, max_size=1)))
    return value


def outcome(value: Any) -> JobSpec | SpecificationError:
    try:
        return parse_job_spec(value)
    except SpecificationError as error:
        return error


def check(value: Any) -> None:
    result = outcome(value)
    if isinstance(result, JobSpec):
        assert repr(parse_job_spec(result.model_dump())) == repr(result)
        return
    for problem in result.problems:
        assert all([problem.field, problem.value, problem.rule, problem.remedy]), problem
    assert str(pickle.loads(pickle.dumps(result))) == str(result)


def test_the_undamaged_job_is_accepted() -> None:
    parse_job_spec(VALID)


@pytest.mark.long
@given(ANYTHING)
@settings(max_examples=100, deadline=None)
def test_anything_parses_or_is_refused(value: Any) -> None:
    check(value)


@pytest.mark.long
@given(damaged_jobs())
@settings(max_examples=200, deadline=None)
def test_a_damaged_job_parses_or_is_refused(value: dict[str, Any]) -> None:
    check(value)
