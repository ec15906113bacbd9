"""Nodes that are to be taken away: by an autoscaler, a spot notice, or `ray drain-node`."""

from __future__ import annotations

import time

import ray

__all__ = ["draining_nodes"]


def draining_nodes() -> dict[str, str]:
    """Return the ids of draining nodes, each with a sentence that says so; asks Ray's head.

    Ray's public state API does not show it; its own libraries read it here.
    """
    now_ms = time.time() * 1000.0
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: _sentence(node, (deadline - now_ms) / 1000.0) for node, deadline in found.items()}


def _sentence(node: str, left_s: float) -> str:
    what = f"Node {node[:8]} is being drained"
    return f"{what} and has {left_s:.0f} s left." if 0.0 < left_s < 1e7 else f"{what}."
