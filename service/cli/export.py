"""`mics export`: makes a checkpoint a folder that transformers loads. It loads torch as it runs."""

from __future__ import annotations

import enum
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mics_core.errors import Problem, SpecificationError
from mics_core.planner.amounts import amount
from mics_core.spec import JobSpec, load_job_spec
from service.cli.console import UrlOption, connected, reported_errors
from service.cli.text import count
from service.client import DEFAULT_URL

if TYPE_CHECKING:
    from mics_core.engine.export import Exported

__all__ = ["export"]


class Format(enum.StrEnum):
    """What is written."""

    SAFETENSORS = "safetensors"


class Dtype(enum.StrEnum):
    """Types of the weights that can be asked for."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def export(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The job's id, or else --job.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--job", metavar="FILE", help="The job as YAML; no service is asked then."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder or URL of its checkpoints, if not the job's."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Step of the checkpoint; else newest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to make; else the job's id."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.SAFETENSORS,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights; else as trained.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON, for programs.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Make a job's newest checkpoint a folder that `from_pretrained` of transformers loads."""
    with reported_errors():
        spec, name = _job(job_id, file, url)
        folder = checkpoint or spec.checkpoint.directory
        if folder is None:
            raise _refusal(
                "checkpoint.directory",
                "(nothing)",
                "the job writes no checkpoints, so there is nothing to export.",
                "Name their folder with --checkpoint, or train with checkpoint.directory.",
            )
        # Loaded here: every other command must start without torch.
        from mics_core.engine.export import export_checkpoint

        console = Console(stderr=True, highlight=False)
        is_seen = console.is_terminal and not as_json
        with console.status("Exporting") if is_seen else nullcontext():
            found = export_checkpoint(
                spec,
                folder,
                output if output is not None else Path(name),
                step=step,
                dtype=dtype.value if dtype is not None else None,
            )
    if as_json:
        typer.echo(json.dumps({"format": form.value, **asdict(found)}, indent=2))
    else:
        _print_report(found)


def _job(job_id: str | None, file: Path | None, url: str) -> tuple[JobSpec, str]:
    """Return the job's specification, and the name that its folder has by default."""
    if job_id is not None and file is not None:
        rule = "a job is named by its id or by its file."
        raise _refusal("--job", str(file), rule, f"Leave out {job_id!r} or --job.")
    if file is not None:
        return load_job_spec(file), file.stem
    if job_id is None:
        rule = "an export needs a job."
        raise _refusal("ID", "(nothing)", rule, "Give the job's id, or its file with --job.")
    with connected(url) as client:
        return client.job(job_id).spec, job_id


def _refusal(field: str, value: str, rule: str, remedy: str) -> SpecificationError:
    return SpecificationError([Problem(field, value, rule, remedy)])


def _print_report(found: Exported) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        Text.assemble(
            (found.folder, "bold"),
            f"  step {count(found.step)}, {count(found.num_parameters)} parameters in"
            f" {found.dtype}, {amount(found.num_bytes)}",
        )
    )
    for note in found.notes:
        console.print(Text.assemble(("note ", "yellow"), note))
