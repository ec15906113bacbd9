"""The users' data grow, keep a worker waiting for ever, or cannot be read at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupPhase, RunPhase
from tests.engine.jobs import small_job
from tests.faults import stuck_data
from tests.faults.runs import FAILS_AT, GROUPS, SIZE, check_the_run, job, lost_of

pytestmark = pytest.mark.timeout(240)

FIRST_ERROR = re.compile(
    r"Attempt 1 to start another failed; .* The first error: .*cannot join: the run's data held"
)


def test_a_newcomer_whose_data_have_grown_fails_and_the_members_train_on(
    text: str, tmp_path: Path
) -> None:
    data, content = tmp_path / "data.txt", Path(text).read_bytes()
    data.write_bytes(content)
    with Miniature(job(str(data), 40), SIZE, 2) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        data.write_bytes(content + b"They have grown. " * 20)
        run.scale(3)
        run.until(lambda: 2 in run.waiting, "a third group")
        data.write_bytes(content)
        run.train_until(lambda: 2 in lost_of(run), "the loss of group 2")
        run.train_with(0, 1, 3)
        run.finish()
        check_the_run(run)
        assert lost_of(run) == [2]
        assert any(FIRST_ERROR.search(reason) for reason in run.reasons), run.reasons
        assert all(run.machine.groups[group].entered for group in (0, 1)), "they were not restarted"
    reason = run.machine.groups[2].reason
    assert re.search(r"cannot join: the run's data held \d+ samples, and now there are \d+", reason)
    assert "Give every node the data that the run began with" in reason


def test_a_worker_that_is_stuck_in_the_users_data_is_evicted_by_name(tmp_path: Path) -> None:
    source = {
        "callable": "tests.faults.stuck_data:build",
        "arguments": {"folder": str(tmp_path), "sequence_length": 16},
    }
    with Miniature(
        job("", 40, data=source, model__vocab_size=stuck_data.VOCABULARY),
        SIZE,
        GROUPS,
        silence_s=1.0,
    ) as run:
        run.hold_at(12)
        run.until(lambda: run.course.step == 12, "the first steps")
        stuck_data.stick(tmp_path, run.groups[1].pids[1])
        run.hold_at(13)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
    stuck = run.machine.groups[1]
    assert stuck.phase == GroupPhase.LOST
    assert stuck.reason.startswith("Rank 0: Partition group 1 broke at step 12 on rank 0: ")
    assert "(all ranks answer; rank 1 is in __getitem__ (" in stuck.reason
    assert f"{stuck_data.__file__}:" in stuck.reason


def test_a_sample_that_cannot_be_read_ends_the_run_of_several_groups_with_that_error(
    text: str,
) -> None:
    poisoned = FAILS_AT * 6 + 4
    arguments = {"num_samples": 90, "sequence_length": 16, "poisoned": poisoned}
    data = {"callable": "tests.faults.poisoned_data:build", "arguments": arguments}
    spec = small_job(
        text, training__steps=15, training__global_batch_size=6, data=data, groups__wanted=2
    )
    with Miniature(spec, 1, 2, minimum=2) as run:
        run.finish()
    assert run.machine.phase == RunPhase.FAILED
    assert run.machine.reason.startswith(f"Step {FAILS_AT} failed in groups ")
    assert f"ValueError: position {poisoned} of the data cannot be read" in run.machine.reason
    assert [step.step for step in run.steps] == list(range(FAILS_AT))
    assert len(run.machine.groups) == 3, "one group was replaced, and none after that"
