"""Asking a job's supervisor, which may be killed and started anew meanwhile."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from mics_core.cluster.names import NAMESPACE, supervisor_name
from mics_core.errors import ClusterError

__all__ = ["SupervisorGoneError", "SupervisorHandle", "find_supervisor", "has_supervisor"]

logger = logging.getLogger(__name__)

_AGAIN_S = 0.2
_BACK_WITHIN_S = 120.0


class SupervisorGoneError(ClusterError):
    """A job has no supervisor any more, and none will follow."""


def find_supervisor(job_id: str) -> Any:
    """Return the actor handle of a job's supervisor, also while it is started anew.

    Raises:
        SupervisorGoneError: There is none, and none will follow.
    """
    try:
        return ray.get_actor(supervisor_name(job_id), namespace=NAMESPACE)
    except ValueError:
        raise SupervisorGoneError(
            f"Job {job_id} has no supervisor: it has ended, or was ended by force.",
            remedy="Submit it again if it is to go on; with checkpoint.directory set it continues"
            " from its newest checkpoint.",
        ) from None


def has_supervisor(job_id: str) -> bool:
    """Whether a job has a supervisor, or will have one again; true where Ray does not answer."""
    try:
        find_supervisor(job_id)
    except SupervisorGoneError:
        return False
    except RayError:
        return True
    return True


class SupervisorHandle:
    """Calls a supervisor's methods; a call that a killed one left unanswered is made again.

    All of them may therefore arrive twice.

    Args:
        job_id: The job.
    """

    def __init__(self, job_id: str):
        self._job_id = job_id
        self._actor = find_supervisor(job_id)

    def ask(
        self,
        method: str,
        *arguments: object,
        timeout_s: float,
        back_within_s: float = _BACK_WITHIN_S,
    ) -> Any:
        """Call a method and wait for its answer.

        Args:
            method: Its name.
            arguments: What it takes.
            timeout_s: How long a supervisor that is alive may take.
            back_within_s: How long one that is killed may take to come back.

        Raises:
            SupervisorGoneError: There is no supervisor any more.
            ClusterError: None has come back in time, or it does not answer.
        """
        deadline: float | None = None
        while True:
            try:
                return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout_s)
            except GetTimeoutError as error:
                raise ClusterError(
                    f"The supervisor of job {self._job_id} did not answer `{method}` in"
                    f" {timeout_s:g} s."
                ) from error
            except RayActorError as error:
                find_supervisor(self._job_id)
                if deadline is None:
                    logger.warning("the supervisor is being started anew: %s", _first(error))
                    deadline = time.monotonic() + back_within_s
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"The supervisor of job {self._job_id} did not come back in"
                        f" {back_within_s:g} s: {_first(error)}"
                    ) from None
                time.sleep(_AGAIN_S)


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
