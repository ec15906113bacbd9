"""What the stories on the cluster of the end-to-end tests have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner

from mics_core.spec.status import JobEvent, JobState, StateEvent, StepEvent
from service.cli.main import build_app
from tests.e2e.service_process import ServiceProcess

__all__ = ["DEADLINE_S", "ENDLESS", "Stream", "mics", "small_job"]

DEADLINE_S = 180.0
ENDLESS = 1_000_000


def small_job(**changes: Any) -> dict[str, Any]:
    """One group of two workers that would train for ever; up to two groups."""
    job: dict[str, Any] = {
        "name": "small",
        "model": {"family": "gpt2", "hidden_size": 66, "num_layers": 2, "num_heads": 3},
        "data": {"kind": "text", "paths": ["data.txt"]},
        "training": {
            "sequence_length": 16,
            "global_batch_size": 12,
            "micro_batch_size": 1,
            "steps": ENDLESS,
        },
        "partition_size": 2,
        "groups": {"wanted": 1, "maximum": 2},
    }
    return job | changes


@dataclass
class Stream:
    """The events of one job, read as far as a test needs."""

    source: Iterator[JobEvent]
    read: list[JobEvent] = field(default_factory=list)

    def read_until(self, happened: Callable[[JobEvent], object], what: str) -> JobEvent:
        deadline = time.monotonic() + DEADLINE_S
        for event in self.source:
            self.read.append(event)
            if happened(event):
                return event
            if time.monotonic() > deadline:
                break
        last = "\n  ".join(str(event) for event in self.read[-8:])
        raise AssertionError(f"{what} was missing after {DEADLINE_S:g} s; last:\n  {last}")

    def read_steps(self, number: int, num_groups: int) -> None:
        """Read that many more steps, the last with that many groups."""
        for _ in range(number):
            self.read_until(
                lambda e: isinstance(e, StepEvent) and e.record.num_groups == num_groups,
                f"a step with {num_groups} groups",
            )

    def read_state(self, state: JobState) -> StateEvent:
        found = self.read_until(
            lambda e: isinstance(e, StateEvent) and e.state == state, f"the state {state}"
        )
        assert isinstance(found, StateEvent)
        return found

    @property
    def steps(self) -> list[int]:
        return [event.record.step for event in self.read if isinstance(event, StepEvent)]


def mics(service: ServiceProcess, *words: str) -> str:
    """Run the command line against the service; return what it printed."""
    environment = {"MICS_URL": service.url, "COLUMNS": "160"}
    result = CliRunner().invoke(build_app(), list(words), env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout
