"""YAML files: relative paths, syntax errors, and the check of files before anything starts."""

from __future__ import annotations

import glob
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mics_core.errors import SpecificationError
from mics_core.spec import FileData, JobSpec, check_files, load_job_spec
from mics_core.spec.matching import Search, SearchEndedError, files_matching, iterate_files

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


NAMES = st.sampled_from(["a", "b", "ab", ".a", "a[b]"])
PARTS = st.sampled_from(["a", "b", "*", "**", "?", "a*", "[ab]", "[!a]", ".*", "a[b]", "**b"])


@pytest.mark.long
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=6),
    links=st.lists(st.tuples(NAMES, NAMES), max_size=2),
    pattern=st.lists(PARTS, min_size=1, max_size=4),
)
def test_globs_are_those_of_python(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[str]],
    links: list[tuple[str, str]],
    pattern: list[str],
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts in files:
        path = root.joinpath(*parts)
        if not any(above.is_file() for above in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    for name, target in links:
        # Beside each other, so that no link leads round in circles.
        if not os.path.lexists(root / f"{name}-link"):
            (root / f"{name}-link").symlink_to(root / target)
    words = str(root.joinpath(*pattern))
    expected = glob.glob(words, recursive=True)  # noqa: PTH207
    if not Path(words).is_file():
        # Python ends a file that `**` is asked for with a slash.
        names = {name.rstrip("/") for name in expected if Path(name).is_file()}
        assert files_matching(words) == sorted(names)


@pytest.mark.long
def test_a_search_in_circles_ends_with_its_budget(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "again-too").symlink_to(tmp_path)
    with pytest.raises(SearchEndedError):
        list(iterate_files(f"{tmp_path}/**/missing.txt", Search(most_names=1000)))
    with pytest.raises(SearchEndedError):
        list(iterate_files(f"{tmp_path}/**/missing.txt", Search(within_s=0.1)))
    deep = "/".join(["*"] * 1500)
    with pytest.raises(SearchEndedError):
        list(iterate_files(f"{tmp_path}/{deep}", Search(most_names=10_000)))


def with_paths(spec: JobSpec, *paths: str) -> JobSpec:
    assert isinstance(spec.data, FileData)
    return spec.model_copy(update={"data": spec.data.model_copy(update={"paths": [*paths]})})


@pytest.mark.long
def test_a_service_looks_for_a_bounded_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for name in ("one", "two", "three"):
        (tmp_path / name).symlink_to(tmp_path)
    spec = load_job_spec(write_job(tmp_path))
    with pytest.raises(SpecificationError, match=r"no file was found in 10 s or among 50000 names"):
        check_files(with_paths(spec, f"{tmp_path}/**/missing.txt"), by_service=True)
    # Where one was found, that is enough: the workers look at all.
    check_files(with_paths(spec, f"{tmp_path}/**/*.txt"), by_service=True)


def test_files_that_cannot_be_read_are_counted_and_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("secret.txt", "other.txt"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(os, "access", lambda name, _mode: "secret" not in str(name))
    spec = load_job_spec(write_job(tmp_path))
    with pytest.raises(SpecificationError, match=r"1 of 2 files cannot be read") as caught:
        check_files(with_paths(spec, f"{tmp_path}/*.txt"))
    assert "secret" not in str(caught.value)


def test_a_service_asks_no_host_that_a_user_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("a")
    spec = load_job_spec(write_job(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as host:
        host.settimeout(0.1)
        address = f"127.0.0.1:{host.getsockname()[1]}"
        for url in (f"http://{address}/x", f"simplecache::http://{address}/x", f"ftp://{address}/"):
            checkpoint = spec.checkpoint.model_copy(update={"directory": url})
            check_files(spec.model_copy(update={"checkpoint": checkpoint}), by_service=True)
            with pytest.raises(TimeoutError):
                host.accept()
    checkpoint = spec.checkpoint.model_copy(update={"directory": "s4://bucket/run"})
    with pytest.raises(SpecificationError, match="nothing here opens such a URL") as caught:
        check_files(spec.model_copy(update={"checkpoint": checkpoint}), by_service=True)
    assert [problem.field for problem in caught.value.problems] == ["checkpoint.directory"]
