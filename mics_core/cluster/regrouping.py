"""Measures changes of membership: how long the phases of each took, as the supervisor saw it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mics_core.spec.status import RegroupPhases

__all__ = ["Regrouped", "Regroupings"]


@dataclass(frozen=True, slots=True)
class Regrouped:
    """A change of membership that is over.

    Args:
        generation: The generation that it led to.
        step: Its first step.
        phases: What it took.
        kept: The part of the step that a loss broke which its members had in hand, 0 to 1; none
            without a loss.
        overtook: Generations before it of which no commit was heard, by number.
    """

    generation: int
    step: int
    phases: RegroupPhases
    kept: float | None = None
    overtook: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    at: float
    step: int
    connect_s: float


@dataclass(slots=True)
class _Change:
    """A generation from its announcement on; times in seconds of one clock.

    Args:
        number: Its number.
        groups: Its members.
        announced: When it was announced, or the first of those that it overtook after a loss.
        detect_s: From the last commit to the announcement, if a member was lost.
        entries: The members that train, with when they said so.
        committed: When its first step was committed.
        kept: The part of that step which its members had in hand.
        overtook: The generations that it overtook.
    """

    number: int
    groups: tuple[int, ...]
    announced: float
    detect_s: float | None
    overtook: tuple[int, ...] = ()
    entries: dict[int, _Entry] = field(default_factory=dict)
    committed: float | None = None
    kept: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.committed is not None and len(self.entries) == len(self.groups)

    def measured(self) -> Regrouped:
        """Return what is known; newcomers that never came are left out."""
        assert self.committed is not None
        first = min(entry.step for entry in self.entries.values())
        # Who enters later has copied meanwhile.
        holders = [entry for entry in self.entries.values() if entry.step == first]
        late = [entry.at for entry in self.entries.values() if entry.step > first]
        met = max(entry.at for entry in holders)
        # Who came last has waited for nobody.
        connect_s = min(entry.connect_s for entry in holders)
        return Regrouped(
            self.number,
            first,
            RegroupPhases(
                detect_s=self.detect_s,
                agree_s=max(0.0, met - connect_s - self.announced),
                connect_s=connect_s,
                copy_s=max(late) - met if late else None,
                redo_s=max(0.0, self.committed - met) if self.detect_s is not None else None,
            ),
            self.kept if self.detect_s is not None else None,
            self.overtook,
        )


class Regroupings:
    """The changes of one run; each method returns those that are over with what it is told."""

    def __init__(self) -> None:
        self._change: _Change | None = None
        self._last_commit: float | None = None

    def announced(
        self, number: int, groups: tuple[int, ...], now: float, *, after_loss: bool
    ) -> list[Regrouped]:
        """Begin a change; one that was still waiting for newcomers ends without them.

        One under which nothing was committed yet is overtaken, and the change that follows names
        it: if a loss began it, what it took is told as part of the next one too, which commits the
        step that the loss broke.
        """
        before = self._change
        detect_s: float | None = None
        overtook: tuple[int, ...] = ()
        if before is not None and before.committed is None:
            overtook = (*before.overtook, before.number)
            if before.detect_s is not None:
                now, detect_s = before.announced, before.detect_s
        if detect_s is None and after_loss and self._last_commit is not None:
            detect_s = now - self._last_commit
        self._change = _Change(number, groups, now, detect_s, overtook)
        return [before.measured()] if before is not None and before.committed is not None else []

    def entered(
        self, number: int, group_id: int, step: int, connect_s: float, now: float
    ) -> list[Regrouped]:
        """Note that a group trains under a generation from `step` on."""
        change = self._change
        if change is None or change.number != number or group_id not in change.groups:
            return []
        change.entries.setdefault(group_id, _Entry(now, step, connect_s))
        return self._end()

    def committed(self, generation: int, at: float, in_hand: float = 0.0) -> list[Regrouped]:
        """Note a committed step; it was after the one before, whatever two machines' clocks say.

        Args:
            generation: Under which it was committed.
            at: When.
            in_hand: The part of it that had been computed before that generation.
        """
        now = at if self._last_commit is None else max(at, self._last_commit)
        self._last_commit = now
        change = self._change
        if change is None or change.number != generation or not change.entries:
            return []
        if change.committed is None:
            change.committed, change.kept = now, in_hand
        return self._end()

    def ended(self) -> list[Regrouped]:
        """Note that the run is at rest; a change that was waiting for newcomers ends without them.

        One under which nothing was committed has nothing to tell.
        """
        change = self._change
        if change is None or change.committed is None:
            return []
        self._change = None
        return [change.measured()]

    def _end(self) -> list[Regrouped]:
        change = self._change
        if change is None or not change.is_over:
            return []
        self._change = None
        return [change.measured()]
