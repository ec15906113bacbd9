"""Groups that write checkpoints to a real storage, which waits or fails where the test says."""

from __future__ import annotations

import re
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mics_core.comm.partition import PartitionGroup
from mics_core.engine import checkpoint
from mics_core.engine.checkpoint import Checkpointer, CheckpointReport
from mics_core.engine.checkpoint_progress import NOTHING_TO_WRITE
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import CheckpointFolder, Part
from mics_core.spec.job import CheckpointSpec
from tests.engine.odd_storage import DEADLINE_S

UNDER_WAY = 0.0
"""What groups hear while one of them still writes."""


class OneWorker:
    """The only worker of its partition group, in no world of torch."""

    rank, size, background = 0, 1, None

    def share(self, value: Any, over: Any = None) -> list[Any]:
        return [value]

    def form_background(self) -> None:
        return None


class Writers:
    """Groups that write together; each part waits until the test lets it be written.

    Args:
        folder: Where to.
        number: Groups.
    """

    def __init__(self, folder: Path, number: int):
        self.folder = CheckpointFolder(str(folder))
        self.reports: list[CheckpointReport] = []
        self.gates: dict[str, Future[None]] = {}
        self._newest: dict[int, str] = {}
        spec = CheckpointSpec(directory=f"odd://{folder}", interval_steps=2, keep=2)
        partition = cast("PartitionGroup", OneWorker())
        order = DataOrder(0, 4, 16, num_samples=90)
        self.groups = [
            Checkpointer(spec, partition, group, order, self.reports.append)
            for group in range(number)
        ]
        self._model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self._optimizer = torch.optim.SGD(self._model.parameters(), momentum=0.9)

    def before(self, call: str, path: str) -> None:
        part = re.search(r"step-\d+/part-\d+-\w+$", path)
        if call == "makedirs" and part is not None:
            self.gates[part.group()].result(DEADLINE_S)

    def begin(self, step: int, *groups: int, states: str = "the states") -> None:
        for group in groups:
            self.begin_alone(step, group, groups, states)

    def begin_alone(
        self, step: int, group: int, groups: tuple[int, ...], states: str = "the states"
    ) -> None:
        """Have one of the groups that are to write begin."""
        self._newest[step] = checkpoint._fingerprint(states, groups)
        self.gates.setdefault(self._gate_of(step, groups.index(group)), Future())
        self.groups[group].begin(step, self._model, self._optimizer, groups, states)

    def end(self, step: int, *parts: int, error: Exception | None = None) -> None:
        """Have the storage take some parts of the attempt that was begun last, or refuse them."""
        for part in parts:
            gate = self.gates[self._gate_of(step, part)]
            if error is None:
                gate.set_result(None)
            else:
                gate.set_exception(error)
        for writing in [group._writing for group in self.groups]:
            if writing is None or (writing.step, writing.fingerprint) != (step, self._newest[step]):
                continue
            if writing.number in parts:
                assert not wait(writing.under_way, DEADLINE_S).not_done

    def _gate_of(self, step: int, part: int) -> str:
        return f"step-{step:08d}/{Part(part, (), (), self._newest[step]).name}"

    def hear(self, *groups: int) -> float:
        """Let groups commit a step: all hear the lowest of what they say."""
        lowest = min(self.groups[group].progress for group in groups)
        for group in groups:
            self.groups[group].heard(lowest)
        return lowest

    def publish(self, *groups: int) -> None:
        """Let groups commit two steps, with time to make a checkpoint visible in between."""
        assert self.hear(*groups) > 0.0
        published = self.groups[groups[0]]._writing
        assert published is not None
        assert not wait(published.under_way, DEADLINE_S).not_done
        assert self.hear(*groups) == NOTHING_TO_WRITE

    def close(self) -> None:
        for gate in self.gates.values():
            if not gate.done():
                gate.set_result(None)
        for group in self.groups:
            group.close()

    def has_files(self, step: int, *, tidied_by: int) -> bool:
        """Whether files of a step are there, when a group has removed what it wants to."""
        tidied = self.groups[tidied_by]._tidied
        assert tidied is not None
        assert not wait([tidied], DEADLINE_S).not_done
        return bool(self.folder._files.find(self.folder.path_of(step)))

    def complete(self) -> list[int]:
        return [step for step, _ in self.folder.complete()]

    def told(self) -> list[tuple[int, str]]:
        return [(report.step, report.error) for report in self.reports]


def damage_of(folder: CheckpointFolder, step: int) -> str:
    stored = folder.read(step)
    return folder.damage_of(stored, [file for part in stored.parts for file in part.files])
