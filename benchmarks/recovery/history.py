"""What a fault cost our system, from the events of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness.followed import FollowedJob
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome, extra_of, usual_step_s
from mics_core.spec.status import GenerationRecord, RegroupPhases, StepRecord

__all__ = ["History"]


@dataclass(frozen=True, slots=True)
class History:
    """What a job has told so far.

    Args:
        steps: Its committed steps, in order. Only their times of commit count: what a step took is
            told by whichever worker reports it first, and a newcomer has seen no commit before.
        entered: The generations that its members entered.
        regrouped: What the changes of membership took, by generation.
    """

    steps: Sequence[StepRecord]
    entered: Sequence[GenerationRecord]
    regrouped: Mapping[int, RegroupPhases]

    @classmethod
    def of(cls, job: FollowedJob) -> History:
        """Return the history of a job as it is now."""
        return cls(job.steps, job.entered, job.regrouped)

    def announced(self, generation: int) -> float:
        """Return when a generation was announced."""
        return next(each.time for each in self.entered if each.number == generation)

    def cost_of_loss(self, at: float, first: StepRecord) -> Outcome:
        """Measure a loss.

        Args:
            at: When it happened.
            first: The survivors' first step after it.
        """
        usual_s = usual_step_s([step.time for step in self.steps if step.time <= at])
        earlier = [step.time for step in self.steps if step.generation < first.generation]
        return Outcome(
            stall_s=first.time - at - usual_s,
            steps_redone=self.steps_redone(first),
            extra_step_ratio=(first.time - max(earlier)) / usual_s - 1.0,
            phases=self._phases(first, usual_s),
        )

    def cost_of_change(
        self, at: float, since: float, first: StepRecord, until_s: float | None = None
    ) -> Outcome:
        """Measure a change without a loss, once its members have trained for a while after it.

        Args:
            at: When it was asked for. A usual step is one before that: what starts then may share
                the members' processors.
            since: When it was asked for or announced; what is added counts from there.
            first: The first step of the new membership.
            until_s: See `Outcome.until_contribution_s`.
        """
        before = [step.time for step in self.steps if step.time <= since]
        during = [step.time for step in self.steps if since < step.time <= first.time]
        after = [step.time for step in self.steps if step.time >= first.time]
        before_s = usual_step_s([time for time in before if time <= at])
        extra = extra_of([before[-1], *during], before_s, usual_step_s(after[: NORMAL_STEPS + 1]))
        return Outcome(
            stall_s=max(0.0, extra.extra_s),
            steps_redone=self.steps_redone(first),
            extra_step_ratio=extra.ratio,
            until_contribution_s=until_s,
            phases=self._phases(first, before_s),
            with_capacity_ratio=extra.with_capacity_ratio,
        )

    def steps_redone(self, first: StepRecord) -> int:
        """Count the steps that were begun or committed before `first` and taken up again.

        Three kinds are told of: steps that were committed and come again, the step that a loss
        broke (the change's `redo_s`), and attempts at it in generations that the members entered
        and committed nothing in.
        """
        earlier = [step for step in self.steps if step.generation < first.generation]
        since = max(step.generation for step in earlier)
        committed = {step.step for step in earlier if step.step >= first.step}
        broken = [
            number
            for number, phases in self.regrouped.items()
            if since < number <= first.generation and phases.redo_s is not None
        ]
        given_up = {each.number for each in self.entered if since < each.number < first.generation}
        return len(committed) + len(broken) + len(given_up)

    def _phases(self, first: StepRecord, usual_s: float) -> dict[str, float | None]:
        """Return what the job says of a change, with a usual step beside it."""
        return dict(self.regrouped[first.generation]) | {"normal_step_s": usual_s}
