"""Jobs of the past, as a service of a team has stored them."""

from __future__ import annotations

import random
import time

from mics_core.spec import JobSpec
from mics_core.spec.status import JobEvent, JobState, StateEvent, StepEvent, StepRecord
from service.settings import Settings
from service.store import Store

__all__ = ["store_jobs"]

_OWNERS = ("ada", "ben", "cleo", "dan")
_STEP_S = 0.5


def store_jobs(settings: Settings, spec: JobSpec, number: int, steps: int) -> None:
    """Write so many jobs that have ended into a service's database, with the events of their steps.

    Args:
        settings: The service's; it does not run yet.
        spec: What the jobs trained.
        number: Jobs.
        steps: Steps of each.
    """
    chance, began = random.Random(0), time.time() - 30 * 86_400
    settings.data_directory.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database)
    try:
        for index in range(number):
            job_id, created = f"stored-{index:04}", began + 600 * index
            store.add_job(
                job_id,
                spec.model_copy(update={"name": f"Stored {index}"}),
                source="rest",
                created=created,
                reason="It was submitted.",
                owner=chance.choice(_OWNERS),
            )
            store.append_events(job_id, _history(created, steps, spec))
            state = chance.choice((JobState.FINISHED, JobState.CANCELLED, JobState.FAILED))
            ended = created + steps * _STEP_S
            store.close_job(job_id, state, "It ended long ago.", ended, None)
    finally:
        store.close()


def _history(created: float, steps: int, spec: JobSpec) -> list[JobEvent]:
    running = StateEvent(
        sequence=1, time=created, state=JobState.RUNNING, reason="All wanted groups train."
    )
    return [running, *(_step(created, number, spec) for number in range(steps))]


def _step(created: float, number: int, spec: JobSpec) -> StepEvent:
    training = spec.training
    tokens = training.global_batch_size * training.sequence_length
    committed = created + (number + 1) * _STEP_S
    record = StepRecord(
        step=number,
        time=committed,
        loss=2.0 + 4.0 / (number + 1),
        tokens=tokens,
        samples=training.global_batch_size,
        step_s=_STEP_S,
        tokens_per_s=tokens / _STEP_S,
        gradient_norm=1.0,
        learning_rate=3e-4,
        generation=1,
        num_groups=2,
    )
    return StepEvent(sequence=number + 2, time=committed, record=record)
