"""The cluster as the service shows it: nodes, what is taken of them, what has no room yet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClusterView", "DemandView", "LogSource", "NodeView"]


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node.

    Args:
        node_id: Ray's id of it.
        host: Its address.
        state: `alive`, `draining` or `dead`.
        is_head: Whether Ray's head is on it.
        resources: What it has, by Ray's names; memory in bytes.
        used: What of it is taken.
    """

    node_id: str
    host: str
    state: str
    is_head: bool
    resources: dict[str, float]
    used: dict[str, float]


@dataclass(frozen=True, slots=True)
class DemandView:
    """Something that is asked for so many times and has no room."""

    resources: dict[str, float]
    count: int


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The whole cluster at one moment."""

    nodes: tuple[NodeView, ...]
    pending: tuple[DemandView, ...]


@dataclass(frozen=True, slots=True)
class LogSource:
    """Whose output is read: exactly one of a driver, a supervisor and a worker process.

    Args:
        driver_id: Id of a driver at the Ray Jobs API.
        supervisor_of: A job.
        node_id: Node of a worker.
        pid: Its process id.
    """

    driver_id: str | None = None
    supervisor_of: str | None = None
    node_id: str | None = None
    pid: int | None = None
