"""The `TorchTrainer` of one partition group, which starts as few processes as it can.

Ray Train's controller is an actor of its own, and so is its manager of datasets. A group's runner
exists to hold the controller and has no Ray dataset; each of the two would cost every group that
starts seconds of a processor, beside members that train on the same one.

So would one that gives a run's placement group back should its controller die, for each group on
Ray's head. Ray does that by itself for what a detached actor has reserved, and a runner is one; not
for a controller that is an actor of its own.

Another is Ray Train's coordinator of autoscaling, one for all runs of a cluster. It is bound to the
node of the first run for good: that node never counts as idle again, so no autoscaler takes it away
and a drained one does not end; and once the node is lost, each run waits for the coordinator at its
start, at its end and at every look at its workers. A group needs nothing of it, for a placement
group that is pending is what makes an autoscaler add a node.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.train import Result
from ray.train.torch import TorchTrainer

__all__ = ["GroupTrainer"]

logger = logging.getLogger(__name__)


_ASKING = ("after_controller_start", "_maybe_send_resource_request", "_cancel_resource_request")
"""What of a policy asks the coordinator for room."""


class GroupTrainer(TorchTrainer):
    """A `TorchTrainer` whose controller runs in the process that calls `fit()`.

    The two methods are private to Ray Train. Where a version of it lacks them they are not called,
    and where it lacks the controller's class the controller is an actor, as it comes; so it is with
    what a fixed number of workers asks of the coordinator.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if _controller_type() is not None:
            unused.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ not in unused]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        controller_type = _controller_type()
        if controller_type is None:
            logger.warning("Ray Train's controller gets a process of its own.")
            return super()._initialize_and_run_controller(**parts)
        return asyncio.run(_control(controller_type, _without_coordinator(parts)))


def _controller_type() -> Any:
    try:
        from ray.train.v2._internal.execution.controller import TrainController
    except ImportError:
        return None
    return TrainController


def _without_coordinator(parts: dict[str, Any]) -> dict[str, Any]:
    try:
        from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    except ImportError as error:
        logger.warning("Ray Train's coordinator of autoscaling is asked for room: %s", error)
        return parts
    policy = parts["scaling_policy"]
    if type(policy) is not FixedScalingPolicy or not all(hasattr(policy, name) for name in _ASKING):
        logger.warning("Ray Train's coordinator of autoscaling is asked for room: %r", policy)
        return parts

    class OfGroup(FixedScalingPolicy):
        """A fixed number of workers, of which no coordinator hears."""

        def after_controller_start(self, train_run_context: object) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

        def _cancel_resource_request(self) -> None:
            pass

    return {**parts, "scaling_policy": OfGroup(policy.scaling_config)}


async def _control(controller_type: Any, parts: dict[str, Any]) -> Result:
    controller = controller_type(**parts)
    await controller.run()
    result: Result = controller.get_result()
    return result
