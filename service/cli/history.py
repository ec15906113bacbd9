"""The commands that tell what a job does and did: events, logs, throughput, checkpoints."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mics_core.spec.status import JobEvent
from service.cli.console import (
    JobIdArgument,
    JsonOption,
    UrlOption,
    connected,
    interruptible,
    print_json,
    print_table,
    table_of,
)
from service.cli.text import clock, count, event_sentence, loss_text, percent, rate, sparkline
from service.client import DEFAULT_URL

__all__ = ["checkpoints", "events", "logs", "throughput"]

_SPARK_WIDTH = 60

FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on with what comes, until the job ends.")
]


def events(
    job_id: JobIdArgument,
    after: Annotated[int, typer.Option(min=0, metavar="N", help="Only events after number N.")] = 0,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most events.")] = 500,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only such events, for example `generation`; may be repeated."),
    ] = None,
    follow: FollowOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --follow one event a line.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Show the events of a job: joins, losses, generations, steps, checkpoints."""
    kinds = kind or []
    with connected(url) as client, interruptible():
        if not follow:
            page = client.events(job_id, after=after, limit=limit, kinds=kinds)
            if as_json:
                print_json(page)
            else:
                for event in page.events:
                    typer.echo(_line(event))
            return
        for event in client.watch(job_id, after=after):
            if not kinds or event.kind in kinds:
                typer.echo(event.model_dump_json() if as_json else _line(event))


def logs(
    job_id: JobIdArgument,
    follow: FollowOption = False,
    tail: Annotated[int, typer.Option(min=1, metavar="N", help="Last lines to begin with.")] = 1000,
    worker: Annotated[
        str | None,
        typer.Option(metavar="GROUP.RANK", help="Of one worker; else of driver and supervisor."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each line as a JSON object.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Show the log of a job, or of one of its workers."""
    with connected(url) as client, interruptible():
        for line in client.logs(job_id, tail=tail, worker=worker, follow=follow):
            typer.echo(json.dumps({"line": line}, ensure_ascii=False) if as_json else line)


def throughput(
    job_id: JobIdArgument,
    points: Annotated[int, typer.Option(min=1, metavar="N", help="Most points.")] = 500,
    first_step: Annotated[int | None, typer.Option(min=0, metavar="S", help="From here.")] = None,
    last_step: Annotated[int | None, typer.Option(min=0, metavar="S", help="Up to here.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Show the throughput of a job since its start."""
    with connected(url) as client:
        found = client.throughput(job_id, points=points, first_step=first_step, last_step=last_step)
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False)
    console.print(
        f"{rate(found.tokens_per_s)} tokens/s  goodput {percent(found.goodput)}"
        f"  MFU {percent(found.mfu)}"
    )
    for title, values, style in (
        ("loss", [record.loss for record in found.records], "blue"),
        ("tokens/s", [*(record.tokens_per_s for record in found.records)], "green"),
    ):
        known = [value for value in values if value is not None]
        console.print(Text.assemble(f"{title:<9}", (sparkline(known, _SPARK_WIDTH), style)))
    columns = ("STEP", "LOSS", "TOKENS/S", "TFLOP/S", "MFU", "IN COMM.", "GROUPS")
    table = table_of(*columns, right=columns)
    for record in found.records[-10:]:
        table.add_row(
            count(record.step),
            loss_text(record.loss),
            rate(record.tokens_per_s),
            rate(record.tflops_per_worker),
            percent(record.mfu),
            percent(record.communication_share),
            str(record.num_groups),
        )
    print_table(table)


def checkpoints(
    job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL
) -> None:
    """Show the checkpoints of a job."""
    with connected(url) as client:
        found = client.checkpoints(job_id)
    if as_json:
        print_json(found)
        return
    if not found.checkpoints:
        typer.echo("None yet; checkpoint.directory of the job says where they would be.")
        return
    table = table_of("STEP", "TIME", "STATE", "PATH", right=("STEP",))
    for checkpoint in found.checkpoints:
        state = Text(f"failed: {checkpoint.error}", "red") if checkpoint.error else "complete"
        table.add_row(count(checkpoint.step), clock(checkpoint.time), state, Text(checkpoint.path))
    print_table(table)


def _line(event: JobEvent) -> str:
    return f"{event.sequence:>6} {clock(event.time)} {event_sentence(event)}"
