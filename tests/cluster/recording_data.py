"""A user's data: samples that each process notes when it reads them, and that can be held back.

The files of `reads_of` are a proof of what was trained on that owes nothing to the system's own
counting.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mics_core.data.order import sample_index
from tests.cluster.control import Control
from tests.cluster.remote_calls import note_calls

VOCABULARY = 257
SEED = 0


class RecordingSamples:
    """One epoch of counting sequences, as many samples as the run uses, so each is due once.

    Args:
        folder: Where the reads are noted, and the `Control` of the job; none to do neither.
        steps: Steps of the run.
        global_batch_size: Samples of a step.
        sequence_length: Tokens of a sample.
    """

    def __init__(
        self, folder: str | None, steps: int, global_batch_size: int, sequence_length: int
    ):
        self._folder = None if folder is None else Path(folder)
        self._sequence_length = sequence_length
        self._length = steps * global_batch_size
        self._step_of = {
            sample_index(position, self._length, SEED): position // global_batch_size
            for position in range(self._length)
        }

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if self._folder is not None:
            step = self._step_of[index]
            Control(self._folder).wait_for(step)
            _note(self._folder, index)
            note_calls(self._folder, step)
        stride = 1 + index % 3
        tokens = (index + stride * np.arange(self._sequence_length + 1)) % VOCABULARY
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


def build(**arguments: object) -> RecordingSamples:
    return RecordingSamples(**arguments)  # type: ignore[arg-type]


def _note(folder: Path, index: int) -> None:
    # One write each: what a killed process has read is in the file, whole.
    with (folder / f"reads-{os.getpid()}").open("ab", buffering=0) as reads:
        reads.write(b"%d\n" % index)


class Reads:
    """What the processes of a job have read, in their order.

    Args:
        folder: The folder of the samples.
        steps: Steps of the run.
        global_batch_size: Samples of a step.
    """

    def __init__(self, folder: str | Path, steps: int, global_batch_size: int):
        self.folder = Path(folder)
        size, length = global_batch_size, steps * global_batch_size
        place_of = {sample_index(q, length, SEED): divmod(q, size) for q in range(length)}
        self._by_process = {
            int(path.name.removeprefix("reads-")): [
                place_of[int(line)] for line in path.read_text().split()
            ]
            for path in self.folder.glob("reads-*")
        }

    @property
    def pids(self) -> set[int]:
        """The processes that have read anything."""
        return set(self._by_process)

    def of_step(self, step: int, *pids: int) -> list[int]:
        """Return the places of a step's global batch that were read, sorted: by all processes, or
        by some."""
        return sorted(
            place
            for pid in pids or self.pids
            for of_step, place in self._by_process.get(pid, ())
            if of_step == step
        )
