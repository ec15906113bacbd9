"""Durable checkpoints: a run that is cut and continued is the run that was not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mics_core.engine.checkpoint_state import share_of
from mics_core.errors import SpecificationError
from mics_core.spec import JobSpec, check_files
from mics_core.spec.folders import CheckpointFolder
from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.odd_storage import (
    PROTOCOLS,
    STORE,
    train_on_odd_storage,
    train_where_a_write_fails,
    train_where_storage_hangs,
)
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 6


def job(text: str, folder: Path, partition_size: int, steps: int, **changes: Any) -> JobSpec:
    precision = changes.pop("training__precision", "fp64")
    return small_job(
        text,
        partition_size=partition_size,
        training__steps=steps,
        training__precision=precision,
        training__optimizer={"kind": "adamw", "learning_rate": 1e-3},
        checkpoint={"directory": str(folder), "interval_steps": 2, "keep": 2},
        **changes,
    )


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ((1, 2), (2, 2), {}),
        ((2, 2), (1, 4), {"engine__offload_optimizer": True}),
        ((1, 4, 2), (3, 1), {}),
        ((2, 2), (1, 6, 3), {}),
    ],
    ids=["more groups", "larger ones, offloaded", "from several nodes", "over several nodes"],
)
def test_a_run_continues_with_any_layout_as_if_it_had_not_been_cut(
    pool: WorkerPool,
    text: str,
    tmp_path: Path,
    before: tuple[int, ...],
    after: tuple[int, ...],
    changes: dict[str, Any],
) -> None:
    """Layouts are numbers of groups, of workers in each, and of those on a node."""
    pool.run(train_over_groups, job(text, tmp_path, before[1], steps=4, **changes), *before)
    assert steps_in(tmp_path)[-1] == 4
    continued, *_ = pool.run(
        train_over_groups, job(text, tmp_path, after[1], steps=7, **changes), *after
    )
    gold = train_in_one_process(job(text, tmp_path, 1, steps=7))
    assert continued["losses"] == pytest.approx(gold.losses[4:], rel=1e-10)
    assert relative_difference(continued["parameters"], gold.parameters) < 1e-10


def test_a_run_in_bf16_continues_to_the_bit(pool: WorkerPool, text: str, tmp_path: Path) -> None:
    changes = {"training__precision": "bf16", "model__dropout": 0.1}
    pool.run(train_over_groups, job(text, tmp_path / "cut", 2, steps=4, **changes), 2, 2)
    continued, uncut = (
        pool.run(train_over_groups, job(text, tmp_path / name, 2, steps=7, **changes), 2, 2)[0]
        for name in ("cut", "uncut")
    )
    assert continued["losses"] == uncut["losses"][4:]
    assert relative_difference(continued["parameters"], uncut["parameters"]) == 0.0


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in CheckpointFolder(str(folder)).complete()]


def test_all_groups_write_together_and_nothing_twice(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path, 2, steps=2)
    result = pool.run(train_over_groups, spec, 3, 2)[0]
    stored = CheckpointFolder(str(tmp_path)).read(2)
    names = [name for part in stored.parts for name in part.parameters]
    assert len(stored.parts) == 3
    assert all(part.parameters for part in stored.parts)
    assert sorted(names) == sorted({*names})
    assert {*names} >= {*result["parameters"]}
    numbers = sum(value.numel() for value in result["parameters"].values())
    num_bytes = sum(file.num_bytes for part in stored.parts for file in part.files)
    # Parameters and two moments in double precision; the rest is torch's record of them.
    assert 3 * 8 * numbers < num_bytes < 1.3 * 3 * 8 * numbers


def test_only_the_newest_checkpoints_are_kept_and_nothing_unfinished_stays(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    reports = pool.run(train_over_groups, job(text, tmp_path, 2, steps=9), 2, 2)[0]["checkpoints"]
    written = [report.step for report in reports if not report.error]
    assert written[-1] == 9
    assert len(written) >= 2
    assert steps_in(tmp_path) == written[-2:]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}" for step in written[-2:]
    ]
    # Steps of milliseconds are faster than any storage; what is left out is told.
    assert {report.step for report in reports} == {2, 4, 6, 8, 9}
    assert all("left out" in report.error for report in reports if report.error)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=2), 2, 2)
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=3), 1, 2)
    assert steps_in(tmp_path) == [2, 3]
    damage(tmp_path / "step-00000003")
    again = pool.run(train_over_groups, job(text, tmp_path, 2, steps=4), 1, 2)[0]
    assert len(again["losses"]) == 2  # from the one of step 2
    passed_over = again["checkpoints"][0]
    assert passed_over.step == 3
    assert passed_over.error.startswith("It is damaged: part-0-")
    for step in steps_in(tmp_path):
        damage(tmp_path / f"step-{step:08d}")
    with pytest.raises(AssertionError, match=r"(?s)Every checkpoint is damaged.*with hash"):
        pool.run(train_over_groups, job(text, tmp_path, 2, steps=5), 1, 2)


def damage(checkpoint: Path) -> None:
    """Change one byte of the largest file, as a failing disk would."""
    largest = max(checkpoint.rglob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] = (content[len(content) // 2] + 1) % 256
    largest.write_bytes(bytes(content))


def test_an_unfinished_checkpoint_is_invisible(pool: WorkerPool, text: str, tmp_path: Path) -> None:
    pool.run(train_over_groups, job(text, tmp_path, 2, steps=2), 1, 2)
    (tmp_path / "step-00000002" / "mics.json").unlink()
    again = pool.run(train_over_groups, job(text, tmp_path, 2, steps=3), 1, 2)[0]
    assert len(again["losses"]) == 3  # it began at the beginning


@pytest.mark.parametrize("protocol", ["file", STORE])
def test_a_url_of_fsspec_is_as_good_as_a_path(
    pool: WorkerPool, text: str, tmp_path: Path, protocol: str
) -> None:
    """Also one of a storage that has no links and cannot rename."""
    first, longer = (
        on_odd_storage(job(text, tmp_path, 2, steps=steps), protocol) for steps in (2, 3)
    )
    pool.run(train_on_odd_storage, first, 2, 2)
    stored = CheckpointFolder(str(tmp_path)).read(2)
    files = [file for part in stored.parts for file in part.files]
    assert CheckpointFolder(str(tmp_path)).damage_of(stored, files) == ""
    assert len(pool.run(train_on_odd_storage, longer, 1, 2)[0]["losses"]) == 1


def test_a_folder_with_checkpoints_is_refused_unless_the_run_may_continue_them(
    text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path, 2, steps=3)
    anew = spec.model_copy(
        update={"checkpoint": spec.checkpoint.model_copy(update={"resume": False})}
    )
    check_files(anew)
    whole = tmp_path / "step-00000002"
    whole.mkdir()
    check_files(anew)  # nothing complete is there
    (whole / "mics.json").write_text("{}")
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__seed": 5}, r"trained with training\.seed 0, and now that is 5\."),
        ({"data": None}, r"its data held \d+ samples, and now there are \d+\."),
    ],
    ids=["seed", "data"],
)
def test_a_run_with_another_order_of_the_data_continues_no_checkpoint(
    pool: WorkerPool, text: str, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    folder = tmp_path / "checkpoints"
    pool.run(train_over_groups, job(text, folder, 2, steps=2), 1, 2)
    if "data" in changes:
        more = tmp_path / "more.txt"
        more.write_text(Path(text).read_text() + "It has grown meanwhile." * 9)
        changes = {"data": {"kind": "text", "paths": [str(more)]}}
    with pytest.raises(AssertionError, match=f"(?s)cannot be continued.*{words}.*used twice"):
        pool.run(train_over_groups, job(text, folder, 2, steps=3, **changes), 1, 2)


def test_a_folder_that_cannot_be_written_fails_the_checkpoint_and_not_the_run(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    result = pool.run(train_over_groups, job(text, blocked / "sub", 2, steps=4), 1, 2)[0]
    assert len(result["losses"]) == 4
    assert [report.step for report in result["checkpoints"]] == [2, 4]
    assert all("NotADirectory" in report.error for report in result["checkpoints"])


def reports_of(results: list[Any]) -> dict[int, list[str]]:
    """What all workers told of each checkpoint; those that only form groups told nothing."""
    reports = [report for result in results if result for report in result["checkpoints"]]
    return {
        step: [report.error for report in reports if report.step == step]
        for step in sorted(report.step for report in reports)
    }


def on_odd_storage(spec: JobSpec, protocol: str) -> JobSpec:
    url = {"directory": f"{protocol}://{spec.checkpoint.directory}"}
    return spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update=url)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_that_cannot_be_pickled_on_one_worker_is_named_and_the_run_goes_on(
    pool: WorkerPool, text: str, tmp_path: Path, protocol: str
) -> None:
    spec = on_odd_storage(job(text, tmp_path, 2, steps=7), protocol)
    results = pool.run(train_where_a_write_fails, spec, 2, 2)
    assert len(results[0]["losses"]) == 7
    told = reports_of(results)
    assert told[2] == [
        "OddError: An error occurred (SlowDown) when calling PutObject: {'Status': 503}"
    ]
    assert told[7] == [""]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_storage_that_never_answers_holds_up_neither_steps_nor_the_next_checkpoint(
    pool: WorkerPool, text: str, tmp_path: Path, protocol: str
) -> None:
    spec = on_odd_storage(job(text, tmp_path, 2, steps=5), protocol)
    results = pool.run(train_where_storage_hangs, spec, 2, 2)
    assert len(results[0]["losses"]) == 5
    told = reports_of(results)
    assert {*told[2]} == {
        "The storage has not answered in time. Look whether it can be reached, and how fast."
    }
    assert "that of step 2 is still being written" in told[4][0]
    assert told[5] == [""]
    assert steps_in(tmp_path) == [5]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for less than one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"to mount a small disk needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_the_checkpoint_and_not_the_run(
    pool: WorkerPool, text: str, small_disk: Path
) -> None:
    results = pool.run(train_over_groups, job(text, small_disk, 2, steps=3), 2, 2)
    assert len(results[0]["losses"]) == 3
    told = reports_of(results)
    full = "OSError: [Errno 28] No space left on device"  # of a file, where opening it failed
    assert [told[step][0][: len(full)] for step in (2, 3)] == [full, full]
    assert list(small_disk.iterdir()) == [], "what could be written is in the way of the next"


def test_groups_share_the_writing_evenly_and_without_a_word() -> None:
    sizes = {f"{place}": size for place, size in enumerate([90, 60, 50, 40, 30, 20, 10, 0])}
    for num_groups in range(1, 10):
        shares = [share_of(sizes, number, num_groups) for number in range(num_groups)]
        assert sorted(name for share in shares for name in share) == sorted(sizes)
        loads = [sum(sizes[name] for name in share) for share in shares]
        assert max(loads) <= max(90, sum(loads) / num_groups + 30)
