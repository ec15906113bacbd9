"""What the membership machine is told, and what it decides.

Every decision carries one sentence of reason; the log, the API and the page show that sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "AnnounceGeneration",
    "CancelRequested",
    "Decision",
    "Event",
    "GroupBroken",
    "GroupDraining",
    "GroupEnded",
    "GroupEntered",
    "GroupLost",
    "GroupPhase",
    "GroupPlaced",
    "GroupReady",
    "GroupStarted",
    "GroupTrained",
    "GroupUnplaced",
    "GroupsMissed",
    "LaunchGroup",
    "MarkGroup",
    "PauseRequested",
    "RunPhase",
    "SetRunPhase",
    "StartRequested",
    "StopGroup",
    "Tick",
    "WantedChanged",
]


class GroupPhase(StrEnum):
    """Where a partition group stands in its life; the same words as in the live status."""

    PLACING = "placing"
    STARTING = "starting"
    READY = "ready"
    MEMBER = "member"
    LEAVING = "leaving"
    LEFT = "left"
    LOST = "lost"


class RunPhase(StrEnum):
    """Where the run stands; the same words as in the live status."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StartRequested:
    """The run begins."""


@dataclass(frozen=True, slots=True)
class GroupPlaced:
    """Nodes were found for a group; its workers are being started."""

    group_id: int


@dataclass(frozen=True, slots=True)
class GroupUnplaced:
    """A group that was placed has lost its room before its run began, and waits for room again."""

    group_id: int


@dataclass(frozen=True, slots=True)
class GroupStarted:
    """All workers of a group run; they begin to build their shards."""

    group_id: int


@dataclass(frozen=True, slots=True)
class GroupReady:
    """All workers of a group have built their shards and wait for a generation."""

    group_id: int


@dataclass(frozen=True, slots=True)
class GroupEntered:
    """A group trains under a generation from `step` on."""

    group_id: int
    generation: int
    step: int


@dataclass(frozen=True, slots=True)
class GroupTrained:
    """A group has done its first step under a generation that it has entered."""

    group_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class GroupBroken:
    """A replication group of a generation broke under a living group.

    Args:
        holds_state: Whether others could still copy from it; not if a newcomer's copy broke
            half-way.
    """

    group_id: int
    generation: int
    step: int
    error: str
    holds_state: bool = True


@dataclass(frozen=True, slots=True)
class GroupsMissed:
    """A group stands at the door of a generation and waits for others that have not come.

    Args:
        missing: Who has not come; the store's host too if the store does not answer.
    """

    group_id: int
    generation: int
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupLost:
    """A group is gone.

    Args:
        reason: What happened, in one sentence.
        own_error: Whether its own code or data failed, rather than a machine or a process.
        step: The step that it was at; none if that is not known.
    """

    group_id: int
    reason: str
    own_error: bool = False
    step: int | None = None


@dataclass(frozen=True, slots=True)
class GroupDraining:
    """A node of a group is to be taken away.

    Args:
        reason: What is known of it, in one sentence.
    """

    group_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class GroupEnded:
    """A group's run came to its end by itself: all steps done, or left as asked."""

    group_id: int
    finished: bool


@dataclass(frozen=True, slots=True)
class WantedChanged:
    """Somebody asked for another number of groups.

    Args:
        wanted: The number.
        reason: Why, in one sentence.
        minimum: The new lower bound, if that was changed too; never above `wanted`.
    """

    wanted: int
    reason: str
    minimum: int | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked for the run to stop at a step boundary."""

    reason: str


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """Somebody asked for the run to write a checkpoint at a step boundary and stop there."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed.

    Args:
        usual_step_s: How long a step takes at present; 0 before the first.
        quiet_s: Since when no group has said anything.
        step: The next step to be committed, as far as is known.
    """

    usual_step_s: float = 0.0
    quiet_s: float = 0.0
    step: int = 0


Event = (
    StartRequested
    | GroupPlaced
    | GroupUnplaced
    | GroupStarted
    | GroupReady
    | GroupEntered
    | GroupTrained
    | GroupBroken
    | GroupsMissed
    | GroupLost
    | GroupDraining
    | GroupEnded
    | WantedChanged
    | CancelRequested
    | PauseRequested
    | Tick
)


@dataclass(frozen=True, slots=True)
class LaunchGroup:
    """Ask for nodes for a new group and start it there.

    Args:
        begins_run: Whether it builds initial weights; else it copies its state from peers.
    """

    group_id: int
    begins_run: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StopGroup:
    """End a group's processes, whatever they do."""

    group_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class MarkGroup:
    """A group's phase changed."""

    group_id: int
    phase: GroupPhase
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceGeneration:
    """A new membership: its members enter it at the next step boundary.

    A group of the generation before that is no member leaves there.

    Args:
        number: The generation.
        groups: Its members.
        reason: Why, in one sentence.
        writes_checkpoint: Whether the members of the one before write a checkpoint before that.
        begins_run: Whether the run begins with it, or begins again.
    """

    number: int
    groups: tuple[int, ...]
    reason: str
    writes_checkpoint: bool = False
    begins_run: bool = False


@dataclass(frozen=True, slots=True)
class SetRunPhase:
    """The phase of the run changed."""

    phase: RunPhase
    reason: str


Decision = LaunchGroup | StopGroup | MarkGroup | AnnounceGeneration | SetRunPhase
