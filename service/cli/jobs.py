"""The commands that ask the service one thing: submit, validate, list, show, scale, cancel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mics_core.spec import load_job_spec
from mics_core.spec.status import JobState
from service.cli import watch
from service.cli.board import detail_panel
from service.cli.console import (
    STATE_STYLES,
    JobIdArgument,
    JsonOption,
    UrlOption,
    connected,
    print_json,
)
from service.cli.text import count, duration, loss_text, rate
from service.client import DEFAULT_URL
from service.schemas import JobSummary

__all__ = ["cancel", "list_jobs", "scale", "show", "submit", "validate"]

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The job as YAML; relative paths count from it.")
]


def submit(
    file: FileArgument,
    follow: Annotated[
        bool, typer.Option("--watch", help="Watch the job after submitting it.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Submit a job and print its id."""
    with connected(url) as client:
        detail = client.submit(load_job_spec(file))
        if as_json:
            print_json(detail)
        else:
            typer.echo(detail.job_id)
        if follow:
            watch.watch(detail.job_id, url=url)


def validate(
    file: FileArgument,
    local: Annotated[
        bool, typer.Option("--local", help="Check the file alone, without asking the service.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Check a job without starting it: its fields here, its files and layout on the service."""
    with connected(url) as client:
        spec = load_job_spec(file)
        if local:
            typer.echo(f"{file} follows the rules. Its files and the cluster were not checked.")
            return
        client.validate(spec)
        typer.echo(f"{file} can run.")


def list_jobs(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """List the jobs, newest first."""
    with connected(url) as client:
        answer = client.jobs()
    if as_json:
        print_json(answer)
    elif answer.jobs:
        Console(highlight=False).print(_table_of(answer.jobs))
    else:
        typer.echo("No jobs yet. Submit one with `mics submit job.yaml`.")


def show(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Show one job: progress, partition groups, generations."""
    with connected(url) as client:
        detail = client.job(job_id)
    if as_json:
        print_json(detail)
    else:
        Console(highlight=False).print(detail_panel(detail))


def scale(
    job_id: JobIdArgument,
    groups: Annotated[int, typer.Argument(metavar="N", help="Wanted number of partition groups.")],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Ask for another number of partition groups."""
    with connected(url) as client:
        detail = client.scale(job_id, groups)
    if as_json:
        print_json(detail)
    else:
        typer.echo(
            f"{detail.job_id}: {detail.wanted_groups} partition groups wanted,"
            f" {detail.num_groups} training."
        )


def cancel(
    job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL
) -> None:
    """Stop a job at its next step boundary."""
    with connected(url) as client:
        detail = client.cancel(job_id)
    if as_json:
        print_json(detail)
    elif detail.state is JobState.CANCELLED:
        typer.echo(f"{detail.job_id}: cancelled.")
    else:
        typer.echo(f"{detail.job_id}: stops at its next step boundary.")


def _table_of(jobs: list[JobSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True)
    table.add_column("NAME", overflow="ellipsis", max_width=32)
    table.add_column("STATE", no_wrap=True)
    for name in ("STEP", "LOSS", "TOKENS/S", "GROUPS", "AGE"):
        table.add_column(name, justify="right", no_wrap=True)
    now = time.time()
    for job in jobs:
        table.add_row(
            job.job_id,
            Text(job.name),
            Text(job.state, STATE_STYLES[job.state]),
            f"{count(job.step)}/{count(job.steps)}",
            loss_text(job.loss),
            rate(job.tokens_per_s),
            f"{job.num_groups}/{job.wanted_groups}",
            duration(now - job.created),
        )
    return table
