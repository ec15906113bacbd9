"""What can be changed of a job after it was submitted: its groups, and that it goes on later."""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.errors import ScaleError
from mics_core.spec.job import GroupsSpec, JobSpec
from mics_core.spec.rules import RuleError

__all__ = ["Continuation", "GroupsChange"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a paused job goes on.

    Args:
        driver_id: Id of its new driver at the Ray Jobs API.
        after: Sequence number of its last event; those that follow count on.
    """

    driver_id: str
    after: int


@dataclass(frozen=True, slots=True)
class GroupsChange:
    """Another wanted number of partition groups, other bounds for it, or both.

    Args:
        wanted: The number; none leaves it, as far as the bounds allow.
        minimum: Fewer living groups than this and the run waits; none leaves it.
        maximum: Upper bound of the number; none leaves it.
    """

    wanted: int | None = None
    minimum: int | None = None
    maximum: int | None = None

    @property
    def words(self) -> str:
        """What is asked for, as part of a sentence."""
        parts = []
        if self.wanted is not None:
            parts.append(f"{self.wanted} partition group{'' if self.wanted == 1 else 's'}")
        parts += [
            f"a {name} of {number}"
            for name, number in (("minimum", self.minimum), ("maximum", self.maximum))
            if number is not None
        ]
        return " and ".join(parts)

    def applied_to(self, spec: JobSpec, wanted: int, partition_size: int) -> GroupsSpec:
        """Return the groups of a job after the change.

        Args:
            spec: The job, with its present bounds.
            wanted: The number that is wanted at present.
            partition_size: Workers of a partition group.

        Raises:
            ScaleError: The number is outside the bounds, or the bounds cannot be.
        """
        low = self.minimum if self.minimum is not None else spec.groups.minimum
        high = self.maximum if self.maximum is not None else spec.groups.upper_bound
        if low > high:
            raise ScaleError(
                f"The bounds {low} to {high} leave no number of partition groups.",
                field="minimum" if self.minimum is not None else "maximum",
                remedy="Choose a minimum that is not above the maximum.",
            )
        if self.wanted is not None and not low <= self.wanted <= high:
            raise ScaleError(
                f"{self.wanted} partition groups are outside the job's bounds {low} to {high}.",
                field="groups",
                remedy=f"Ask for {low} to {high}, or change the bounds: `minimum` and `maximum` of"
                " a scale request, groups.minimum and groups.maximum of the specification.",
            )
        number = min(max(wanted if self.wanted is None else self.wanted, low), high)
        groups = spec.groups.model_copy(update={"minimum": low, "wanted": number, "maximum": high})
        try:
            spec.model_copy(update={"groups": groups}).num_micro_batches(partition_size)
        except RuleError as error:
            raise ScaleError(error.rule, field="maximum", remedy=error.remedy) from None
        return groups
