"""The nodes of the cluster together with the workers of the jobs on them."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from mics_core.spec.nodes import NodeView
from service.gateway import ClusterGateway
from service.schemas import Cluster, ClusterNode, NodeWorker, PendingDemand
from service.store import Store

__all__ = ["cluster_of"]


async def cluster_of(gateway: ClusterGateway, store: Store) -> Cluster:
    """Return the cluster as it is now.

    Raises:
        ClusterError: It does not answer.
    """
    view = await gateway.cluster()
    workers: dict[str, list[NodeWorker]] = defaultdict(list)
    for job_id, status in (await asyncio.to_thread(store.open_statuses)).items():
        for group in status.groups:
            if group.state.is_gone:
                continue
            for worker in group.workers:
                placed = NodeWorker(job_id=job_id, group_id=group.group_id, rank=worker.rank)
                workers[worker.node_id].append(placed)
    nodes = [
        ClusterNode(
            node_id=node.node_id,
            host=node.host,
            state=node.state,
            is_head=node.is_head,
            resources=node.resources,
            used=node.used,
            workers=workers[node.node_id],
            free_workers=_free_workers(node),
        )
        for node in view.nodes
    ]
    pending = [PendingDemand(resources=one.resources, count=one.count) for one in view.pending]
    return Cluster(nodes=nodes, pending=pending)


def _free_workers(node: NodeView) -> int:
    if node.state != "alive":
        return 0
    counted = "GPU" if node.resources.get("GPU") else "CPU"
    return max(0, int(node.resources.get(counted, 0.0) - node.used.get(counted, 0.0)))
