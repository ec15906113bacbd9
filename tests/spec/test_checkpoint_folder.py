"""Checkpoints as they lie in their folder: complete or invisible, and what was written."""

from __future__ import annotations

from uuid import uuid4

import fsspec
import pytest

from mics_core.errors import CheckpointError
from mics_core.spec.folders import CheckpointFolder, Part

pytestmark = pytest.mark.pure


@pytest.fixture(params=["path", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """A folder on this machine, and one of a storage that has neither folders nor renaming."""
    return str(tmp_path) if request.param == "path" else f"memory://{uuid4().hex}"


def write_part(folder: CheckpointFolder, step: int, number: int, fingerprint: str = "a") -> None:
    folder.begin_part(step, number)
    files, path = fsspec.core.url_to_fs(folder.path_of_part(step, number))
    files.pipe_file(f"{path}/__0_0.distcp", b"states of part %d" % number)
    folder.end_part(step, Part(number, (f"weight-{number}",), (), fingerprint))


def write(folder: CheckpointFolder, step: int, num_parts: int = 2) -> None:
    for number in range(num_parts):
        write_part(folder, step, number)
    folder.commit(step, num_parts)


def test_a_checkpoint_is_complete_or_invisible(url: str) -> None:
    folder = CheckpointFolder(url)
    assert folder.complete() == []
    write_part(folder, 5, 0)
    assert folder.complete() == []
    with pytest.raises(FileNotFoundError):
        folder.commit(5, 2)
    assert folder.complete() == []
    write_part(folder, 5, 1)
    folder.commit(5, 2)
    assert folder.complete() == [(5, f"{url}/step-00000005")]
    stored = CheckpointFolder(url).read(5)
    assert [part.parameters for part in stored.parts] == [("weight-0",), ("weight-1",)]
    assert [file.num_bytes for part in stored.parts for file in part.files] == [16, 16]


def test_a_part_of_an_earlier_attempt_never_joins_a_new_one(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 5, 0, "old")
    write_part(folder, 5, 1, "old")
    write_part(folder, 5, 0, "new")
    with pytest.raises(ValueError, match="earlier attempt"):
        folder.commit(5, 2)
    assert folder.complete() == []


def test_what_differs_from_the_record_is_damage(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5)
    stored = folder.read(5)
    files = [file for part in stored.parts for file in part.files]
    assert folder.damage_of(stored, files) == ""
    system, path = fsspec.core.url_to_fs(folder.path_of_part(5, 1))
    system.pipe_file(f"{path}/__0_0.distcp", b"states of part 2")
    assert folder.damage_of(stored, files[:1]) == ""
    assert "part-1/__0_0.distcp has 16 bytes" in folder.damage_of(stored, files)
    system.rm(f"{path}/__0_0.distcp")
    assert folder.damage_of(stored, files) == "part-1/__0_0.distcp is not there."


def test_the_newest_are_kept_and_what_never_became_one_before_them_goes(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 1, 0)
    for step in (2, 3, 4):
        write(folder, step)
    write_part(folder, 9, 0)  # being written
    folder.prune(2)
    assert [step for step, _ in folder.complete()] == [3, 4]
    assert folder._steps() == [3, 4, 9]


def test_what_is_left_of_one_that_failed_is_discarded_and_a_complete_one_is_not(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5)
    write_part(folder, 6, 1)
    assert not folder.discard(5)
    assert folder.discard(6)
    assert folder.discard(7), "nothing is left of it"
    assert folder._steps() == [5]


def test_one_that_is_written_again_is_invisible_until_it_is_complete(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5)
    write_part(folder, 5, 1, "new")
    assert folder.is_complete(5), "the first part has yet to begin"
    write_part(folder, 5, 0, "new")
    assert not folder.is_complete(5)
    folder.commit(5, 2)
    assert folder.is_complete(5)


def test_a_record_that_cannot_be_read_is_refused_with_the_remedy(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5)
    system, path = fsspec.core.url_to_fs(folder.path_of(5))
    for content in (b"{", b"[]", b'{"format": 1}'):
        system.pipe_file(f"{path}/mics.json", content)
        with pytest.raises(CheckpointError) as refused:
            folder.read(5)
        assert refused.value.remedy is not None


def test_a_url_that_nothing_opens_is_refused_with_the_remedy() -> None:
    with pytest.raises(CheckpointError, match="nowhere://bucket cannot be opened") as refused:
        CheckpointFolder("nowhere://bucket")
    assert "Install" in str(refused.value)
