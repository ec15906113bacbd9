"""Looks at the nodes of the connected cluster and at what has no room on them."""

from __future__ import annotations

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from mics_core.cluster.drains import draining_nodes
from mics_core.spec.nodes import ClusterView, DemandView, NodeView

__all__ = ["cluster_view"]

_HEAD = "node:__internal_head__"


def cluster_view() -> ClusterView:
    """Return the cluster as Ray's head knows it; asks the head."""
    # What `ray status` asks; it also answers where no autoscaler runs.
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    used = {node.node_id: node.used_resources() for node in status.active_nodes + status.idle_nodes}
    draining = draining_nodes()
    nodes = []
    for node in ray.nodes():
        node_id = node["NodeID"]
        state = "draining" if node_id in draining else "alive"
        nodes.append(
            NodeView(
                node_id=node_id,
                host=node["NodeManagerAddress"],
                state=state if node["Alive"] else "dead",
                is_head=_HEAD in node["Resources"],
                resources=_shown(node["Resources"]),
                used=_shown(used.get(node_id, {})),
            )
        )
    demands = status.resource_demands
    pending = tuple(
        DemandView(_shown(one.bundle), one.count)
        for demand in (*demands.placement_group_demand, *demands.ray_task_actor_demand)
        for one in demand.bundles_by_count
    )
    return ClusterView(tuple(nodes), pending)


def _shown(resources: dict[str, float]) -> dict[str, float]:
    """Leave out the names that Ray makes for itself: of nodes and placement groups."""
    return {
        name: float(amount)
        for name, amount in resources.items()
        if not name.startswith("node:") and "_group_" not in name and name != "bundle"
    }
