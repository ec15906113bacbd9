"""How fast each partition group is: all commit a step together, so the steps do not tell.

Whoever is slow makes the others wait for it in the second hop. A step less that wait is what a
group took itself; its median over the last steps, by the samples it had, is the group's pace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from mics_core.cluster.messages import Committed

__all__ = ["Pace", "slowness_of"]

_STEPS = 20


class Pace:
    """The pace of one partition group under the generation of its last step.

    Another generation divides the samples otherwise, so it begins anew. It is not remembered across
    a supervisor's death: a few steps bring it back.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._samples_s: deque[float] = deque(maxlen=_STEPS)

    def take_in(self, message: Committed, place: int) -> None:
        """Take in a committed step.

        Args:
            message: What the group's rank 0 says of it.
            place: The group's place in the generation that committed it.
        """
        commit = message.commit
        if commit.generation != self._generation:
            self._generation = commit.generation
            self._samples_s.clear()
            return  # its first step contains the change itself
        num_samples = commit.shares[place].num_samples
        if num_samples:  # a group that catches up has none
            own_s = max(0.0, message.step_s - commit.waited_across_s)
            self._samples_s.append(own_s / num_samples)

    @property
    def sample_s(self) -> float | None:
        """Seconds for one of its samples without waits for other groups; none before two steps."""
        return median(self._samples_s) if self._samples_s else None

    def __reduce__(self) -> tuple[type[Pace], tuple[()]]:
        return Pace, ()


def slowness_of(paces: Mapping[int, float | None]) -> dict[int, float]:
    """Return how many times slower each group is than the median of the others.

    Args:
        paces: Seconds a sample of the groups that train.

    Returns:
        The ratio by group; without those of which nothing is known, and empty for less than two.
    """
    known = {group_id: pace for group_id, pace in paces.items() if pace}
    if len(known) < 2:
        return {}
    return {
        group_id: pace / median(other for key, other in known.items() if key != group_id)
        for group_id, pace in known.items()
    }
