"""The trainer of a partition group does without processes that a group has no use for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
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


def run_in_actor(loop: Callable[[], None]) -> set[str]:
    """Fit in an actor, as a runner does; return the classes of all actors that there were."""
    runner = Runner.remote()
    try:
        ray.get(runner.fit.remote(loop))
    finally:
        ray.kill(runner)
    return {actor["class_name"] for actor in list_actors()}


def test_what_a_group_has_no_use_for_has_no_process(cluster: LocalCluster) -> None:
    classes = run_in_actor(train)
    assert "RayTrainWorker" in classes
    assert not classes & {
        "TrainController",
        "DatasetManager",
        "PlacementGroupCleaner",
        "_AutoscalingCoordinatorActor",
    }


def test_ray_takes_the_room_of_a_killed_runner_back(cluster: LocalCluster) -> None:
    def states(class_name: str) -> set[str]:
        return {a["state"] for a in list_actors() if a["class_name"].startswith(class_name)}

    runner = Runner.options(name="killed", lifetime="detached").remote()
    runner.fit.remote(wait)
    eventually(lambda: "ALIVE" in states("RayTrainWorker"), "a worker that runs", 60.0)
    ray.kill(runner)
    eventually(lambda: states("RayTrainWorker") == {"DEAD"}, "the worker's end", 60.0)
    eventually(lambda: rooms() == {"REMOVED"}, "the room of the run", 10.0)


def test_the_error_of_a_worker_is_that_of_the_run(cluster: LocalCluster) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="the worker was told to fail"):
        run_in_actor(fail)
