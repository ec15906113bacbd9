"""Durable checkpoints: a run that is cut and continued is the run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mics_core.errors import SpecificationError
from mics_core.spec import JobSpec, check_files
from mics_core.spec.folders import complete_checkpoints
from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool


def job(text: str, folder: Path, partition_size: int, steps: int, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=partition_size,
        training__steps=steps,
        training__precision="fp64",
        training__optimizer={"kind": "adamw", "learning_rate": 1e-3},
        checkpoint={"directory": str(folder), "interval_steps": 2, "keep": 2},
        **changes,
    )


@pytest.mark.parametrize(
    ("before", "after"), [((1, 2), (2, 2)), ((2, 2), (1, 4)), ((2, 2), (3, 1))]
)
def test_a_run_continues_with_any_layout_as_if_it_had_not_been_cut(
    pool: WorkerPool, text: str, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    groups, size = before
    pool.run(train_over_groups, job(text, tmp_path, size, steps=4), groups, size)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [2, 4]
    groups, size = after
    continued = pool.run(train_over_groups, job(text, tmp_path, size, steps=7), groups, size)[0]
    gold = train_in_one_process(job(text, tmp_path, 1, steps=7))
    assert continued["losses"] == pytest.approx(gold.losses[4:], rel=1e-10)
    assert relative_difference(continued["parameters"], gold.parameters) < 1e-10


def test_only_the_newest_checkpoints_are_kept_and_nothing_unfinished_stays(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=9), 2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]


def test_an_unfinished_checkpoint_is_invisible(pool: WorkerPool, text: str, tmp_path: Path) -> None:
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=2), 1, 2)
    whole = tmp_path / "step-00000002"
    whole.rename(tmp_path / ".step-00000002.unfinished")
    again = pool.run(train_over_groups, job(text, tmp_path, 2, steps=3), 1, 2)[0]
    assert len(again["losses"]) == 3  # it began at the beginning


def test_a_folder_with_checkpoints_is_refused_unless_the_run_may_continue_them(
    text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path, 2, steps=3)
    anew = spec.model_copy(
        update={"checkpoint": spec.checkpoint.model_copy(update={"resume": False})}
    )
    check_files(anew)
    (tmp_path / "step-00000002").mkdir()
    check_files(spec)
    with pytest.raises(SpecificationError, match=r"checkpoint\.resume.*up to step 2.*empty folder"):
        check_files(anew)


def test_a_checkpoint_of_another_model_is_refused_with_the_remedy(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=2), 1, 2)
    wider = job(text, tmp_path, 2, steps=3, model__hidden_size=99)
    with pytest.raises(AssertionError, match=r"(?s)cannot be loaded.*checkpoint\.directory"):
        pool.run(train_over_groups, wider, 1, 2)


def test_a_folder_that_cannot_be_written_fails_the_checkpoint_and_not_the_run(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    result = pool.run(train_over_groups, job(text, blocked / "sub", 2, steps=4), 1, 2)[0]
    assert len(result["losses"]) == 4
    assert [report.step for report in result["checkpoints"]] == [2, 4]
    assert all("Not a directory" in report.error for report in result["checkpoints"])
