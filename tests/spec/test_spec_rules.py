"""Every rule of the specification names the field, the value, the rule and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError, model_validator

from mics_core.errors import BrokenRule, ScaleError, SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.changes import GroupsChange
from mics_core.spec.job import JobSpec, SpecModel
from mics_core.spec.planning import batch_problem
from mics_core.spec.problems import problems_of
from mics_core.spec.rules import RuleError

pytestmark = pytest.mark.pure


def job(**changes: Any) -> dict[str, Any]:
    """A small valid job; `changes` replaces whole parts, or single fields as `part__field`."""
    value: dict[str, Any] = {
        "name": "example",
        "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 2},
        "data": {"kind": "text", "paths": ["/data/*.txt"]},
        "training": {
            "sequence_length": 16,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "steps": 4,
        },
    }
    for name, change in changes.items():
        part, _, field = name.partition("__")
        if field:
            value.setdefault(part, {})[field] = change
        else:
            value[part] = change
    return value


RULES = [
    # changes, field, value, words of the rule, words of the remedy
    ({"nmae": 1}, "nmae", "1", "no such field", "`name`"),
    ({"zzz": 1}, "zzz", "1", "no such field", "Known here: checkpoint, data"),
    ({"model__hiden_size": 1}, "model.hiden_size", "1", "no such field", "`hidden_size`"),
    ({"training__optimizer": {"lr": 1}}, "training.optimizer.lr", "1", "no such", "learning_rate"),
    ({"model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1}}, "model.num_heads",
     "(nothing)", "required", "Add `num_heads`"),
    ({"data": {"kind": "callable"}}, "data.callable", "(nothing)", "required", "Add `callable`"),
    ({"name": 3}, "name", "3", "valid string", "quotes"),
    ({"name": ""}, "name", "''", "at least 1 character", "at least 1"),
    ({"name": "n" * 101}, "name", "'nnn", "at most 100", "100 characters"),
    ({"model": 3}, "model", "3", "mapping", "mapping"),
    ({"model__family": "gtp2"}, "model.family", "'gtp2'", "'gpt2', 'llama'", "Choose 'gpt2'"),
    ({"model__num_heads": 3}, "model.num_heads", "3", "must divide hidden_size (8)", "Choose"),
    ({"model__dropout": 1.0}, "model.dropout", "1.0", "less than 1", "below 1"),
    ({"model": {"callable": "nonsense"}}, "model.callable", "'nonsense'",
     "package.module:function", "my_package.my_module:build"),
    ({"data": {"callable": "a b:c"}}, "data.callable", "'a b:c'", "package.module:function", "my_"),
    ({"data__kind": "csv"}, "data.kind", "'csv'", "'jsonl'", "Choose 'text'"),
    ({"data__paths": []}, "data.paths", "[]", "at least 1 item", "at least 1"),
    ({"data__paths": "x"}, "data.paths", "'x'", "valid list", "list"),
    ({"data__column": ""}, "data.column", "''", "at least 1 character", "at least 1"),
    ({"tokenizer": {"kind": "file"}}, "tokenizer.kind", "'file'", "needs a path", "tokenizer.json"),
    ({"tokenizer": {"path": "/x"}}, "tokenizer.kind", "(default)", "neither path", "leave them"),
    ({"training__steps": 0}, "training.steps", "0", "greater than 0", "above 0"),
    ({"training__steps": 2.5}, "training.steps", "2.5", "fractional", "whole number"),
    ({"training__steps": "x"}, "training.steps", "'x'", "integer", "whole number"),
    ({"training__seed": -1}, "training.seed", "-1", "greater than or equal to 0", "at least 0"),
    ({"training__seed": 2**63}, "training.seed", str(2**63), "less than", f"below {2**63}"),
    ({"training__micro_batch_size": 3}, "training.micro_batch_size", "3",
     "must divide global_batch_size (8)", "multiple of 3"),
    ({"training__schedule": {"warmup_steps": 5}}, "training.schedule.warmup_steps", "5",
     "must not exceed steps (4)", "Shorten"),
    ({"training__schedule": {"final_fraction": 2}}, "training.schedule.final_fraction", "2",
     "less than or equal to 1", "at most 1"),
    ({"training__optimizer": {"betas": [0.9, 1.0]}}, "training.optimizer.betas", "[0.9, 1.0]",
     "[0, 1)", "0.9, 0.95"),
    ({"training__optimizer": {"learning_rate": float("inf")}}, "training.optimizer.learning_rate",
     "inf", "finite", "finite"),
    ({"training__activation_checkpointing": "x"}, "training.activation_checkpointing", "'x'",
     "boolean", "true or false"),
    ({"partition_size": "many"}, "partition_size", "'many'", "positive whole", "'auto'"),
    ({"partition_size": 0}, "partition_size", "0", "positive whole number", "'auto'"),
    ({"partition_size": True}, "partition_size", "True", "positive whole number", "'auto'"),
    ({"partition_size": 3}, "training.global_batch_size", "8", "multiple of", "Choose 12"),
    ({"partition_size": 4, "groups": {"wanted": 2}}, "groups.maximum", "(default)",
     "1 micro-batches of a step", "Lower groups.maximum"),
    ({"groups": {"minimum": 3}}, "groups.minimum", "3", "≤ wanted (1)", "order"),
    ({"resources__cpus": 0}, "resources.cpus", "0", "greater than 0", "above 0"),
    ({"resources__gpus": 2}, "resources.gpus", "2", "less than or equal to 1", "at most 1"),
    ({"resources__custom": {"files": "x"}}, "resources.custom.files", "'x'", "number", "number"),
    ({"checkpoint__keep": 0}, "checkpoint.keep", "0", "greater than 0", "above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "value", "rule", "remedy"), RULES)
def test_a_broken_rule_names_field_value_rule_and_remedy(
    changes: dict[str, Any], field: str, value: str, rule: str, remedy: str
) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_job_spec(job(**changes))
    (problem,) = caught.value.problems
    assert problem.field == field
    assert problem.value.startswith(value)
    assert rule in problem.rule
    assert remedy in problem.remedy
    assert problem.remedy != "Correct this field."


def test_all_broken_rules_are_reported_at_once() -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_job_spec(job(name=3, model__num_layers=0, training__steps="x"))
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["name", "model.num_layers", "training.steps"]


@pytest.mark.parametrize("value", [None, 3, "text", [], [1]])
def test_what_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(SpecificationError, match="is a mapping of fields"):
        parse_job_spec(value)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(SpecificationError, match="quotes"):
        parse_job_spec({**job(), 1: 2})


def test_a_value_too_long_to_show_is_still_reported() -> None:
    with pytest.raises(SpecificationError, match="a very long int"):
        parse_job_spec(job(name=10**5000))


def test_the_defaults_are_those_of_the_documentation() -> None:
    spec = parse_job_spec(job())
    assert spec.partition_size == "auto"
    assert spec.groups.upper_bound == spec.groups.wanted == 1
    assert spec.objective == "causal"
    assert spec.num_micro_batches(2) == 2


@pytest.mark.parametrize(
    ("family", "stated", "objective"),
    [("gpt2", None, "causal"), ("bert", None, "masked"), ("roberta", None, "masked"),
     ("llama", None, "causal"), ("bert", "causal", "causal"), ("gpt2", "masked", "masked")],
)  # fmt: skip
def test_the_objective_follows_the_family_unless_it_is_stated(
    family: str, stated: str | None, objective: str
) -> None:
    spec = parse_job_spec(job(model__family=family, training__objective=stated))
    assert spec.objective == objective


def test_a_specification_survives_json() -> None:
    spec = parse_job_spec(job(partition_size=2, groups={"wanted": 2}, model__options={"a": [1]}))
    assert parse_job_spec(spec.model_dump()) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


STOPPED = "name 'a. b' is taken."


class Named(SpecModel):
    name: str

    @model_validator(mode="after")
    def _is_free(self) -> Named:
        raise RuleError(STOPPED, "Choose another.")


class Foreign(SpecModel):
    name: str

    @model_validator(mode="after")
    def _is_right(self) -> Foreign:
        raise ValueError("'a. b' is wrong")


def test_a_full_stop_in_a_value_does_not_end_the_rule() -> None:
    with pytest.raises(ValidationError) as caught:
        Named(name="a. b")
    (problem,) = problems_of(caught.value, Named)
    assert (problem.field, problem.value) == ("name", "'a. b'")
    assert (problem.rule, problem.remedy) == (STOPPED, "Choose another.")


def test_an_error_of_other_code_is_a_rule_as_a_whole() -> None:
    with pytest.raises(ValidationError) as caught:
        Foreign(name="a. b")
    (problem,) = problems_of(caught.value, Foreign)
    assert (problem.rule, problem.remedy) == ("'a. b' is wrong.", "Correct this field.")


def test_rule_and_remedy_stay_apart_on_their_way_to_planner_and_scaling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = parse_job_spec(job(groups={"wanted": 2}))

    def refuse(*_numbers: int) -> int:
        raise RuleError(STOPPED, "Choose another.")

    monkeypatch.setattr(JobSpec, "num_micro_batches", refuse)
    assert batch_problem(spec, 2, 1) == BrokenRule(STOPPED, "Choose another.")
    with pytest.raises(ScaleError) as caught:
        GroupsChange(wanted=1).applied_to(spec, 1, 2)
    assert (caught.value.message, caught.value.remedy) == (STOPPED, "Choose another.")
