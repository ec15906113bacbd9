"""Users' own collections: what they may return, and what is refused with which words."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from example_jobs import BuildJob

from mics_core.data.sources import build_samples
from mics_core.data.user import UserSamples
from mics_core.errors import DataError

pytestmark = pytest.mark.pure

GOOD = {"input_ids": [1, 2, 3, 4], "labels": [-100, 3, 4, -100]}


def user_samples(*items: Any, id_limit: int | None = 10) -> UserSamples:
    return UserSamples(list(items), "own:data", sequence_length=4, id_limit=id_limit)


@pytest.mark.parametrize("convert", [list, tuple, np.array, lambda ids: np.array(ids, np.int16)])
def test_lists_and_arrays_become_int64(convert: Any) -> None:
    item = {key: convert(ids) for key, ids in GOOD.items()}
    sample = user_samples(item)[0]
    assert sample.input_ids.tolist() == GOOD["input_ids"]
    assert sample.labels.tolist() == GOOD["labels"]
    assert sample.input_ids.dtype == sample.labels.dtype == np.int64
    assert sample.attention_mask is None


@pytest.mark.parametrize("mask", [[1, 1, 1, 0], np.array([True, True, True, False])])
def test_an_attention_mask_may_be_numbers_or_truth_values(mask: Any) -> None:
    sample = user_samples({**GOOD, "attention_mask": mask})[0]
    assert sample.attention_mask is not None
    assert sample.attention_mask.tolist() == [1, 1, 1, 0]


def test_ids_have_no_upper_bound_where_the_model_is_the_users_own() -> None:
    assert user_samples({**GOOD, "labels": [10**6] * 4}, id_limit=None)[0].labels[0] == 10**6


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        ([1, 2], "it is list, but must be a mapping"),
        ({"input_ids": [1, 2, 3, 4]}, "it has no labels, only input_ids"),
        ({**GOOD, "labels": [1, 2]}, r"labels must have the shape \(4,\) .* has \(2,\)"),
        ({**GOOD, "labels": [[1], [1, 2]]}, "labels is no array of integers"),
        ({**GOOD, "input_ids": [1.0, 2, 3, 4]}, "input_ids must be integers, but is float64"),
        ({**GOOD, "input_ids": [True] * 4}, "input_ids must be integers, but is bool"),
        ({**GOOD, "input_ids": [1, 2, 3, 10]}, "id 10, but ids must be at least 0 and below 10"),
        ({**GOOD, "input_ids": [-100, 2, 3, 4]}, "input_ids holds the id -100"),
        ({**GOOD, "labels": [-1, 2, 3, 4]}, "labels holds the id -1"),
        ({**GOOD, "attention_mask": [0, 1, 2, 1]}, "nothing but 0 and 1"),
    ],
)
def test_a_wrong_sample_is_named_with_the_rule(item: Any, rule: str) -> None:
    with pytest.raises(DataError, match=rf"sample 1 of own:data is refused: .*{rule}.* Correct"):
        user_samples(GOOD, item)[1]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_module")
    monkeypatch.setitem(sys.modules, "own_module", module)
    return module


def test_the_callable_is_called_with_its_arguments(
    own_module: ModuleType, build_job: BuildJob
) -> None:
    class Builders:
        @staticmethod
        def build(num: int) -> list[Any]:
            return [GOOD] * num

    vars(own_module)["Builders"] = Builders
    data = {"callable": "own_module:Builders.build", "arguments": {"num": 3}}
    assert len(build_samples(build_job(data=data))) == 3


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError.* PYTHONPATH"),
        ("own_module:missing", "cannot be imported: AttributeError"),
        ("own_module:number", "is int, which cannot be called"),
        ("own_module:fails", "with the arguments {} raised KeyError: 'x'"),
        ("own_module:generator", "returned .*iterator, which has no length"),
        ("own_module:empty", "collection of 0 samples"),
        ("own_module:unreadable", r"sample 0 of .* reading it raised ZeroDivisionError"),
    ],
)
def test_a_callable_that_does_not_work_is_named(
    name: str, rule: str, own_module: ModuleType, build_job: BuildJob
) -> None:
    class Unreadable(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return 1 // 0

    attributes: dict[str, Any] = {
        "number": 3,
        "fails": lambda: dict[str, int]()["x"],
        "generator": lambda: iter([GOOD]),
        "empty": list,
        "unreadable": lambda: Unreadable([GOOD]),
    }
    vars(own_module).update(attributes)
    with pytest.raises(DataError, match=rule):
        build_samples(build_job(data={"callable": name}))[0]
