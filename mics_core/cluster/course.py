"""The course of a run: which generation trained which steps, and that each sample was used once."""

from __future__ import annotations

import time

from mics_core.cluster.clock import Clock
from mics_core.cluster.journal import Bell, Journal
from mics_core.cluster.messages import Committed
from mics_core.cluster.regrouping import Regrouped, Regroupings
from mics_core.cluster.step_order import StepOrder
from mics_core.elastic.ledger import SampleLedger
from mics_core.spec.status import GenerationRecord, SampleCount, StepRecord

__all__ = ["Course"]

_REPORTED_WITHIN_S = 5.0


class Course:
    """Keeps the books of generations and steps, and enters them into the journal.

    Args:
        journal: The job's.
        global_batch_size: Samples of a step.
        clock: The run's.
    """

    def __init__(
        self,
        journal: Journal,
        global_batch_size: int,
        clock: Clock | None = None,
    ):
        self._journal = journal
        self._clock = clock or Clock()
        self._ledger = SampleLedger(global_batch_size)
        self._order: StepOrder[Committed] = StepOrder(_REPORTED_WITHIN_S)
        self._regroupings = Regroupings()
        self.generations: list[GenerationRecord] = []
        self.step = 0
        """The next step to be committed."""
        self.newest_trained = 0
        """The newest generation under which a step was committed."""
        self.committed = Bell()
        """Rung at every committed step."""

    @property
    def samples(self) -> SampleCount:
        """How often the samples of the committed steps were used."""
        use = self._ledger.total
        return SampleCount(due=use.due, used=use.used, repeated=use.repeated)

    def announce(
        self, number: int, groups: tuple[int, ...], reason: str, *, after_loss: bool
    ) -> None:
        """Enter a generation that its members have yet to enter."""
        record = GenerationRecord(
            number=number, groups=list(groups), reason=reason, step=None, time=time.time()
        )
        self.generations.append(record)
        self._journal.generation(record)
        now = self._clock.with_all()
        self._note_changes(self._regroupings.announced(number, groups, now, after_loss=after_loss))

    def enter(self, group_id: int, generation: int, step: int, connect_s: float) -> None:
        """Note that a group trains under a generation from `step` on."""
        record = self.generations[generation - 1]
        if record.step is None:
            self._begin(record, step)
        now = self._clock.with_all()
        self._note_changes(self._regroupings.entered(generation, group_id, step, connect_s, now))

    def commit(self, message: Committed) -> None:
        """Take in what one group says of a committed step; the groups tell in any order."""
        step, generation = message.commit.step, message.commit.generation
        self._note_steps(self._order.take(step, generation, message, self._clock()))

    def note_overdue(self) -> None:
        """Go on without steps that nobody has told of in time."""
        self._note_steps(self._order.overdue(self._clock()))

    def end(self) -> None:
        """Enter what was still waited for: nobody tells of anything any more."""
        self._note_steps(self._order.rest())
        self._note_changes(self._regroupings.ended())

    def _begin(self, record: GenerationRecord, step: int) -> None:
        if step < self.step:
            self._ledger.rewind(step)
        if step < self.step or self._journal.last_step is None:
            self._order.begin(step, record.number)
            self.step = step
        entered = record.model_copy(update={"step": step})
        self.generations[record.number - 1] = entered
        self._journal.generation(entered)

    def _note_steps(self, messages: list[Committed]) -> None:
        for message in messages:
            self._note_step(message)

    def _note_step(self, message: Committed) -> None:
        commit = message.commit
        shares = [(run.start, len(run)) for share in commit.shares for run in share.runs]
        if not self._ledger.commit(commit.step, commit.generation, shares):
            return
        self.step = commit.step + 1
        self.newest_trained = max(self.newest_trained, commit.generation)
        self._journal.step(
            StepRecord(
                step=commit.step,
                time=message.time,
                loss=commit.loss,
                tokens=commit.num_tokens,
                samples=sum(share.num_samples for share in commit.shares),
                step_s=message.step_s,
                tokens_per_s=commit.num_tokens / message.step_s if message.step_s > 0 else 0.0,
                gradient_norm=commit.gradient_norm,
                learning_rate=commit.learning_rate,
                generation=commit.generation,
                num_groups=commit.num_groups,
                communication_s=commit.waited_s,
            ),
            message.took_s,
        )
        self.committed.ring()
        at = self._clock.when(message.time)
        self._note_changes(self._regroupings.committed(commit.generation, at, commit.in_hand))

    def _note_changes(self, changes: list[Regrouped]) -> None:
        for change in changes:
            reason = self.generations[change.generation - 1].reason
            self._journal.regroup(reason, change)
