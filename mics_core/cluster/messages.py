"""What workers tell the supervisor; plain data that pickles without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mics_core.engine.summary import StepCommit

__all__ = [
    "Checkpointed",
    "Committed",
    "Ended",
    "Entered",
    "Failed",
    "Message",
    "Missed",
    "Ready",
    "ReplicationBroke",
    "Started",
]


@dataclass(frozen=True, slots=True)
class Started:
    """A worker runs, and is about to build its shards.

    Args:
        actor: Handle of the worker's actor, by which the supervisor can end it.
    """

    rank: int
    actor: Any


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has built its shards.

    Args:
        store_port: Port of the rendezvous store that it hosts; only rank 0 hosts one.
    """

    rank: int
    node_id: str
    host: str
    pid: int
    store_port: int | None


@dataclass(frozen=True, slots=True)
class Entered:
    """A worker trains under a generation from `step` on.

    Args:
        connect_s: Seconds that connecting to its members took.
    """

    rank: int
    generation: int
    step: int
    connect_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """A partition group committed a step; rank 0 says so for all, who have voted for it.

    Args:
        commit: The step.
        step_s: Seconds since the commit before, or since training began.
        took_s: Seconds of the step alone, without what lay between the two.
        time: When, in seconds since the epoch.
    """

    commit: StepCommit
    step_s: float
    took_s: float
    time: float


@dataclass(frozen=True, slots=True)
class ReplicationBroke:
    """A worker's replication group broke.

    Args:
        has_state: Whether its partition group holds the whole states of one step; a newcomer's copy
            that broke in the middle leaves none.
    """

    rank: int
    generation: int
    step: int
    error: str
    has_state: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """A worker waits at the door of a generation for groups that have not come."""

    rank: int
    generation: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker's loop ended with an error.

    Args:
        own_error: Whether code or data failed, rather than a connection to a peer.
    """

    rank: int
    step: int
    error: str
    own_error: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker's loop came to its end: all steps done, or asked to leave."""

    rank: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A checkpoint of the group ended; only rank 0 sends it."""

    rank: int
    step: int
    path: str
    error: str


Message = (
    Checkpointed
    | Started
    | Ready
    | Entered
    | Committed
    | ReplicationBroke
    | Missed
    | Failed
    | Ended
)
