"""A job drawn in the terminal: progress, loss, throughput, partition groups, last events."""

from __future__ import annotations

from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mics_core.spec.status import (
    GenerationEvent,
    GenerationRecord,
    GroupState,
    GroupStatus,
    JobEvent,
)
from service.cli.console import STATE_STYLES
from service.cli.progress import JobProgress
from service.cli.text import clock, count, duration, event_sentence, loss_text, rate, sparkline
from service.schemas import JobDetail

__all__ = ["detail_panel", "job_board"]

_GROUP_STYLES = {
    GroupState.PLACING: ("□", "bright_black"),
    GroupState.STARTING: ("▫", "yellow"),
    GroupState.READY: ("▪", "cyan"),
    GroupState.MEMBER: ("■", "green"),
    GroupState.LEAVING: ("◧", "magenta"),
    GroupState.LEFT: ("·", "bright_black"),
    GroupState.LOST: ("✕", "red"),
}
"""Glyph of one worker and colour; the state's name stands beside them."""

_GONE = (GroupState.LEFT, GroupState.LOST)
_MAX_WORKER_GLYPHS = 8
_MAX_GONE_SHOWN = 3
_SPARK_WIDTH = 24
_SLOW = 1.5
"""From here on a group is called slow; as the alert does."""


def job_board(progress: JobProgress) -> RenderableType:
    """Return the board of a watched job."""
    parts = [_title(progress), _progress_line(progress), _numbers(progress)]
    parts += _groups(progress.detail)
    if progress.news:
        parts += [Text("Events", "bold"), _events(progress.news)]
    return Padding(Group(*parts), (0, 1))


def detail_panel(detail: JobDetail) -> RenderableType:
    """Return the board of one snapshot, with the last generations in place of events."""
    progress = JobProgress(detail)
    for generation in detail.status.generations[-8:] if detail.status else []:
        progress.take_event(_event_of(generation))
    return job_board(progress)


def _event_of(generation: GenerationRecord) -> JobEvent:
    return GenerationEvent(sequence=0, time=generation.time, generation=generation)


def _title(progress: JobProgress) -> Text:
    return Text.assemble(
        (progress.detail.name, "bold"),
        "  ",
        (progress.detail.job_id, "bright_black"),
        "  ",
        (f"● {progress.state}", STATE_STYLES[progress.state]),
        "  ",
        progress.reason,
    )


def _progress_line(progress: JobProgress) -> RenderableType:
    steps, done = progress.detail.steps, progress.step
    words = f"{count(done)}/{count(steps)} steps · {100 * done // max(1, steps)} %"
    if progress.remaining_s is not None:
        words += f" · about {duration(progress.remaining_s)} left"
    line = Table.grid(padding=(0, 2))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    style = STATE_STYLES[progress.state]
    bar = ProgressBar(max(1, steps), done, width=32, complete_style=style, finished_style=style)
    line.add_row(bar, words)
    return line


def _numbers(progress: JobProgress) -> RenderableType:
    detail, records = progress.detail, progress.records
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text("loss", "bright_black"),
        loss_text(progress.loss),
        Text(sparkline([record.loss for record in records], _SPARK_WIDTH), "blue"),
        Text("generation", "bright_black"),
        str(detail.generation),
    )
    grid.add_row(
        Text("tokens/s", "bright_black"),
        rate(progress.tokens_per_s),
        Text(sparkline([record.tokens_per_s for record in records], _SPARK_WIDTH), "green"),
        Text("groups", "bright_black"),
        f"{detail.num_groups}/{detail.wanted_groups}, at most {detail.maximum_groups}",
    )
    if detail.status is not None:
        samples = detail.status.samples
        grid.add_row(
            Text("samples", "bright_black"),
            f"{count(samples.used)}/{count(samples.due)}",
            Text(f"{count(samples.repeated)} repeated", "red" if samples.repeated else ""),
        )
    return grid


def _groups(detail: JobDetail) -> list[RenderableType]:
    if detail.status is None or not detail.status.groups:
        return []
    groups, size = detail.status.groups, detail.status.partition_size
    living = [group for group in groups if group.state not in _GONE]
    gone = [group for group in groups if group.state in _GONE][-_MAX_GONE_SHOWN:]
    title = Text.assemble(("Partition groups", "bold"), (f"  {size} workers each", "bright_black"))
    parts: list[RenderableType] = [title]
    if living:
        parts.append(Columns([_living_group(group, size) for group in living], padding=(0, 3)))
    parts += [_gone_group(group) for group in gone]
    return parts


def _living_group(group: GroupStatus, size: int) -> Text:
    glyph, style = _GROUP_STYLES[group.state]
    shown = glyph * min(size, _MAX_WORKER_GLYPHS) + ("…" if size > _MAX_WORKER_GLYPHS else "")
    is_slow = group.slowness is not None and group.slowness >= _SLOW
    slow = f"  {group.slowness:.1f}× slow" if is_slow else ""
    return Text.assemble(
        (f"{group.group_id:>3} ▐{shown}▌ ", style), str(group.state), (slow, "yellow")
    )


def _gone_group(group: GroupStatus) -> Text:
    glyph, style = _GROUP_STYLES[group.state]
    return Text.assemble(
        (f"{group.group_id:>3} {glyph} {group.state} ", style), (group.reason, "bright_black")
    )


def _events(events: Iterable[JobEvent]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for event in list(events):
        grid.add_row(Text(clock(event.time), "bright_black"), Text(event_sentence(event)))
    return grid
