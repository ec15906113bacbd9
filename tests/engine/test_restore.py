"""Which checkpoint a run continues from: damage is passed over, silence of storage never."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import nn

from mics_core.comm.partition import PartitionGroup
from mics_core.engine import restore
from mics_core.engine.checkpoint import Checkpointer
from mics_core.engine.restore import Restored, restore_newest
from mics_core.errors import CheckpointError
from mics_core.spec.data_order import DataOrder
from mics_core.spec.job import CheckpointSpec
from tests.engine.odd_storage import OddError, odd_storage

OLDER, NEWEST = 2, 4
ORDER = DataOrder(seed=7, global_batch_size=4, sequence_length=16, num_samples=90, content=5)
ATTEMPTS = 4


class OneWorker:
    """The only worker of its partition group, in no world of torch."""

    rank, size, background, control = 0, 1, None, None

    def share(self, value: Any, over: Any = None) -> list[Any]:
        return [value]


WORKER = cast("PartitionGroup", OneWorker())


def nothing(_call: str, _path: str) -> None:
    """Storage that works."""


def model_and_optimizer(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, 3)
    nn.init.constant_(model.weight, value)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def spec(tmp_path: Path) -> CheckpointSpec:
    """Two checkpoints, whose states hold their steps."""
    spec = CheckpointSpec(directory=f"odd://{tmp_path}", interval_steps=2, keep=2)
    with odd_storage(nothing):
        for step in (OLDER, NEWEST):
            writer = Checkpointer(spec, WORKER, 0, ORDER, lambda _: None)
            writer.begin(step, *model_and_optimizer(float(step)), (0,), "the states")
            writer.finish(lambda mine: mine)
            writer.close()
    return spec


def restored(
    spec: CheckpointSpec, before: Callable[[str, str], None], order: DataOrder = ORDER
) -> tuple[Restored, float]:
    """What is said to be restored, and what is."""
    model, optimizer = model_and_optimizer(0.0)
    with odd_storage(before), mock.patch.object(restore, "_PAUSES_S", (0.0,) * (ATTEMPTS - 1)):
        found = restore_newest(spec, WORKER, model, optimizer, order)
    return found, model.get_parameter("weight")[0, 0].item()


def calls_of(spec: CheckpointSpec) -> list[str]:
    calls: list[str] = []
    assert restored(spec, lambda call, _: calls.append(call)) == (Restored(NEWEST), NEWEST)
    return calls


def failing(first: int, last: int) -> Callable[[str, str], None]:
    """Raise from one call of the storage to another."""
    place = iter(range(1_000_000))

    def before(call: str, _path: str) -> None:
        if first <= next(place) <= last:
            raise OddError(call, {"Status": 503})

    return before


def test_storage_that_answers_again_costs_no_checkpoint_whichever_call_it_was(
    spec: CheckpointSpec,
) -> None:
    calls = calls_of(spec)
    assert {"ls", "info", "cat_file", "open"} <= {*calls}
    for place, call in enumerate(calls):
        for last in (place, place + ATTEMPTS - 2):
            assert restored(spec, failing(place, last)) == (Restored(NEWEST), NEWEST), call


def test_storage_that_cannot_be_reached_is_an_error_and_no_older_checkpoint_is_taken(
    spec: CheckpointSpec,
) -> None:
    for place, call in enumerate(calls_of(spec)):
        with pytest.raises(CheckpointError) as refused:
            restored(spec, failing(place, 1_000_000))
        assert f"cannot be reached, after {ATTEMPTS} attempts: OddError: " in str(refused.value)
        assert "every node reaches the storage" in str(refused.value), call


@pytest.mark.parametrize(
    ("changes", "field", "what", "remedy"),
    [
        (
            {"seed": 8},
            "training.seed",
            "it was trained with training.seed 7, and now that is 8.",
            "Set training.seed to 7, or begin anew with an empty checkpoint.directory.",
        ),
        (
            {"global_batch_size": 6},
            "training.global_batch_size",
            "it was trained with training.global_batch_size 4, and now that is 6.",
            "Set training.global_batch_size to 4, or",
        ),
        (
            {"sequence_length": 8},
            "training.sequence_length",
            "it was trained with training.sequence_length 16, and now that is 8.",
            "Set training.sequence_length to 16, or",
        ),
        (
            {"num_samples": 91},
            "data",
            "its data held 90 samples, and now there are 91.",
            "Name the data in `data` that it was trained on, or",
        ),
        (
            {"content": 6},
            "data",
            "its data held 90 samples as now, but not the same ones.",
            "Name the data in `data` that it was trained on, or",
        ),
    ],
    ids=["seed", "batch", "length", "number", "content"],
)
def test_another_order_of_the_data_is_refused_with_the_field_and_the_remedy(
    spec: CheckpointSpec, changes: dict[str, int], field: str, what: str, remedy: str
) -> None:
    with pytest.raises(CheckpointError) as refused:
        restored(spec, nothing, dataclasses.replace(ORDER, **changes))
    assert what in refused.value.message
    assert remedy in str(refused.value)
    assert refused.value.field == field


def test_data_of_which_only_the_number_is_known_are_continued(spec: CheckpointSpec) -> None:
    unknown = dataclasses.replace(ORDER, content=0)
    assert restored(spec, nothing, unknown) == (Restored(NEWEST), NEWEST)


def test_one_that_is_damaged_is_passed_over_and_told(spec: CheckpointSpec, tmp_path: Path) -> None:
    newest = tmp_path / f"step-{NEWEST:08d}"
    (states,) = newest.rglob("*.distcp")
    content, record = states.read_bytes(), newest / "mics.json"
    states.write_bytes(content[:-1])
    name = states.relative_to(newest)
    assert damage_of(spec).startswith(f"It is damaged: {name} has ")
    states.unlink()
    assert damage_of(spec) == f"It is damaged: {name} is not there."
    states.write_bytes(content)
    whole = record.read_text()
    record.write_text(whole[:9])
    assert "mics.json cannot be read: JSONDecodeError" in damage_of(spec)
    record.write_text(whole)
    assert restored(spec, nothing) == (Restored(NEWEST), NEWEST)


def damage_of(spec: CheckpointSpec) -> str:
    found, value = restored(spec, nothing)
    assert (found.step, value) == (OLDER, OLDER)
    (passed_over,) = found.passed_over
    assert passed_over.step == NEWEST
    return passed_over.error
