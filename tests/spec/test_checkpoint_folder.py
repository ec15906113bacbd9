"""Checkpoints as they lie in their folder: complete or invisible, and what was written."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock
from uuid import uuid4

import fsspec
import pytest

from mics_core.errors import CheckpointError
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import CheckpointFolder, Part

pytestmark = pytest.mark.pure

ORDER = DataOrder(seed=7, global_batch_size=4, sequence_length=16, num_samples=90, content=5)


@pytest.fixture(params=["path", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """A folder on this machine, and one of a storage that has neither folders nor renaming."""
    return str(tmp_path) if request.param == "path" else f"memory://{uuid4().hex}"


def write_part(folder: CheckpointFolder, step: int, number: int, fingerprint: str = "a") -> None:
    part = Part(number, (f"weight-{number}",), (), fingerprint)
    folder.begin_part(step, part)
    files, path = fsspec.core.url_to_fs(folder.path_of_part(step, part))
    files.pipe_file(f"{path}/__0_0.distcp", b"states of part %d" % number)
    folder.end_part(step, part)


def write(folder: CheckpointFolder, step: int, num_parts: int = 2, fingerprint: str = "a") -> None:
    for number in range(num_parts):
        write_part(folder, step, number, fingerprint)
    folder.commit(step, num_parts, fingerprint, ORDER)


def damage_of(folder: CheckpointFolder, step: int) -> str:
    stored = folder.read(step)
    return folder.damage_of(stored, [file for part in stored.parts for file in part.files])


def fingerprints_of(folder: CheckpointFolder, step: int) -> list[str]:
    return [part.fingerprint for part in folder.read(step).parts]


def test_a_checkpoint_is_complete_or_invisible(url: str) -> None:
    folder = CheckpointFolder(url)
    assert folder.complete() == []
    write_part(folder, 5, 0)
    assert folder.complete() == []
    with pytest.raises(FileNotFoundError):
        folder.commit(5, 2, "a", ORDER)
    assert folder.complete() == []
    write_part(folder, 5, 1)
    folder.commit(5, 2, "a", ORDER)
    assert folder.complete() == [(5, f"{url}/step-00000005")]
    stored = CheckpointFolder(url).read(5)
    assert stored.order == ORDER
    assert [part.parameters for part in stored.parts] == [("weight-0",), ("weight-1",)]
    assert [file.num_bytes for part in stored.parts for file in part.files] == [16, 16]


def test_a_part_of_an_earlier_attempt_never_joins_a_new_one(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 5, 0, "old")
    write_part(folder, 5, 1, "old")
    write_part(folder, 5, 0, "new")
    with pytest.raises(FileNotFoundError):
        folder.commit(5, 2, "new", ORDER)
    assert folder.complete() == []


def test_an_attempt_that_ends_late_changes_nothing_of_one_that_is_complete(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 5, 0, "late")
    write(folder, 5, fingerprint="first")
    write_part(folder, 5, 0, "late")
    write_part(folder, 5, 1, "late")
    folder.commit(5, 2, "late", ORDER)
    assert fingerprints_of(folder, 5) == ["first"] * 2
    assert damage_of(folder, 5) == ""
    assert all("first" in record for record in records_of_parts(folder, 5)), "nothing is left of it"


def records_of_parts(folder: CheckpointFolder, step: int) -> list[str]:
    files, path = fsspec.core.url_to_fs(folder.path_of(step))
    return [files.cat_file(name).decode() for name in files.glob(f"{path}/part-*.json")]


def test_an_attempt_that_fails_late_leaves_those_of_others_alone(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 5, 0, "late")
    write_part(folder, 5, 0, "first")
    assert folder.discard(5, "late")
    write_part(folder, 5, 1, "first")
    folder.commit(5, 2, "first", ORDER)
    assert damage_of(folder, 5) == ""


def test_one_that_is_damaged_is_replaced_by_another_attempt(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5, fingerprint="first")
    system, path = fsspec.core.url_to_fs(folder.path_of_part(5, folder.read(5).parts[1]))
    system.pipe_file(f"{path}/__0_0.distcp", b"states of part 2")
    write(folder, 5, fingerprint="again")
    assert fingerprints_of(folder, 5) == ["again"] * 2
    assert damage_of(folder, 5) == ""


def test_what_interrupted_attempts_left_goes_when_one_is_complete(url: str) -> None:
    folder = CheckpointFolder(url)
    write_part(folder, 5, 0, "old")
    write(folder, 5, fingerprint="new")
    system, path = fsspec.core.url_to_fs(folder.path_of(5))
    system.pipe_file(f"{path}/mics.json.0123.new", b"{")
    system.pipe_file(f"{path}/notes.txt", b"not ours")
    folder.remove_other_attempts(5)
    names = [part.name for part in folder.read(5).parts]
    whole = {*names, *(f"{name}.json" for name in names), "mics.json"}
    assert names_in(folder, 5) == {*whole, "notes.txt"}
    assert damage_of(folder, 5) == ""


def names_in(folder: CheckpointFolder, step: int) -> set[str]:
    files, path = fsspec.core.url_to_fs(folder.path_of(step))
    return {name.rstrip("/").rsplit("/", 1)[-1] for name in files.ls(path, detail=False)}


def test_parts_of_a_whole_one_are_spared_where_the_record_of_a_late_attempt_lies_over_its_own(
    url: str,
) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5, fingerprint="late")
    write_part(folder, 5, 0, "whole")
    system, _ = fsspec.core.url_to_fs(url)
    (late, _) = folder.read(5).parts
    system.rm(folder.path_of_part(5, late), recursive=True)
    before = names_in(folder, 5)
    folder.remove_other_attempts(5)
    assert names_in(folder, 5) == before


@pytest.mark.parametrize("damaged", [False, True], ids=["none", "a damaged one"])
def test_an_attempt_that_stalls_when_it_has_looked_does_not_replace_one_completed_meanwhile(
    url: str, damaged: bool
) -> None:
    folder, stalls = CheckpointFolder(url), CheckpointFolder(url)
    if damaged:
        write(folder, 5, fingerprint="damaged")
        system, _ = fsspec.core.url_to_fs(url)
        system.rm(folder.path_of_part(5, folder.read(5).parts[0]), recursive=True)
    for number in range(2):
        write_part(stalls, 5, number, "late")
    look = stalls._is_whole

    def looks_and_stalls(step: int) -> bool:
        is_whole = look(step)
        if not is_whole:
            write(folder, 5, fingerprint="first")
            folder.remove_other_attempts(5)
        return is_whole

    with mock.patch.object(stalls, "_is_whole", looks_and_stalls):
        stalls.commit(5, 2, "late", ORDER)
    assert fingerprints_of(folder, 5) == ["first"] * 2
    assert damage_of(folder, 5) == ""


@pytest.mark.parametrize("has_links", [True, False])
def test_a_record_is_created_on_a_path_where_another_appears_at_the_last_moment(
    tmp_path: Path, has_links: bool
) -> None:
    """Without hard links it is put there all the same: nothing else would be written at all."""
    folder = CheckpointFolder(str(tmp_path))
    for number in range(2):
        write_part(folder, 5, number, "late")
    system = folder._files
    link = system.link

    def appears(path: str, to: str) -> None:
        if not has_links:
            raise OSError(errno.EOPNOTSUPP, "no hard links here")
        if "first" not in "".join(records_of_parts(folder, 5)):
            write(CheckpointFolder(str(tmp_path)), 5, fingerprint="first")
        link(path, to)

    with mock.patch.object(system, "link", appears):
        folder.commit(5, 2, "late", ORDER)
    assert fingerprints_of(folder, 5) == ["first" if has_links else "late"] * 2
    assert damage_of(folder, 5) == ""
    assert not any(name.endswith(".new") for name in names_in(folder, 5))


@pytest.mark.parametrize("says", [FileExistsError, RuntimeError])
def test_a_record_is_created_on_a_storage_where_another_appears_at_the_last_moment(
    says: type[Exception],
) -> None:
    """Each storage has another word for what is there already."""
    url = f"memory://{uuid4().hex}"
    folder = CheckpointFolder(url)
    for number in range(2):
        write_part(folder, 5, number, "late")
    system = folder._files
    pipe_file = system.pipe_file

    def appears(path: str, content: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and "first" not in "".join(records_of_parts(folder, 5)):
            write(CheckpointFolder(url), 5, fingerprint="first")
        try:
            pipe_file(path, content, mode=mode)
        except FileExistsError:
            raise says("it is there") from None

    with mock.patch.object(system, "pipe_file", appears):
        folder.commit(5, 2, "late", ORDER)
    assert fingerprints_of(folder, 5) == ["first"] * 2
    assert damage_of(folder, 5) == ""


def test_a_record_whose_storage_answered_too_late_and_was_asked_again_is_written() -> None:
    folder = CheckpointFolder(f"memory://{uuid4().hex}")
    for number in range(2):
        write_part(folder, 5, number, "a")
    system = folder._files
    pipe_file = system.pipe_file

    def asks_again(path: str, content: bytes, mode: str = "overwrite") -> None:
        pipe_file(path, content, mode="overwrite")
        pipe_file(path, content, mode=mode)

    with mock.patch.object(system, "pipe_file", asks_again):
        folder.commit(5, 2, "a", ORDER)
    assert damage_of(folder, 5) == ""


def test_a_record_is_written_where_the_file_system_cannot_be_told_to_create_it() -> None:
    folder = CheckpointFolder(f"memory://{uuid4().hex}")
    for number in range(2):
        write_part(folder, 5, number, "a")
    pipe_file = folder._files.pipe_file

    def knows_no_mode(path: str, content: bytes) -> None:
        pipe_file(path, content)

    with mock.patch.object(folder._files, "pipe_file", knows_no_mode):
        folder.commit(5, 2, "a", ORDER)
    assert damage_of(folder, 5) == ""


def test_a_record_that_its_storage_refuses_is_an_error() -> None:
    folder = CheckpointFolder(f"memory://{uuid4().hex}")
    for number in range(2):
        write_part(folder, 5, number, "a")
    with (
        mock.patch.object(folder._files, "pipe_file", side_effect=OSError("storage is full")),
        pytest.raises(OSError, match="storage is full"),
    ):
        folder.commit(5, 2, "a", ORDER)
    assert folder.complete() == []


def test_what_differs_from_the_record_is_damage(url: str) -> None:
    folder = CheckpointFolder(url)
    write(folder, 5)
    stored = folder.read(5)
    files = [file for part in stored.parts for file in part.files]
    assert folder.damage_of(stored, files) == ""
    name = f"{stored.parts[1].name}/__0_0.distcp"
    system, path = fsspec.core.url_to_fs(folder.path_of(5))
    system.pipe_file(f"{path}/{name}", b"states of part 2")
    assert folder.damage_of(stored, files[:1]) == ""
    assert f"{name} has 16 bytes" in damage_of(folder, 5)
    system.rm(f"{path}/{name}")
    assert damage_of(folder, 5) == f"{name} is not there."


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
    assert not folder.discard(5, "a")
    assert folder.discard(6, "a")
    assert folder.discard(7, "a"), "nothing is left of it"
    assert folder._steps() == [5]


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
