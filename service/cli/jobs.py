"""The commands that start jobs and look at them: submit, validate, list, show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mics_core.errors import Problem, SpecificationError
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
    fits_window,
    print_json,
    print_table,
    table_of,
)
from service.cli.text import count, duration, loss_text, rate
from service.client import DEFAULT_URL
from service.schemas import JobList, JobSummary

__all__ = ["list_jobs", "show", "submit", "validate"]

_NAME_WIDTH = 32

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The job as YAML; relative paths count from it.")
]


def submit(
    file: FileArgument,
    follow: Annotated[
        bool, typer.Option("--watch", help="Watch the job after submitting it.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="TEXT",
            help="Idempotency key: submitting again with the same one gives the same job.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the job as JSON; with --watch a line, then its events."),
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Submit a job and print its id."""
    with connected(url) as client:
        detail = client.submit(file, idempotency_key=key)
        if as_json:
            print_json(detail, as_line=follow)
        else:
            typer.echo(detail.job_id)
        if follow:
            watch.watch(detail.job_id, as_json=as_json, url=url)


def validate(
    file: FileArgument,
    local: Annotated[
        bool, typer.Option("--local", help="Check the file alone, without asking the service.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the specification with its defaults as JSON.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Check a job without starting it: its fields here, its files and layout on the service."""
    with connected(url) as client:
        spec = load_job_spec(file)
        if not local:
            spec = client.validate(spec)
    if as_json:
        print_json(spec)
    elif local:
        typer.echo(f"{file} follows the rules. Its files and the cluster were not checked.")
    else:
        typer.echo(f"{file} can run.")


def list_jobs(
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this owner.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="Only jobs with this label; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most jobs; else the first page.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="All pages of the list.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """List the jobs, newest first."""
    with connected(url) as client:
        states, labels = state or [], _labels(label or [])
        if show_all:
            found = client.all_jobs(states=states, owner=owner, labels=labels)
            page = JobList(jobs=list(found), next_cursor=None)
        else:
            page = client.jobs(states=states, owner=owner, labels=labels, limit=limit)
    if as_json:
        print_json(page)
    elif page.jobs:
        table = _job_table(page.jobs)
        # An id is there to be copied, and mostly begins with the name.
        if not fits_window(table):
            table = _job_table(page.jobs, with_names=False)
        print_table(table, always_whole=True)
        if page.next_cursor is not None:
            typer.echo("There are more; --all shows them.", err=True)
    elif states or owner or labels:
        typer.echo("No job is like that.")
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


def _labels(given: list[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not name or not colon:
            rule = "a label is given as NAME:VALUE."
            remedy = "Write it like team:search."
            raise SpecificationError([Problem("--label", repr(text), rule, remedy)])
        pairs[name] = value
    return pairs


def _job_table(jobs: list[JobSummary], *, with_names: bool = True) -> Table:
    numbers = ("STEP", "LOSS", "TOKENS/S", "GROUPS", "AGE")
    has_owners = any(job.owner for job in jobs)
    owner = ("OWNER",) if has_owners else ()
    name = ("NAME",) if with_names else ()
    table = table_of("ID", *name, "STATE", *numbers, *owner, right=numbers)
    now = time.time()
    for job in jobs:
        table.add_row(
            job.job_id,
            *([_shortened(job.name)] if with_names else []),
            Text(job.state, STATE_STYLES[job.state]),
            f"{count(job.step)}/{count(job.steps)}",
            loss_text(job.loss),
            rate(job.tokens_per_s),
            f"{job.num_groups}/{job.wanted_groups}",
            duration(now - job.created),
            *([Text(job.owner or "–")] if has_owners else []),
        )
    return table


def _shortened(name: str) -> Text:
    return Text(name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…")
