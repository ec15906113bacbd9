"""The exception tree of the project.

MicsError
├── SpecificationError      a job specification that breaks a rule (nothing was started)
│   └── LayoutError         a layout that the cluster or the batch arithmetic cannot hold
├── DataError               data that cannot be read or is too small
├── JobNotFoundError        no job has this id
├── JobConflictError        the job's state does not allow the request
│   └── ScaleError          a number of groups outside the job's bounds
├── JobFailedError          a job ended in failure
├── ClusterError            Ray cannot be reached, or refused what was asked
├── GroupFailedError        a partition group's own work failed (names group, rank and step)
│   └── PartitionBrokenError  a collective inside it broke: a worker is missing
├── ReplicationError        a collective across partition groups broke; survivors regroup
├── EvictedError            this partition group is no longer part of the run
└── CheckpointError         a checkpoint cannot be written, read or verified
    └── CheckpointDamagedError  it is not what was written; one before it may be whole

Every message names the value, the rule and the remedy. All of them survive pickling, since Ray
carries them between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "BrokenRule",
    "CheckpointDamagedError",
    "CheckpointError",
    "ClusterError",
    "DataError",
    "EvictedError",
    "GroupFailedError",
    "JobConflictError",
    "JobFailedError",
    "JobNotFoundError",
    "LayoutError",
    "MicsError",
    "PartitionBrokenError",
    "Problem",
    "ReplicationError",
    "ScaleError",
    "SpecificationError",
]


class MicsError(Exception):
    """Root of all errors that this project raises on purpose.

    Args:
        message: The value and the rule it breaks, in one sentence.
        remedy: What the reader can do about it, in one sentence.
        field: Dotted path of the field the error is about, if it is about one.
    """

    code = "error"

    def __init__(self, message: str, *, remedy: str | None = None, field: str | None = None):
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[MicsError], args: tuple[Any, ...], state: dict[str, Any]) -> MicsError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """What stands against something, and what to do about it.

    The two are kept apart because either may hold a value with a full stop in it.

    Args:
        rule: The value and the rule that it breaks, in one sentence.
        remedy: What to do, in one sentence; empty where nobody asks for one.
    """

    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.rule} {self.remedy}" if self.remedy else self.rule


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule of a job specification."""

    field: str
    value: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value} is refused: {self.rule} {self.remedy}"

    def as_dict(self) -> dict[str, str]:
        """Return the problem as a JSON object."""
        return asdict(self)


class SpecificationError(MicsError):
    """A job specification breaks one or more rules; nothing was started."""

    code = "invalid_specification"

    def __init__(self, problems: Sequence[Problem]):
        if not problems:
            raise ValueError("a SpecificationError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in problems), field=problems[0].field)
        self.problems = tuple(problems)


class LayoutError(SpecificationError):
    """The cluster or the batch arithmetic cannot hold the layout that was asked for."""

    code = "impossible_layout"


class DataError(MicsError):
    """Training data cannot be read, or is too small for one sample."""

    code = "data_error"


class JobNotFoundError(MicsError):
    """No job has the id that was asked for."""

    code = "job_not_found"


class JobConflictError(MicsError):
    """The state of the job does not allow the request."""

    code = "job_conflict"


class ScaleError(JobConflictError):
    """A number of partition groups outside the bounds of the job."""

    code = "scale_out_of_bounds"


class JobFailedError(MicsError):
    """A job ended in failure; the message holds the reason that the job gave."""

    code = "job_failed"


class ClusterError(MicsError):
    """Ray cannot be reached, or refused what was asked of it."""

    code = "cluster_unavailable"


class GroupFailedError(MicsError):
    """The work of a partition group failed by itself; names the group, the rank and the step."""

    code = "group_failed"


class PartitionBrokenError(GroupFailedError):
    """A collective inside a partition group broke; another of its workers is the cause."""

    code = "partition_broken"


class ReplicationError(MicsError):
    """A collective across partition groups broke; the survivors regroup and go on with the step."""

    code = "replication_broken"


class EvictedError(MicsError):
    """This partition group is no longer part of the run and must leave quietly."""

    code = "evicted"


class CheckpointError(MicsError):
    """A checkpoint cannot be written, read or verified."""

    code = "checkpoint_failed"


class CheckpointDamagedError(CheckpointError):
    """A checkpoint is not what was written; the one before it may be whole."""
