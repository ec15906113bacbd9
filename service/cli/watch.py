"""`mics watch`: follows a job to its end, as a live board or, without a terminal, line by line."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from mics_core.spec.status import JobEvent, JobState, StepEvent
from service.cli.board import job_board
from service.cli.console import JobIdArgument, UrlOption, connected, interruptible
from service.cli.exit_codes import ExitCode
from service.cli.progress import NEWS_KINDS, JobProgress, is_worth_showing
from service.cli.text import clock, duration, event_sentence
from service.client import DEFAULT_URL, MicsClient, ServiceUnreachableError

__all__ = ["watch"]

_REDRAW_S = 0.25
_RELOAD_S = 1.0
"""Shortest pause between two snapshots, which every event but a step asks for."""
_RELOAD_AT_LEAST_S = 5.0
"""Longest one: no event tells that a group has become slow, or how many samples are used."""
_RECENT_EVENTS = 400
"""As many events before the newest are read for the curves; a run may have millions."""
_LISTED_AT_ONCE = 500


def watch(
    job_id: JobIdArgument,
    every: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Without a terminal: one line each so many steps; 0 means a twentieth of the run.",
        ),
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as one line of JSON.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Watch a job to its end; the exit code is 0 if it finished, 1 if not."""
    console = Console(highlight=False)
    with connected(url) as client, interruptible():
        if console.is_terminal and not as_json:
            progress, after = _progress_so_far(client, job_id)
            _watch_live(client, progress, after, console)
        elif as_json:
            progress = JobProgress(client.job(job_id))
            _watch_json(client, progress)
        else:
            progress = JobProgress(client.job(job_id))
            _watch_plain(client, progress, every or max(1, progress.detail.steps // 20))
    if progress.state is not JobState.FINISHED:
        raise typer.Exit(ExitCode.FAILED)


def _watch_json(client: MicsClient, progress: JobProgress) -> None:
    for event in client.watch(progress.detail.job_id):
        progress.take_event(event)
        typer.echo(event.model_dump_json())
    _settle(client, progress)


def _watch_plain(client: MicsClient, progress: JobProgress, every: int) -> None:
    for event in client.watch(progress.detail.job_id):
        progress.take_event(event)
        if isinstance(event, StepEvent):
            done = event.record.step + 1
            if done % every == 0 or done == progress.detail.steps:
                typer.echo(f"{clock(event.time)} {event_sentence(event)}{_remaining(progress)}")
        elif is_worth_showing(event):
            typer.echo(f"{clock(event.time)} {event_sentence(event)}")
    _settle(client, progress)


def _remaining(progress: JobProgress) -> str:
    seconds = progress.remaining_s
    return f" remaining {duration(seconds)}" if seconds else ""


def _progress_so_far(client: MicsClient, job_id: str) -> tuple[JobProgress, int]:
    """Return what happened to a job, and the number after which its events are worth reading."""
    news: deque[JobEvent] = deque(maxlen=_LISTED_AT_ONCE)
    newest = 0
    while True:
        page = client.events(job_id, after=newest, limit=_LISTED_AT_ONCE, kinds=NEWS_KINDS)
        news.extend(page.events)
        newest = page.next_after
        if len(page.events) < _LISTED_AT_ONCE:
            break
    # Asked for afterwards, so that it is as new as the events.
    return JobProgress(client.job(job_id), news, newest), max(0, newest - _RECENT_EVENTS)


def _watch_live(client: MicsClient, progress: JobProgress, after: int, console: Console) -> None:
    events = _EventQueue(client, progress.detail.job_id, after)
    reloaded = time.monotonic()
    is_stale = False
    with Live(job_board(progress), console=console, auto_refresh=False) as live:
        while not events.is_drained:
            is_stale |= events.drain_into(progress.take_event)
            now = time.monotonic()
            if now - reloaded >= (_RELOAD_S if is_stale else _RELOAD_AT_LEAST_S):
                reloaded = now
                # While the service is started again, the stream waits for it too.
                with contextlib.suppress(ServiceUnreachableError):
                    progress.take_detail(client.job(progress.detail.job_id))
                    is_stale = False
            live.update(job_board(progress), refresh=True)
        _settle(client, progress)
        live.update(job_board(progress), refresh=True)


def _settle(client: MicsClient, progress: JobProgress) -> None:
    """Take the last snapshot; a final state that an event told already stands."""
    state, reason = progress.state, progress.reason
    try:
        progress.take_detail(client.job(progress.detail.job_id))
    except ServiceUnreachableError:
        if not state.is_final:
            raise
    if state.is_final:
        progress.state, progress.reason = state, reason


class _EventQueue:
    """Reads the stream in a thread of its own, so that the board is drawn on time.

    Args:
        client: The thread uses it for the stream alone; httpx clients may be shared by threads.
        job_id: The job.
        after: Number of the last event that is not wanted.
    """

    def __init__(self, client: MicsClient, job_id: str, after: int):
        self._items: queue.SimpleQueue[JobEvent | Exception | None] = queue.SimpleQueue()
        self.is_drained = False
        # A daemon: Ctrl-C must not wait for the next event.
        thread = threading.Thread(target=self._read, args=(client, job_id, after), daemon=True)
        thread.start()

    def drain_into(self, take: Callable[[JobEvent], bool]) -> bool:
        """Hand over what came within one redraw; return whether `take` said so of any.

        Raises:
            MicsError: The stream was given up.
        """
        is_stale = False
        deadline = time.monotonic() + _REDRAW_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                item = self._items.get(timeout=left)
            except queue.Empty:
                break
            if item is None:
                self.is_drained = True
                break
            if isinstance(item, Exception):
                raise item
            is_stale |= take(item)
        return is_stale

    def _read(self, client: MicsClient, job_id: str, after: int) -> None:
        try:
            for event in client.watch(job_id, after=after):
                self._items.put(event)
            self._items.put(None)
        except Exception as error:  # raised again where the board is drawn, if it still is
            self._items.put(error)
