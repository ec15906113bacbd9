"""The `TorchTrainer` of one partition group, which starts as few processes as it can.

Ray Train's controller is an actor of its own, and so is its manager of datasets. A group's runner
exists to hold the controller and has no Ray dataset; each of the two would cost every group that
starts seconds of a processor, beside members that train on the same one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.train import Result
from ray.train.torch import TorchTrainer

__all__ = ["GroupTrainer"]

logger = logging.getLogger(__name__)


class GroupTrainer(TorchTrainer):
    """A `TorchTrainer` whose controller runs in the process that calls `fit()`.

    The two methods are private to Ray Train. Where a version of it lacks them they are not called,
    and where it lacks the controller's class the controller is an actor, as it comes.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ != "DatasetsCallback"]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        try:
            from ray.train.v2._internal.execution.controller import TrainController
        except ImportError as error:
            logger.warning("Ray Train's controller gets a process of its own: %s", error)
            return super()._initialize_and_run_controller(**parts)
        return asyncio.run(_control(TrainController, parts))


async def _control(controller_type: Any, parts: dict[str, Any]) -> Result:
    controller = controller_type(**parts)
    await controller.run()
    result: Result = controller.get_result()
    return result
