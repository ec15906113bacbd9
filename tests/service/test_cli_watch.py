"""`mics watch` on a terminal: the board that it draws while a job trains, and what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
from running import eventually
from scripted_api import serving
from scripted_job import ScriptedJob, example_spec
from scripted_page import PageApi

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState

ROWS, COLUMNS = 40, 120
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_FRAME = re.compile(r"(?:\x1b\[1A\x1b\[2K)+|\x1b\[1A(?:\x1b\[2K)?")
"""How a board goes back over the one before."""


class Terminal:
    """A program on a terminal of its own, whose output is read in a thread."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def written(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def screen(self) -> str:
        """The newest board."""
        boards = [_CONTROL.sub("", part) for part in _FRAME.split(self.written)]
        return next((board for board in reversed(boards) if "steps ·" in board), "")

    def wait_for(self, *words: str) -> str:
        """Wait for a board with all of these words; return it."""

        def seen() -> str | None:
            board = self.screen
            return board if all(word in board for word in words) else None

        try:
            found: str = eventually(seen, f"a board with {words}")
        except AssertionError:
            raise AssertionError(f"no board has {words}; the newest:\n{self.screen}") from None
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        # The end of the program is an error of the terminal.
        with contextlib.suppress(OSError):
            while piece := os.read(self._ours, 65536):
                self._written += piece


@pytest.fixture
def job() -> Iterator[tuple[PageApi, ScriptedJob]]:
    """Two groups that have trained ten steps of forty."""
    with serving(PageApi()) as api:
        job = api.add(ScriptedJob("live", parse_job_spec(example_spec(name="My run", steps=40))))
        job.join(0, 1)
        job.set_state(JobState.RUNNING, "Two groups train.")
        for _ in range(10):
            job.commit_step()
        yield api, job


def watching(api: PageApi) -> Terminal:
    environment = os.environ | {"MICS_URL": api.url, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "watch", "live"]
    return Terminal(command, environment)


@pytest.fixture
def terminal(job: tuple[PageApi, ScriptedJob]) -> Iterator[Terminal]:
    """`mics watch` of the job."""
    terminal = watching(job[0])
    yield terminal
    terminal.close()


def finish(live: ScriptedJob) -> None:
    while len(live.records) < 40:
        live.commit_step()
    live.set_state(JobState.FINISHED, "All steps are done.")


def test_watch_draws_the_board_of_a_live_job_and_leaves_the_last_one(
    job: tuple[PageApi, ScriptedJob], terminal: Terminal
) -> None:
    _, live = job
    board = terminal.wait_for("My run", "running", "10/40 steps · 25 %", "left")
    assert re.search(r"━{5,}", board), "the progress bar"
    assert re.search(r"about .+ left", board), "the remaining time"
    for name in ("loss", "tokens/s"):
        assert re.search(rf"{name} +\S+ +[▁▂▃▄▅▆▇█]{{5,}}", board), f"the line of {name}"
    assert "2/2, at most" in board
    assert "0 ▐■■▌ member" in board
    assert "1 ▐■■▌ member" in board
    live.lose(1, "Its node 10.0.0.5 died.")
    live.join(2)
    for _ in range(10):
        live.commit_step()
    board = terminal.wait_for("20/40 steps · 50 %", "2 ▐■■▌ member", "1 ✕ lost")
    assert "Its node 10.0.0.5 died." in board.partition("Events")[2]
    finish(live)
    assert terminal.process.wait(20) == 0
    board = terminal.wait_for("finished", "40/40 steps · 100 %")
    assert "All steps are done." in board
    assert "\x1b[?25h" in terminal.written, "the cursor is shown again"


def test_watch_shows_what_no_event_tells(
    job: tuple[PageApi, ScriptedJob], terminal: Terminal
) -> None:
    _, live = job
    board = terminal.wait_for("10/40 steps")
    used = re.search(r"samples +(\S+)", board)
    live.groups[0] = live.groups[0].model_copy(update={"slowness": 1.82})
    live.commit_step()
    board = terminal.wait_for("1.8× slow")
    assert used is not None
    assert used[1] not in board


def test_watch_goes_on_while_the_service_is_away(
    job: tuple[PageApi, ScriptedJob], terminal: Terminal
) -> None:
    api, live = job
    terminal.wait_for("10/40 steps")
    api.cut_details = 2
    live.lose(1, "Its node 10.0.0.5 died.")
    terminal.wait_for("1 ✕ lost")
    assert api.cut_details == 0
    # A state that an event has told stands without the last look.
    api.cut_details = 1000
    finish(live)
    assert terminal.process.wait(20) == 0
    assert "finished" in terminal.screen


def test_watch_reads_the_news_of_a_long_run_and_the_last_of_its_steps() -> None:
    with serving(PageApi()) as api:
        live = api.add(ScriptedJob("live", parse_job_spec(example_spec(name="Long", steps=9000))))
        live.join(0, 1)
        live.set_state(JobState.RUNNING, "Two groups train.")
        for step in range(3000):
            if step == 1000:
                live.set_state(JobState.WAITING, "It waits for a group.")
                live.set_state(JobState.RUNNING, "They are back.")
            live.commit_step()
        terminal = watching(api)
        try:
            board = terminal.wait_for("3,000/9,000 steps", "They are back.")
            assert "It waits for a group." in board.partition("Events")[2]
            curve = re.compile(r"loss +\S+ +[▁▂▃▄▅▆▇█]{24}")
            eventually(lambda: curve.search(terminal.screen), "the curve of the last steps")
            assert "● waiting" not in _CONTROL.sub("", terminal.written)
            assert api.stream_starts == [len(live.events) - 400]
        finally:
            terminal.close()
