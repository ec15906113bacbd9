"""What a worker does where all agree on a checkpoint of this very step, and one cannot be asked."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from mics_core.engine import loop
from mics_core.engine.checkpoint import Checkpointer, CheckpointReport
from mics_core.engine.checkpoint_progress import NOTHING_TO_WRITE
from mics_core.engine.holding import Holding
from mics_core.spec.data_order import DataOrder
from mics_core.spec.job import CheckpointSpec

STEP = 4


@pytest.mark.parametrize("is_missing", [False, True], ids=["it is complete", "it is missing"])
def test_nothing_is_written_where_a_group_went_away_before_all_agreed_to(
    tmp_path: Path, is_missing: bool
) -> None:
    reports: list[CheckpointReport] = []
    checkpointer = Checkpointer(
        CheckpointSpec(directory=str(tmp_path)),
        cast("Any", SimpleNamespace(rank=0, size=1, background=None)),
        0,
        DataOrder(0, 4, 16, num_samples=90),
        reports.append,
    )
    checkpointer.last_step = None if is_missing else STEP
    itself = SimpleNamespace(
        _checkpointer=checkpointer,
        _holding=Holding(STEP, True),
        _trainer=SimpleNamespace(model=None, optimizer=None),
        _membership=SimpleNamespace(group_id=0),
        _fingerprint="the states",
    )
    itself._look_ahead = lambda number: None
    itself._begin_checkpoint = lambda *rest: loop._Loop._begin_checkpoint(
        cast("Any", itself), *rest
    )
    plan = SimpleNamespace(groups=(0, 1), number=1, store="here")
    # All are done with the one before, and then one of them cannot be asked any more.
    with mock.patch.object(loop, "_lowest", side_effect=[NOTHING_TO_WRITE, -math.inf]):
        were_there = loop._Loop._write_checkpoint(
            cast("Any", itself),
            cast("Any", plan),
            cast("Any", SimpleNamespace(replication=None)),
            (0, 1),
        )
    assert not were_there
    errors = [report.error for report in reports]
    assert errors == ["It was left out, for a group went away just then."] * is_missing
    assert list(tmp_path.iterdir()) == []
