"""What a peer's worker says of its steps: one JSON line each, in a file of its own.

Only the standard library: the training scripts of all peers import it, in whatever environment.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["StepFolder", "StepLine", "StepWriter"]


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step of one worker.

    Args:
        group: Which group the worker belongs to; the node where a peer knows no groups.
        rank: Its rank in what restarts together.
        pid: Its process.
        generation: What restarts or regroups counts; it grows.
        step: The step's number.
        num_workers: Workers whose gradients went into it.
        step_s: How long the worker took for it.
        time: When it was over.
        is_committed: Whether the parameters were updated; if not, the step was discarded.
    """

    group: str
    rank: int
    pid: int
    generation: int
    step: int
    num_workers: int
    step_s: float
    time: float
    is_committed: bool = True


class StepWriter:
    """Writes a worker's lines; each is in the file before the next step begins.

    Args:
        folder: Where `StepFolder` reads.
        group: See `StepLine`.
        rank: See `StepLine`.
    """

    def __init__(self, folder: Path, group: str, rank: int):
        self._group, self._rank = group, rank
        self._began = time.time()
        self._file = (folder / f"{group}-{rank}-{os.getpid()}.jsonl").open("a", encoding="utf-8")

    def write(
        self, *, generation: int, step: int, num_workers: int, is_committed: bool = True
    ) -> None:
        """Write that a step is over; the next one begins."""
        now = time.time()
        line = StepLine(
            group=self._group,
            rank=self._rank,
            pid=os.getpid(),
            generation=generation,
            step=step,
            num_workers=num_workers,
            step_s=now - self._began,
            time=now,
            is_committed=is_committed,
        )
        self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()
        self._began = now


class StepFolder:
    """All workers' lines so far, by time.

    Args:
        folder: Where the workers write.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self.lines: list[StepLine] = []

    def read(self) -> None:
        """Take in what was written since the last call."""
        before = len(self.lines)
        for path in self._folder.glob("*.jsonl"):
            self._read_file(path)
        if len(self.lines) > before:
            self.lines.sort(key=lambda line: line.time)

    def _read_file(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            fresh = file.read()
        # A line under way is left for the next call.
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        self.lines += [StepLine(**json.loads(text)) for text in whole.splitlines()]
