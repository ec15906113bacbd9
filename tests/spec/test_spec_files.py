"""YAML files: relative paths, syntax errors, and the check of files before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mics_core.errors import SpecificationError
from mics_core.spec import FileData, check_files, load_job_spec
from mics_core.spec.checks import files_matching

pytestmark = pytest.mark.pure

JOB = """
name: example
model: {family: gpt2, hidden_size: 8, num_layers: 1, num_heads: 2}
data: {kind: text, paths: [PATH]}
tokenizer: TOKENIZER
training: {sequence_length: 8, global_batch_size: 4, micro_batch_size: 2, steps: 1}
checkpoint: {directory: saved}
"""


def write_job(folder: Path, path: str = "data/*.txt", tokenizer: str = "{kind: bytes}") -> Path:
    file = folder / "job.yaml"
    file.write_text(JOB.replace("PATH", f'"{path}"').replace("TOKENIZER", tokenizer))
    return file


def paths_of(file: Path) -> list[str]:
    data = load_job_spec(file).data
    assert isinstance(data, FileData)
    return data.paths


def test_relative_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    spec = load_job_spec(write_job(tmp_path, tokenizer="{kind: file, path: t/tokenizer.json}"))
    assert isinstance(spec.data, FileData)
    assert spec.data.paths == [str(tmp_path / "data/*.txt")]
    assert spec.tokenizer.path == str(tmp_path / "t/tokenizer.json")
    assert spec.checkpoint.directory == str(tmp_path / "saved")


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert paths_of(write_job(tmp_path, "/elsewhere/*.txt")) == ["/elsewhere/*.txt"]


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths_of(write_job(tmp_path, "~/x.txt")) == ["/home/someone/x.txt"]
    assert paths_of(write_job(tmp_path, "~no-such-user/x")) == [str(tmp_path / "~no-such-user/x")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [", "no valid YAML in line 1"),
        (b"name: \xff", "cannot be read"),
        (b"name: 2020-99-99", "cannot read"),
        (b"name: " + b"9" * 5000, "cannot read"),
        (b"[" * 1000, "cannot read"),
        (b"", "mapping of fields"),
        (b"- a", "mapping of fields"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecificationError, match=words):
        load_job_spec(file)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "null\0byte"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecificationError, match=r"cannot be read .* Name an existing YAML file"):
        load_job_spec(tmp_path / name)


def test_files_that_are_there_pass(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("a")
    check_files(load_job_spec(write_job(tmp_path)))


@pytest.mark.parametrize(
    ("path", "rule"),
    [("missing/*.txt", "no file matches"), ("https://host/x.txt", "not URLs")],
)
def test_files_that_are_not_there_are_named(tmp_path: Path, path: str, rule: str) -> None:
    with pytest.raises(SpecificationError, match=rule) as caught:
        check_files(load_job_spec(write_job(tmp_path, path)))
    assert [problem.field for problem in caught.value.problems] == ["data.paths.0"]


def test_a_relative_path_is_refused_where_no_file_gives_it_a_folder(tmp_path: Path) -> None:
    spec = load_job_spec(write_job(tmp_path))
    assert isinstance(spec.data, FileData)
    data = spec.data.model_copy(update={"paths": ["data/*.txt"]})
    with pytest.raises(SpecificationError, match="another file on every machine"):
        check_files(spec.model_copy(update={"data": data}))


def test_globs_give_sorted_files_without_hidden_ones_and_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden.txt", "inner/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = files_matching(f"{tmp_path}/**/*")
    assert [Path(name).name for name in found] == ["a.txt", "b.txt", "c.txt"]


def test_a_file_whose_name_holds_brackets_is_found(tmp_path: Path) -> None:
    (tmp_path / "part[1].txt").write_text("x")
    assert files_matching(f"{tmp_path}/part[1].txt") == [f"{tmp_path}/part[1].txt"]


def test_a_name_that_no_file_can_have_matches_nothing() -> None:
    assert files_matching("/" + "x" * 5000) == []
    assert files_matching("/null\0byte") == []
