"""`mics probe`: measures a live Ray cluster and writes the cluster file for `mics plan`."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.cluster import LinkSpec, write_cluster_spec
from mics_core.spec.job import ResourcesSpec
from mics_core.spec.peaks import PeakTflops
from mics_core.spec.problems import problems_of, shown
from service.cli.console import reported_errors
from service.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from mics_core.cluster.probe import LinkFit, ProbedCluster

__all__ = ["probe"]

_Model = TypeVar("_Model", bound=BaseModel)
_MAX_NAME = 100


def probe(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The cluster file to write.")
    ] = Path("cluster.yaml"),
    address: Annotated[
        str,
        typer.Option(
            help="Ray cluster; `auto` finds this machine's.",
            envvar="MICS_RAY_ADDRESS",
            metavar="ADDRESS",
        ),
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(help="Name of the cluster in the file; else its size.")
    ] = None,
    workers_per_node: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Workers of each node; else all that it holds."),
    ] = None,
    cpus_per_worker: Annotated[
        float, typer.Option(metavar="X", help="CPU slots of each worker.")
    ] = 1.0,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="Measure workers with one GPU each, over NCCL.")
    ] = False,
    memory_gib: Annotated[
        float | None,
        typer.Option(metavar="G", help="Memory of a worker; else as found."),
    ] = None,
    inter_gbit: Annotated[
        float | None,
        typer.Option(metavar="B", help="State the nodes' bandwidth instead of measuring it."),
    ] = None,
    inter_latency_us: Annotated[
        float | None,
        typer.Option(metavar="L", help="The latency that goes with --inter-gbit."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and repetitions: a few seconds.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was measured as JSON, for programs.")
    ] = False,
) -> None:
    """Measure a Ray cluster's links and workers, and write the cluster file for `mics plan`."""
    with reported_errors():
        _check_output(output, name)
        inter_node = _stated_link(inter_gbit, inter_latency_us)
        resources = _checked(
            ResourcesSpec, cpus=cpus_per_worker, gpus=int(gpus), memory_gib=memory_gib
        )
    _connect(address)
    # Loaded here, as in `_connect`: every other command must start without Ray.
    from mics_core.cluster.probe import ProbeSettings, probe_cluster

    console = Console(stderr=True, highlight=False, quiet=as_json)
    with (
        reported_errors(),
        console.status("") if console.is_terminal else nullcontext() as status,
    ):
        found = probe_cluster(
            resources,
            workers_per_node,
            name=name,
            inter_node=inter_node,
            settings=ProbeSettings.quick() if quick else ProbeSettings(),
            tell=status.update if status else console.print,
        )
        write_cluster_spec(found.findings.spec, output, _origin(found))
    if as_json:
        typer.echo(json.dumps(_as_json(found, output), indent=2))
    else:
        _print_report(found, output)


def _connect(address: str) -> None:
    from mics_core.cluster.connection import connect

    try:
        with reported_errors():
            connect(address)
    except typer.Exit:
        raise typer.Exit(ExitCode.UNREACHABLE) from None


def _checked(model: type[_Model], **fields: Any) -> _Model:
    try:
        return model(**fields)
    except ValidationError as error:
        raise SpecificationError(problems_of(error)) from None


def _check_output(output: Path, name: str | None) -> None:
    """Refuse what could not be written before minutes go into measuring."""
    if name is not None and not 0 < len(name) <= _MAX_NAME:
        rule = f"a name has 1 to {_MAX_NAME} characters."
        raise SpecificationError([Problem("--name", shown(name), rule, "Choose another.")])
    if not output.resolve().parent.is_dir() or output.is_dir():
        rule = "it is no file in an existing folder."
        remedy = "Name a file in an existing folder."
        raise SpecificationError([Problem("--output", str(output), rule, remedy)])


def _stated_link(gbit: float | None, latency_us: float | None) -> LinkSpec | None:
    if gbit is None and latency_us is None:
        return None
    if gbit is None or latency_us is None:
        given, missing = "--inter-gbit", "--inter-latency-us"
        if gbit is None:
            given, missing = missing, given
        rule = "a stated link has a bandwidth and a latency."
        raise SpecificationError([Problem(given, "it alone", rule, f"Give {missing} as well.")])
    return _checked(LinkSpec, bandwidth_gbit_per_s=gbit, latency_us=latency_us)


def _origin(found: ProbedCluster) -> tuple[str, ...]:
    """Comment lines for the file: where its figures come from, and how sure they are."""
    report = found.report
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"Measured by `mics probe` on {when}."]
    for kind, fit in (("intra_node", report.intra_node), ("inter_node", report.inter_node)):
        if fit is not None:
            lines.append(
                f"{kind}: repetitions ±{fit.spread:.0%},"
                f" all sizes within a factor of {fit.worst_factor:.2f} of the fit."
            )
    lines.append(
        "efficiency: forward and backward of a block like GPT-2's, on the slowest of"
        f" {len(report.block_tflops)} workers, all busy: {min(report.block_tflops):.4g} TFLOP/s."
    )
    if report.memory_bytes is not None:
        lines.append("host_gb_per_s: as it is where nobody says otherwise, not measured.")
    return (*lines, *found.findings.notes)


def _as_json(found: ProbedCluster, output: Path) -> dict[str, Any]:
    return {
        "file": str(output),
        "cluster": found.findings.spec.model_dump(mode="json"),
        "notes": list(found.findings.notes),
        "measured": asdict(found.report),
    }


def _print_report(found: ProbedCluster, output: Path) -> None:
    spec, report = found.findings.spec, found.report
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        Text.assemble(
            (spec.name, "bold"),
            f"  measured in {report.seconds:.0f} s",
        )
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LINK", no_wrap=True)
    for column in ("GBIT/S", "LATENCY", "SIZES", "SPREAD", "OFF MODEL"):
        table.add_column(column, justify="right", no_wrap=True)
    for title, link, fit in (
        ("within a node, a worker", spec.intra_node, report.intra_node),
        ("between nodes, a node", spec.inter_node, report.inter_node),
    ):
        latency = f"{link.latency_us:.4g} µs"
        table.add_row(title, f"{link.bandwidth_gbit_per_s:.4g}", latency, *_quality(fit))
    console.print(table)
    low, high = min(report.tflops), max(report.tflops)
    peaks = spec.peak_tflops
    peak, others = (peaks, "") if isinstance(peaks, float) else (peaks.bf16, _in_others(peaks))
    console.print(
        f"worker  {peak:.4g} TFLOP/s{others} (from {low:.4g} to {high:.4g} over"
        f" {len(report.tflops)}), of which a block like GPT-2's reaches {spec.efficiency:.0%};"
        f" {spec.memory_gib:.4g} GiB"
    )
    for note in found.findings.notes:
        console.print(Text.assemble(("note ", "yellow"), note))
    console.print(f"Written to {output}. Next: mics plan job.yaml --cluster {_quoted(output)}")


def _in_others(peaks: PeakTflops) -> str:
    return f" in bf16, {peaks.fp32:.4g} in fp32, {peaks.fp64:.4g} in fp64"


def _quality(fit: LinkFit | None) -> tuple[str, str, str]:
    if fit is None:
        return ("not measured", "–", "–")
    sizes = [timing.bytes_per_rank for timing in fit.timings]
    return (
        f"{_size(sizes[0])}–{_size(sizes[-1])}",
        f"±{fit.spread:.0%}",
        f"×{fit.worst_factor:.2f}",
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes / 1024:g} KiB"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
