"""The trainer of a partition group does without processes that a group has no use for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors

from mics_core.cluster.group_trainer import GroupTrainer, _without_coordinator
from mics_core.cluster.local import LocalCluster
from tests.cluster.running import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

NUM_NODES = 2


def names_of(callbacks: list[Any]) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def train() -> None:
    """Say nothing, do nothing."""


def wait() -> None:
    threading.Event().wait()


def rooms() -> set[str]:
    return {room["state"] for room in placement_group_table().values()}


def fail() -> None:
    raise ValueError("the worker was told to fail")


def test_all_of_ray_trains_callbacks_are_kept_but_two_that_start_processes() -> None:
    ours = names_of(GroupTrainer(train)._create_default_callbacks())
    theirs = names_of(TorchTrainer(train)._create_default_callbacks())
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert left_out <= {*theirs}
    assert ours == [name for name in theirs if name not in left_out]


def test_a_controller_that_is_an_actor_keeps_the_cleaner_of_its_placement_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.controller", None)
    callbacks = names_of(GroupTrainer(train)._create_default_callbacks())
    assert "PlacementGroupCleanerCallback" in callbacks
    assert "DatasetsCallback" not in callbacks


def test_without_the_class_of_the_controller_ray_train_runs_it_as_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.controller", None)
    monkeypatch.setattr(
        TorchTrainer, "_initialize_and_run_controller", lambda _, **parts: asked.update(parts)
    )
    GroupTrainer(train)._initialize_and_run_controller(callbacks=[])
    assert asked == {"callbacks": []}


def test_without_the_class_of_its_policy_ray_train_asks_for_room_as_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "ray.train.v2._internal.execution.scaling_policy.fixed"
    monkeypatch.setitem(sys.modules, module, None)
    parts = {"scaling_policy": object()}
    assert _without_coordinator(parts) is parts


def test_a_policy_that_asks_in_other_ways_than_it_does_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = {"scaling_policy": FixedScalingPolicy(ScalingConfig(num_workers=1))}
    assert isinstance(_without_coordinator(parts)["scaling_policy"], FixedScalingPolicy)
    assert _without_coordinator(parts) is not parts
    monkeypatch.delattr(ScalingPolicy, "_maybe_send_resource_request")
    assert _without_coordinator(parts) is parts


@ray.remote(num_cpus=0)
class Runner:
    def fit(self, loop: Callable[[], None]) -> None:
        GroupTrainer(loop, scaling_config=ScalingConfig(num_workers=1)).fit()


@pytest.fixture(scope="module")
def runner(cluster: LocalCluster) -> Iterator[Any]:
    """An actor that fits, as a runner does."""
    runner = Runner.options(name="fits", lifetime="detached").remote()
    yield runner
    ray.kill(runner)


def states_of(class_name: str) -> set[str]:
    actors = list_actors(limit=10_000)
    return {a["state"] for a in actors if a["class_name"].startswith(class_name)}


def test_what_a_group_has_no_use_for_has_no_process(runner: Any) -> None:
    ray.get(runner.fit.remote(train))
    classes = {actor["class_name"] for actor in list_actors(limit=10_000)}
    assert "RayTrainWorker" in classes
    assert not classes & {
        "TrainController",
        "DatasetManager",
        "PlacementGroupCleaner",
        "_AutoscalingCoordinatorActor",
    }


def test_the_error_of_a_worker_is_that_of_the_run(runner: Any) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="the worker was told to fail"):
        ray.get(runner.fit.remote(fail))


def test_ray_takes_the_room_of_a_killed_runner_back(runner: Any) -> None:
    eventually(lambda: states_of("RayTrainWorker") <= {"DEAD"}, "the end of others' workers", 60.0)
    runner.fit.remote(wait)
    eventually(lambda: "ALIVE" in states_of("RayTrainWorker"), "a worker that runs", 60.0)
    ray.kill(runner)
    eventually(lambda: states_of("RayTrainWorker") == {"DEAD"}, "the worker's end", 60.0)
    eventually(lambda: rooms() == {"REMOVED"}, "the room of the run", 10.0)
