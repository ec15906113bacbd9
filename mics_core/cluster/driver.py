"""The driver of a job: the one entry point for direct use, `ray job submit` and the service.

    python -m mics_core.cluster.driver job.yaml

It checks the specification against files and cluster, starts the supervisor, logs what happens, and
ends with the job: status 0 if it finished or was cancelled, 1 if it failed, 2 if it was refused.
Interrupted or terminated it cancels the job; killed it leaves the job running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import ray
from pydantic import TypeAdapter

from mics_core.cluster.figures import figures_of
from mics_core.cluster.layout import Layout, settle_layout
from mics_core.cluster.names import NAMESPACE, SPEC_VARIABLE, supervisor_name
from mics_core.cluster.reaching import SupervisorGoneError, SupervisorHandle, has_supervisor
from mics_core.errors import JobConflictError, MicsError, SpecificationError
from mics_core.spec import JobSpec, check_files, load_job_spec, parse_job_spec
from mics_core.spec.status import (
    CheckpointEvent,
    GenerationEvent,
    GroupEvent,
    JobEvent,
    JobState,
    RegroupEvent,
    ScaleEvent,
    StateEvent,
    StepEvent,
)

__all__ = ["main", "run_job", "start_supervisor"]

logger = logging.getLogger("mics")

_POLL_S = 5.0
_ANSWER_S = 60.0
_LAST_RUNS_S = 60.0
_LOOK_S = 0.2
_STEP_LOG_INTERVAL_S = 2.0
_TERMINATED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    options = _parse(arguments)
    try:
        spec = _read_spec(options.job)
        check_files(spec)
        _connect(options.address)
        signal.signal(signal.SIGTERM, _raise_terminated)  # after Ray has put its own handler there
        job_id = options.job_id or submission_id() or new_job_id(spec.name)
        state = run_job(job_id, spec, after=options.after)
    except MicsError as error:
        # The last line of a refused job's log is what the service shows for it.
        logger.error("%s: %s", type(error).__name__, error)
        return 2 if isinstance(error, SpecificationError) else 1
    except _Terminated:
        logger.info("terminated while there was no job")
        return _TERMINATED
    return 1 if state == JobState.FAILED else 0


def new_job_id(name: str) -> str:
    """Return a fresh id that starts with the job's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
    return f"{slug}-{uuid.uuid4().hex[:8]}"


def submission_id() -> str | None:
    """Return the id under which the Ray Jobs API knows this driver, if it started it.

    A job sent by `ray job submit` is then found under the same id in Ray's tools and here.
    """
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return None
    found = config.get("metadata", {}).get("job_submission_id")
    return found if isinstance(found, str) else None


def run_job(
    job_id: str,
    spec: JobSpec,
    after: int = 0,
    on_event: Callable[[JobEvent], None] | None = None,
) -> JobState:
    """Run a job on the connected cluster until it ends or is paused; return its state then.

    A process that is interrupted or terminated meanwhile cancels the job, if there is one by then.

    Args:
        job_id: Its id.
        spec: Its specification.
        after: Sequence number of its last event before it was paused, if it goes on.
        on_event: Called with every event, in order, in the thread of the caller.

    Raises:
        LayoutError: The cluster cannot hold the layout.
    """
    layout = settle_layout(spec)
    logger.info("partition size %d: %s", layout.partition_size, layout.reason)
    if after:
        _wait_until_gone(job_id)  # the supervisor that paused it
    journal: _Journal | None = None
    is_taken = has_supervisor(job_id)
    try:
        start_supervisor(job_id, layout, after)
        logger.info("job %s started", job_id)
        journal = _Journal(SupervisorHandle(job_id), after, on_event)
        state = journal.log_to_the_end()
    except (KeyboardInterrupt, _Terminated) as stop:
        if is_taken and journal is None:
            raise  # that job is somebody else's
        try:
            supervisor = SupervisorHandle(job_id)
        except SupervisorGoneError:
            raise stop from None  # there is no job: not yet, or not any more
        journal = journal or _Journal(supervisor, after, on_event)
        why = "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated"
        logger.info("%s: cancelling the job at the next step boundary", why)
        with contextlib.suppress(JobConflictError):  # somebody was faster
            supervisor.ask("cancel", f"The driver was {why}.", timeout_s=_ANSWER_S)
        state = journal.log_to_the_end()
    _wait_until_gone(job_id)
    return state


def _wait_until_gone(job_id: str) -> None:
    """Wait until the runs of all groups have ended and the supervisor after them."""
    deadline = time.monotonic() + _LAST_RUNS_S
    while has_supervisor(job_id) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


class _Terminated(BaseException):
    """The process was asked to end, as the Ray Jobs API does when a job is stopped.

    As `KeyboardInterrupt`, it is no `Exception`: it comes anywhere, also where those are caught,
    such as in the middle of a line of the log.
    """


def _raise_terminated(_number: int, _frame: object) -> None:
    raise _Terminated


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mics_core.cluster.driver", description=__doc__)
    parser.add_argument(
        "job",
        nargs="?",
        help=f"YAML file; without it the specification is read from {SPEC_VARIABLE}",
    )
    parser.add_argument("--job-id", help="id of the job; made from its name if left out")
    parser.add_argument(
        "--after",
        type=int,
        default=0,
        help="number of the job's last event, where it goes on after it was paused",
    )
    parser.add_argument("--address", help="address of the Ray cluster; found if left out")
    return parser.parse_args(arguments)


def _read_spec(path: str | None) -> JobSpec:
    if path is not None:
        return load_job_spec(path)
    text = os.environ.get(SPEC_VARIABLE)
    if text is None:
        raise MicsError(
            "There is no job: neither a file was named nor is"
            f" {SPEC_VARIABLE} set in the environment.",
            remedy="Name a YAML file.",
        )
    return parse_job_spec(json.loads(text))


def _connect(address: str | None) -> None:
    if not ray.is_initialized():
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING
        )


def start_supervisor(job_id: str, layout: Layout, after: int = 0) -> None:
    """Start a job's supervisor, which then lives on its own, on the connected cluster.

    Args:
        job_id: The job.
        layout: What was settled for it.
        after: Sequence number of its last event before it was paused, if it goes on.
    """
    from mics_core.cluster.supervisor import JobSupervisor

    # For Ray Train's own notes of a run; checkpoints go elsewhere.
    storage = Path(tempfile.gettempdir()) / "mics"
    here = ray.get_runtime_context().get_node_id()
    supervisor = (
        ray.remote(JobSupervisor)
        .options(
            name=supervisor_name(job_id),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            # The workers' reports would fill Ray's list of tasks, and cost each step of theirs.
            enable_task_events=False,
            max_concurrency=10_000,  # every worker and every watcher waits in a call of its own
            # Here, or wherever there is a node once this one is lost. A soft node affinity would
            # not do: Ray hands an actor without resources to any node, which keeps it.
            label_selector={"ray.io/node-id": here},
            fallback_strategy=[{"label_selector": {}}],
        )
        .remote(
            job_id,
            layout.spec.model_dump(mode="json"),
            layout.partition_size,
            layout.strategy,
            f"{storage}/{job_id}" if not after else f"{storage}/{job_id}-{after}",
            figures_of(layout.spec),
            after,
        )
    )
    ray.get(supervisor.start.remote())


class _Journal:
    """Reads the job's events into the log."""

    def __init__(
        self,
        supervisor: SupervisorHandle,
        after: int,
        on_event: Callable[[JobEvent], None] | None,
    ):
        self._supervisor = supervisor
        self._on_event = on_event
        self._adapter: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)
        self._after = after
        self._last_step_log = 0.0

    def log_to_the_end(self) -> JobState:
        """Log events as they come; return the final state once it is there."""
        while (state := self._log_next()) is None:
            pass
        with contextlib.suppress(SupervisorGoneError):  # it waits until somebody has heard the end
            self._supervisor.ask("events", self._after, 0.0, timeout_s=_ANSWER_S)
        return state

    def _log_next(self) -> JobState | None:
        events = self._supervisor.ask("events", self._after, _POLL_S, timeout_s=_ANSWER_S)
        for value in events:
            event = self._adapter.validate_python(value)
            self._after = event.sequence
            if self._on_event is not None:
                self._on_event(event)
            if isinstance(event, StepEvent):
                if time.monotonic() - self._last_step_log < _STEP_LOG_INTERVAL_S:
                    continue
                self._last_step_log = time.monotonic()
            _log(event)
            if isinstance(event, StateEvent) and event.state.is_at_rest:
                return event.state
        return None


def _log(event: JobEvent) -> None:
    match event:
        case StateEvent():
            logger.info("job is %s: %s", event.state.value, event.reason)
        case GroupEvent():
            logger.info("group %d is %s: %s", event.group_id, event.state.value, event.reason)
        case GenerationEvent(generation=generation):
            verb = "announced" if generation.step is None else f"trains from step {generation.step}"
            logger.info(
                "generation %d %s, groups %s: %s",
                generation.number,
                verb,
                generation.groups,
                generation.reason,
            )
        case ScaleEvent():
            logger.info("%d groups wanted: %s", event.wanted, event.reason)
        case CheckpointEvent():
            ending = f"failed: {event.error}" if event.error else "is complete"
            logger.info("checkpoint %s %s", event.path, ending)
        case RegroupEvent():
            logger.info("generation %d took: %s", event.generation, event.in_words())
        case StepEvent(record=record):
            logger.info(
                "step %d  loss %.4f  %.0f tokens/s  %d groups",
                record.step,
                record.loss,
                record.tokens_per_s,
                record.num_groups,
            )


if __name__ == "__main__":
    sys.exit(main())
