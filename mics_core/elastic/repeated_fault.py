"""Recognises a fault that follows the data or the code: one step that fails in group after group.

[Note: what is evidence]
A member that raises at a step may stand on a bad machine, may have met a storage that was away for
a moment, or may have met a sample or a line of code that fails wherever it is run. Without it the
others take over its micro-batches, which tells these apart: a bad machine's step is committed by
the others, and a moment passes. So an error of a member's own code or data counts until its step is
committed. The job is ended by errors at one step

- of three different groups, or of two where only two trained when the first of them failed; a group
  and those that replaced it count as one, for they may stand on the same bad machine;
- of which one at least came after the step had gone on without a group that had failed.

The message of the error is not compared: it may name a rank, a path or an address. Processes that
die without a word, and groups that have not entered a generation, are no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mics_core.elastic.roster import Group
from mics_core.elastic.wording import named

__all__ = ["RepeatedFault"]

_ENOUGH = 3
_FEWEST = 2


@dataclass(slots=True)
class RepeatedFault:
    """The errors at one step that has not been committed since."""

    step: int = -1
    _enough: int = _ENOUGH
    _first_error: str = ""
    _groups: dict[int, int] = field(default_factory=dict)
    """The first group of each line of replacements that failed."""
    _generations: set[int] = field(default_factory=set)
    """What they had entered when they failed."""

    def note(self, group: Group, step: int, error: str, num_members: int) -> str:
        """Take in that a member's own code or data failed.

        Args:
            group: The member.
            step: The step that it was at.
            error: What happened, in a sentence.
            num_members: Members of its generation.

        Returns:
            Why the run is to end, or nothing if it may go on.
        """
        if step != self.step:
            self.step, self._first_error = step, error
            self._enough = min(_ENOUGH, max(_FEWEST, num_members))
            self._groups, self._generations = {}, set()
        self._groups.setdefault(group.lineage, group.group_id)
        self._generations.add(group.entered)
        if len(self._groups) < self._enough or len(self._generations) < 2:
            return ""
        return (
            f"Step {step} failed in {named(list(self._groups.values()))}, also when it was begun"
            " again without those that had failed: the error follows the data or the code."
            f" The first error: {self._first_error}"
        )

    def committed(self, next_step: int) -> None:
        """Take in that all steps before `next_step` are committed."""
        if 0 <= self.step < next_step:
            self.step = -1
