"""The commands that steer jobs: scale, cancel, pause, resume, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.status import JobState
from service.cli.console import JobIdArgument, JsonOption, UrlOption, connected, print_json
from service.client import DEFAULT_URL

__all__ = ["cancel", "delete", "pause", "resume", "scale"]


def scale(
    job_id: JobIdArgument,
    groups: Annotated[
        int | None, typer.Argument(metavar="[N]", help="Wanted number of partition groups.")
    ] = None,
    minimum: Annotated[
        int | None, typer.Option(metavar="N", help="With fewer groups the job waits.")
    ] = None,
    maximum: Annotated[
        int | None, typer.Option(metavar="N", help="Scaling may ask for no more.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Ask for another number of partition groups, or for other bounds of it."""
    with connected(url) as client:
        if groups is None and minimum is None and maximum is None:
            rule = "scaling needs a number."
            remedy = "Give the wanted number of groups, --minimum or --maximum."
            raise SpecificationError([Problem("N", "(nothing)", rule, remedy)])
        detail = client.scale(job_id, groups, minimum=minimum, maximum=maximum)
    if as_json:
        print_json(detail)
    else:
        typer.echo(
            f"{detail.job_id}: {detail.wanted_groups} partition groups wanted, at most"
            f" {detail.maximum_groups}, {detail.num_groups} training."
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


def pause(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Stop a job so that it can go on from its checkpoint; its nodes become free."""
    with connected(url) as client:
        detail = client.pause(job_id)
    if as_json:
        print_json(detail)
    elif detail.state is JobState.PAUSED:
        typer.echo(f"{detail.job_id}: paused. `mics resume {detail.job_id}` has it go on.")
    else:
        typer.echo(f"{detail.job_id}: pauses at its next checkpoint.")


def resume(
    job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL
) -> None:
    """Have a paused job go on from its checkpoint."""
    with connected(url) as client:
        detail = client.resume(job_id)
    if as_json:
        print_json(detail)
    else:
        typer.echo(f"{detail.job_id}: {detail.state}: {detail.reason}")


def delete(
    job_id: JobIdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Delete the record of a job that has ended: its events and history; checkpoints stay."""
    with connected(url) as client:
        if as_json and not yes:
            rule = "a program is not asked whether it is sure."
            raise SpecificationError([Problem("--yes", "(nothing)", rule, "Add --yes.")])
        if not yes:
            typer.confirm(f"Delete what is recorded of {job_id}?", abort=True, err=True)
        client.delete(job_id)
    if as_json:
        print_json({"job_id": job_id, "deleted": True})
    else:
        typer.echo(f"{job_id}: deleted.")
