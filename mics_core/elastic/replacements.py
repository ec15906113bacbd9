"""Which groups are to be launched, why, and when: the places that are free, and pauses.

[Note: back-off]
A group is replaced at once, unless groups keep failing. Two rows of failures are counted. Attempts
to start that fail are a row until a newcomer enters a generation; each is followed by a pause that
grows. Groups that train and are lost soon after they entered are a row until one that came after
the last of them has lasted; only the second of such a row is followed by a pause, for the first may
be any loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mics_core.elastic.back_off import BackOff
from mics_core.elastic.roster import Group, Rules

__all__ = ["Replacements", "Vacancy"]


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A place for a group.

    Args:
        reason: Why there is one, in a sentence.
        lineage: The first of the groups that had it before; none if it is new.
    """

    reason: str
    lineage: int | None = None


@dataclass(slots=True)
class Replacements:
    """What is known of places and failures, see [Note: back-off].

    Args:
        rules: The policy.
    """

    rules: Rules
    vacancies: list[Vacancy] = field(default_factory=list)
    starts: BackOff = field(init=False)
    early_losses: BackOff = field(init=False)
    _last_early_loss: float = 0.0

    def __post_init__(self) -> None:
        first_s, longest_s = self.rules.back_off_s, self.rules.max_back_off_s
        self.starts = BackOff(first_s, longest_s)
        self.early_losses = BackOff(first_s, longest_s, num_free=1)

    def vacate(self, group: Group, reason: str) -> None:
        """Note that a group is to be replaced."""
        why = f"It replaces group {group.group_id}: {reason}"
        self.vacancies.append(Vacancy(why, group.lineage))

    def note_loss(self, group: Group, reason: str, own_error: bool, now: float) -> None:
        """Note that a member was lost."""
        if group.draining or now - group.member_since >= self.rules.settles_s:
            return
        self.early_losses.fail(group.early_losses, reason, own_error, now)
        self._last_early_loss = now

    def note_time(self, members: Iterable[Group], now: float) -> None:
        """End the row of early losses if a group that came after the last of them has lasted."""
        if self.early_losses.failed and any(
            group.member_since > self._last_early_loss
            and now - group.member_since >= self.rules.settles_s
            for group in members
        ):
            self.early_losses.succeed()

    def due(self, missing: int, why: str, now: float) -> list[Vacancy]:
        """Return what is to be launched now, and forget places that nobody wants any more.

        Args:
            missing: Groups that are wanted and not there.
            why: The reason for those that replace none.
            now: The time.
        """
        del self.vacancies[missing:]
        if now < max(self.starts.not_before, self.early_losses.not_before):
            return []
        due = self.vacancies + [Vacancy(why)] * (missing - len(self.vacancies))
        self.vacancies = []
        return due

    def pause(self, now: float) -> str:
        """Say in a sentence what the next launch waits for, with the first error of the row."""
        starts, early = self.starts, self.early_losses
        if now < early.not_before and early.not_before >= starts.not_before:
            return (
                f"{early.failed} groups in a row were lost within {self.rules.settles_s:g} s of"
                f" their entry; the next is launched after {early.pause_s:g} s."
                f" The first error: {early.first_error}"
            )
        if now < starts.not_before:
            return (
                f"Attempt {starts.failed} to start another failed; the next begins after"
                f" {starts.pause_s:g} s. The first error: {starts.first_error}"
            )
        return ""
