"""What happens to the job: it is scaled, a node is lost, and it trains on. Driven by its events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from mics_core.spec.status import (
    GenerationEvent,
    GroupEvent,
    JobState,
    JobStatus,
    StateEvent,
    StepEvent,
    StepRecord,
)
from service.client import MicsClient

STEPS_BEFORE_SCALING = 20
STEPS_BEFORE_LOSS = 25


@dataclass
class Facts:
    """What the scenario saw."""

    job_id: str
    steps: list[StepRecord] = field(default_factory=list)
    pids_at_start: list[int] = field(default_factory=list)
    pids_at_end: list[int] = field(default_factory=list)
    lost_group: int | None = None
    lost_processes: list[int] = field(default_factory=list)
    final: JobStatus | None = None
    state: JobState = JobState.PENDING
    reason: str = ""


class Scenario:
    """Follows one job over the service's event stream and acts at the right moments.

    Args:
        client: The service.
        kill_node: Ends a node's processes without warning and returns their ids.
        say: Prints a line for the reader.
    """

    def __init__(
        self,
        client: MicsClient,
        kill_node: Callable[[str], list[int]],
        say: Callable[[str], None],
    ):
        self._client = client
        self._kill_node = kill_node
        self._say = say
        self._has_scaled = False
        self._joined_at: int | None = None

    def follow(self, job_id: str, total_steps: int) -> Facts:
        """Follow the job to its end; return what happened."""
        facts = Facts(job_id)
        for event in self._client.watch(job_id):
            match event:
                case StepEvent(record=record):
                    facts.steps.append(record)
                    self._show(record, total_steps)
                    self._act(facts, record)
                case GenerationEvent(generation=generation) if generation.step is not None:
                    self._say(
                        f"  generation {generation.number} from step {generation.step}, groups"
                        f" {generation.groups}: {generation.reason}"
                    )
                    if len(generation.groups) == 3 and self._joined_at is None:
                        self._joined_at = generation.step
                case GroupEvent():
                    self._say(f"  group {event.group_id} is {event.state.value}: {event.reason}")
                case StateEvent():
                    self._say(f"  job is {event.state.value}: {event.reason}")
                    facts.state, facts.reason = event.state, event.reason
        facts.final = self._client.job(job_id).status
        facts.pids_at_end = _pids(facts.final, 0)
        return facts

    def _show(self, record: StepRecord, total_steps: int) -> None:
        if record.step % 10 == 0 or record.step == total_steps - 1:
            self._say(
                f"step {record.step + 1:4d}/{total_steps}  loss {record.loss:.3f}"
                f"  {record.tokens_per_s:7.0f} tokens/s  {record.num_groups} groups"
            )

    def _act(self, facts: Facts, record: StepRecord) -> None:
        if not self._has_scaled and record.step >= STEPS_BEFORE_SCALING:
            self._has_scaled = True
            facts.pids_at_start = _pids(self._client.job(facts.job_id).status, 0)
            self._say("→ POST /scale: three partition groups, please")
            self._client.scale(facts.job_id, 3)
        is_time = self._joined_at is not None and record.step >= self._joined_at + STEPS_BEFORE_LOSS
        if is_time and facts.lost_group is None:
            status = self._client.job(facts.job_id).status
            assert status is not None
            victim = next(group for group in status.groups if group.group_id == 1)
            facts.lost_group = victim.group_id
            node_id = victim.workers[0].node_id
            self._say(f"→ SIGKILL to node {node_id[:8]}: its raylet and the workers of group 1")
            # In a thread: the cluster takes seconds to bury the node, the stream goes on meanwhile.
            self._killer = threading.Thread(
                target=lambda: facts.lost_processes.extend(self._kill_node(node_id))
            )
            self._killer.start()

    def join(self) -> None:
        """Wait until the lost node is buried."""
        if self._joined_at is not None and hasattr(self, "_killer"):
            self._killer.join()


def rate(steps: list[StepRecord], num_groups: int, before: int | None = None) -> float:
    """Median tokens/s of the steps with a number of groups, up to step `before`."""
    rates = [
        step.tokens_per_s
        for step in steps
        if step.num_groups == num_groups and (before is None or step.step < before)
    ]
    return median(rates[1:] or rates or [0.0])


def _pids(status: JobStatus | None, group_id: int) -> list[int]:
    if status is None:
        return []
    workers = [group.workers for group in status.groups if group.group_id == group_id]
    return [worker.pid for worker in workers[0]] if workers else []
