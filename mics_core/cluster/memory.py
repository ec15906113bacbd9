"""What a supervisor remembers of its job; see [Note: a supervisor that is killed] in `record`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mics_core.cluster.clock import Clock
from mics_core.cluster.course import Course
from mics_core.cluster.figures import JobFigures
from mics_core.cluster.groups import GroupRun, GroupRuns
from mics_core.cluster.journal import Journal
from mics_core.cluster.pace import slowness_of
from mics_core.elastic.machine import MembershipMachine, Rules
from mics_core.elastic.plan import GenerationPlan, has_lost_member
from mics_core.spec.folders import LONGEST_WRITE_S
from mics_core.spec.job import GroupsSpec, JobSpec
from mics_core.spec.status import GroupState, GroupStatus, JobState, JobStatus

__all__ = ["Memory"]


@dataclass(slots=True)
class Memory:
    """All that is known of a run; pickles, the journal without its events.

    Args:
        clock: The run's.
        machine: Who is a member.
        journal: What happened.
        course: Which generation trained what.
        groups: The bounds of the number of groups, which may have been changed.
        figures: What the job's speed is held against.
        created: When the job was started, in seconds since the epoch.
        plans: The generations by number.
        after_loss: The newest generation that was announced because a member is gone.
        ending: What somebody asked for that ends it, such as `being paused`; empty if nobody did.
        runs: The groups' runs.
        heard_at: When a worker reported last, by the clock.
    """

    clock: Clock
    machine: MembershipMachine
    journal: Journal
    course: Course
    groups: GroupsSpec
    figures: JobFigures
    created: float = field(default_factory=time.time)
    plans: dict[int, GenerationPlan] = field(default_factory=dict)
    after_loss: int = 0
    ending: str = ""
    runs: dict[int, GroupRun] = field(default_factory=dict)
    heard_at: float = 0.0

    @property
    def quiet_s(self) -> float:
        """Seconds since any worker reported something."""
        return self.clock() - self.heard_at

    def where_it_goes_on(self) -> str:
        """Say in a sentence where a paused job goes on."""
        step, saved = self.course.step, self.journal.last_checkpoint
        if step in (saved, 0):
            return f"It goes on from step {step}."
        return (
            f"It was at step {step}, of which no checkpoint could be written; it goes on from the"
            " newest complete one."
        )

    def note_loss(self) -> bool:
        """Note if members have to give their step up for the newest generation.

        To be called when one is announced, and when a group has entered one: who entered a
        generation may be heard only after a member of it was lost and another was announced.

        Returns:
            Whether they have to, and that was not known before.
        """
        newest = self.machine.generation
        entered = max((group.entered for group in self.machine.groups.values()), default=0)
        is_news = entered < newest > self.after_loss
        if not is_news or not has_lost_member(self.plans, entered, self._is_alive):
            return False
        self.after_loss = newest
        return True

    def _is_alive(self, group_id: int) -> bool:
        run = self.runs.get(group_id)
        return run is not None and not run.stopped

    @classmethod
    def of_new_job(cls, spec: JobSpec, figures: JobFigures, after: int) -> Memory:
        """Return what is known before anything has happened.

        Args:
            spec: The job.
            figures: What its speed is held against.
            after: Sequence number of its last event before it was paused, if it was.
        """
        clock, journal = Clock(), Journal(after)
        groups = spec.groups
        # The one under way, and that of the last step.
        quiet_s = 2 * LONGEST_WRITE_S if spec.checkpoint.directory is not None else 0.0
        return cls(
            clock=clock,
            machine=MembershipMachine(
                Rules(
                    groups.minimum,
                    groups.wanted,
                    start_s=groups.start_s,
                    silence_s=groups.silence_s,
                    first_step_s=groups.first_step_s,
                    quiet_s=quiet_s,
                )
            ),
            journal=journal,
            course=Course(journal, spec.training.global_batch_size, clock),
            groups=groups,
            figures=figures,
        )

    @property
    def state(self) -> JobState:
        """The job's state."""
        return JobState(self.machine.phase)

    def status(self, job_id: str, spec: JobSpec, partition_size: int, runs: GroupRuns) -> JobStatus:
        """Return the live status."""
        last = self.journal.last_step
        paces = {
            group.group_id: self.runs[group.group_id].pace.sample_s
            for group in self.machine.groups.values()
            if GroupState(group.phase) is GroupState.MEMBER and group.group_id in self.runs
        }
        slowness = slowness_of(paces)
        generations = self.course.generations
        return JobStatus(
            job_id=job_id,
            name=spec.name,
            state=self.state,
            reason=self.machine.reason or (generations[-1].reason if generations else ""),
            created=self.created,
            step=self.course.step,
            steps=spec.training.steps,
            loss=last.loss if last is not None else None,
            tokens_per_s=self.journal.tokens_per_s,
            generation=self.machine.generation,
            partition_size=partition_size,
            wanted_groups=self.machine.wanted,
            minimum_groups=spec.groups.minimum,
            maximum_groups=spec.groups.upper_bound,
            model_flops_per_sample=self.figures.model_flops_per_sample,
            peak_flops_per_s=self.figures.peak_flops_per_s,
            groups=[
                GroupStatus(
                    group_id=group.group_id,
                    state=GroupState(group.phase),
                    reason=group.reason,
                    workers=runs.workers_of(group.group_id),
                    sample_s=paces.get(group.group_id),
                    slowness=slowness.get(group.group_id),
                )
                for group in self.machine.groups.values()
            ],
            generations=generations,
            samples=self.course.samples,
        )
