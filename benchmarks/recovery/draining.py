"""Has Ray drain a node, as an autoscaler or a spot notice does."""

from __future__ import annotations

import time

import ray
from ray.core.generated import autoscaler_pb2

__all__ = ["DRAIN_NOTICE_S", "drain_node"]

DRAIN_NOTICE_S = 20
"""From the notice to its deadline."""
_TIMEOUT_S = 60.0


def drain_node(address: str, node_id: str) -> None:
    """Give notice of a node.

    It is what `ray drain-node` does. That command would be a process beside the survivors, on the
    same processors, for longer than the change lasts.

    Raises:
        RuntimeError: Ray does not accept it.
    """
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(1000 * (time.time() + DRAIN_NOTICE_S))
    client = ray._raylet.GcsClient(address=address)
    is_accepted, why = client.drain_node(
        node_id, reason, "spot notice", deadline_ms, timeout=_TIMEOUT_S
    )
    if not is_accepted:
        raise RuntimeError(f"node {node_id} cannot be drained: {why}")
