"""The commands that tell what runs where: placement and cluster."""

from __future__ import annotations

from collections import Counter

import typer
from rich.console import Console
from rich.text import Text

from service.cli.console import (
    JobIdArgument,
    JsonOption,
    UrlOption,
    connected,
    print_json,
    print_table,
    table_of,
)
from service.cli.text import count
from service.client import DEFAULT_URL
from service.schemas import ClusterNode

__all__ = ["cluster", "placement"]

_ID_WIDTH = 8


def placement(
    job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL
) -> None:
    """Show where every worker of a job runs."""
    with connected(url) as client:
        found = client.placement(job_id)
    if as_json:
        print_json(found)
        return
    if not found.workers:
        typer.echo("No worker runs.")
        return
    numbers = ("GROUP", "RANK", "PID", "STEP")
    table = table_of("NODE", "HOST", "GROUP", "RANK", "STATE", "PID", "STEP", right=numbers)
    for worker in found.workers:
        table.add_row(
            worker.node_id[:_ID_WIDTH],
            worker.host,
            str(worker.group_id),
            str(worker.rank),
            str(worker.group_state),
            str(worker.pid),
            count(worker.step),
        )
    print_table(table)


def cluster(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Show the nodes of the Ray cluster, what runs on them, and what waits for room."""
    with connected(url) as client:
        found = client.cluster()
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False)
    table = table_of("NODE", "HOST", "STATE", "CPU", "GPU", "WORKERS", right=("CPU", "GPU"))
    for node in found.nodes:
        table.add_row(
            node.node_id[:_ID_WIDTH] + (" (head)" if node.is_head else ""),
            node.host,
            node.state,
            _used(node, "CPU"),
            _used(node, "GPU"),
            Text(_workers(node)),
        )
    print_table(table)
    for demand in found.pending:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in demand.resources.items())
        console.print(Text(f"waits for room: {demand.count} × {asked}", "yellow"))


def _used(node: ClusterNode, resource: str) -> str:
    total = node.resources.get(resource, 0.0)
    return f"{node.used.get(resource, 0.0):g}/{total:g}" if total else "–"


def _workers(node: ClusterNode) -> str:
    jobs = Counter(worker.job_id for worker in node.workers)
    shown = [f"{job_id} × {number}" for job_id, number in sorted(jobs.items())]
    return ", ".join([*shown, f"{node.free_workers} free"])
