"""`mics plan`: predicts layouts of a job and chooses one; no service and no cluster is needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mics_core.errors import Problem, SpecificationError
from mics_core.planner.amounts import amount, seconds
from mics_core.planner.prediction import Prediction
from mics_core.planner.scaling import ScalePoint, scale, worker_counts
from mics_core.spec import load_job_spec
from mics_core.spec.planning import choices_of, plan_job
from service.cli.console import print_json, print_table, reported_errors
from service.cli.text import count, rate
from service.plans import answer_of, cluster_of, counted_shape, with_nodes
from service.schemas import PlanAnswer, PlannedLayout

__all__ = ["plan"]

_BEST = 10


def plan(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The job as YAML; relative paths count from it.")
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="A cluster file, or a name such as p4d.24xlarge; else resources.cluster.",
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Nodes, if not as many as it says.")
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every layout, with the reason against it.")
    ] = False,
    scaling: Annotated[
        str | None,
        typer.Option(
            "--scale",
            metavar="FIRST..LAST",
            help="Show weak and strong scaling over these numbers of workers instead.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as the API answers with it.")
    ] = False,
) -> None:
    """Predict the layouts of a job on a cluster and choose one; nothing is started."""
    with reported_errors():
        spec = load_job_spec(file)
        profile = with_nodes(cluster_of(spec, cluster, may_read_files=True), nodes)
        model = counted_shape(spec, file)
        console = Console(highlight=False)
        if scaling is not None:
            first, last = _bounds(scaling)
            choices, counts = choices_of(spec, model, profile), worker_counts(first, last)
            weak, strong = (scale(choices, counts, is_weak=weakly) for weakly in (True, False))
            if as_json:
                print_json({"weak": _scale_json(weak), "strong": _scale_json(strong)})
                return
            for points, weakly in ((weak, True), (strong, False)):
                print_table(_scale_table(points, is_weak=weakly), always_whole=True)
                for line in _reasons(points):
                    console.print(Text(line), soft_wrap=True)
            return
        found = plan_job(spec, model, profile)
        if as_json:
            print_json(answer_of(found, profile, model, sys.maxsize if show_all else _BEST))
            return
        answer = answer_of(found, profile, model, sys.maxsize)
        _print(console, answer, show_all=show_all)


def _print(console: Console, answer: PlanAnswer, *, show_all: bool) -> None:
    workers = answer.nodes * answer.workers_per_node
    console.print(
        f"{answer.num_parameters / 1e6:,.1f} M parameters on {answer.cluster}:"
        f" {answer.nodes} × {answer.workers_per_node} = {count(workers)} workers."
        " Predicted, not measured."
    )
    others = answer.candidates if show_all else answer.candidates[: _BEST - 1]
    layouts = _layout_table([answer.choice, *others], with_reasons=show_all)
    print_table(layouts)
    if show_all:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("CANNOT BE")
        table.add_column("BECAUSE")
        for refused in answer.refused:
            table.add_row(Text(refused.layout), Text(refused.reason))
        console.print(table)
    elif answer.num_candidates > len(others) + 1 or answer.refused:
        hidden = answer.num_candidates - len(others) - 1
        console.print(
            f"{hidden} more fit, {len(answer.refused)} kinds cannot be; --all shows them."
        )
    console.print(Text(answer.reason))


def _layout_table(layouts: list[PlannedLayout], *, with_reasons: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("P", "GROUPS", "MICRO", "CKPT", "RESHARD", "ADDS UP IN", "STAGED"):
        table.add_column(name, no_wrap=True)
    for name in ("MEMORY", "OUT OF NODE", "STEP", "TOKENS/S", "TFLOP/S"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_reasons:
        table.add_column("REASON")
    for layout in layouts:
        row = [
            str(layout.partition_size),
            str(layout.num_groups),
            str(layout.micro_batch_size),
            "yes" if layout.activation_checkpointing else "no",
            layout.reshard,
            layout.accumulation,
            _staged(layout),
            amount(layout.memory_bytes["total"]),
            amount(layout.node_bytes["total"]),
            seconds(layout.step_s),
            rate(layout.tokens_per_s),
            f"{layout.model_tflops:.3g}",
        ]
        table.add_row(*row, *([Text(layout.reason)] if with_reasons else []))
    return table


def _staged(layout: PlannedLayout) -> str:
    """Which collectives go in two stages: of gathers and scatters, a block's and the root's."""
    routes = {
        "gather": (layout.gather_block, layout.gather_root),
        "scatter": (layout.scatter_block, layout.scatter_root),
    }
    words = []
    for name, (block, root) in routes.items():
        if block == root == "hierarchical":
            words.append(name)
        elif block == "hierarchical":
            words.append(f"{name} of blocks")
        elif root == "hierarchical":
            words.append(f"{name} of root")
    return ", ".join(words) or "–"


def _bounds(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", text)
    if match and 1 <= int(match[1]) <= int(match[2]) <= 65536:
        return int(match[1]), int(match[2])
    rule = "numbers of workers are given as FIRST..LAST, at least 1 and at most 65536."
    remedy = "Write it like --scale 16..4096."
    raise SpecificationError([Problem("--scale", repr(text), rule, remedy)])


def _scale_table(points: list[ScalePoint], *, is_weak: bool) -> Table:
    kind = "Weak scaling: the batch grows" if is_weak else "Strong scaling: the batch stays"
    table = Table(box=None, pad_edge=False, header_style="bold", title=kind, title_justify="left")
    table.add_column("WORKERS", justify="right")
    table.add_column("BATCH", justify="right")
    for name in ("MICS", "FULL SHARDING"):
        table.add_column(name, no_wrap=True)
        for column in ("SAMPLES/S", "TFLOP/S", "EFFICIENCY"):
            table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            str(point.num_workers),
            count(point.global_batch_size),
            *_scale_cells(point, points[0], is_full=False),
            *_scale_cells(point, points[0], is_full=True),
        )
    return table


def _reasons(points: list[ScalePoint]) -> list[str]:
    """Return, a line each, why points of the scaling cannot be."""
    lines = []
    for point in points:
        found = {"MiCS": point.mics, "full sharding": point.full}
        lines += [
            f"{count(point.num_workers)} workers, {kind}: {reason}"
            for kind, reason in found.items()
            if isinstance(reason, str)
        ]
    return lines


def _scale_json(points: list[ScalePoint]) -> list[dict[str, Any]]:
    return [
        {
            "num_workers": point.num_workers,
            "global_batch_size": point.global_batch_size,
            "mics": _prediction_json(point.mics),
            "full_sharding": _prediction_json(point.full),
        }
        for point in points
    ]


def _prediction_json(found: Prediction | str) -> dict[str, Any]:
    if not isinstance(found, Prediction):
        return {"reason": found}
    return {
        "partition_size": found.layout.partition_size,
        "num_groups": found.layout.num_groups,
        "step_s": found.step_s,
        "samples_per_s": found.samples_per_s,
        "model_tflops": found.model_tflops,
    }


def _scale_cells(point: ScalePoint, first: ScalePoint, *, is_full: bool) -> list[str | Text]:
    """Layout, speed, speed of a worker, and that as a share of the first point's."""
    found = point.full if is_full else point.mics
    base = first.full if is_full else first.mics
    if not isinstance(found, Prediction):
        return [Text("cannot be"), "–", "–", "–"]
    share = point.num_workers / found.layout.num_workers
    layout = f"p = {found.layout.partition_size} × {found.layout.num_groups}"
    efficiency = "–"
    if isinstance(base, Prediction):
        each, each_first = found.samples_per_s / point.num_workers, base.samples_per_s
        efficiency = f"{100 * each / (each_first / first.num_workers):.1f} %"
    return [
        Text(layout),
        rate(found.samples_per_s),
        f"{found.model_tflops / share:.3g}",
        efficiency,
    ]
