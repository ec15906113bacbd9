"""`mics export`: the job of a service or of a file, and a checkpoint that lies in a real folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_api import ScriptedApi, serving
from scripted_job import ScriptedJob, example_spec
from typer.testing import CliRunner, Result

from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import CheckpointFolder, Part
from service.cli.main import build_app


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedApi]:
    with serving(ScriptedApi()) as api:
        yield api


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with the checkpoints of steps 20 and 40."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (20, 40):
        write_checkpoint(parse_job_spec(example_spec()), folder, step)
    return folder


def write_checkpoint(spec: JobSpec, folder: Path, step: int) -> None:
    """Write the job's initial weights as its only group would."""
    import torch
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    from mics_core.engine.models import build_meta_model
    from mics_core.engine.sharding import ShardingOptions, shard_model

    model = shard_model(build_meta_model(spec), None, ShardingOptions(torch.device("cpu"))).module
    state = model.state_dict()
    checkpoints = CheckpointFolder(str(folder))
    part = Part(0, tuple(state), (), "test")
    checkpoints.begin_part(step, part)
    writer = FsspecWriter(checkpoints.path_of_part(step, part))
    save({"model": state}, storage_writer=writer, no_dist=True)
    checkpoints.end_part(step, part)
    training = spec.training
    order = DataOrder(0, training.global_batch_size, training.sequence_length, num_samples=1)
    checkpoints.commit(step, 1, "test", order)


def job_of(checkpoints: Path | None, **changes: Any) -> dict[str, Any]:
    directory = None if checkpoints is None else str(checkpoints)
    return example_spec() | {"checkpoint": {"directory": directory}} | changes


def mics(*words: object, url: str = "http://127.0.0.1:9") -> Result:
    environment = {"MICS_URL": url, "COLUMNS": "200"}
    return CliRunner().invoke(build_app(), ["export", *map(str, words)], env=environment)


def test_a_job_of_the_service_is_exported_by_its_id(
    api: ScriptedApi, checkpoints: Path, tmp_path: Path
) -> None:
    import transformers

    api.add(ScriptedJob("bert-1", parse_job_spec(job_of(checkpoints))))
    output = tmp_path / "model"
    result = mics("bert-1", "--format", "safetensors", "--output", output, url=api.url)
    assert result.exit_code == 0, result.output
    assert f"{output}  step 40, " in result.stdout
    assert "parameters in float32" in result.stdout
    assert "no tokenizer" in result.stdout
    model: Any = transformers.AutoModelForMaskedLM.from_pretrained(output)
    assert model.config.hidden_size == 64


def test_the_answer_for_programs_names_step_type_and_files(
    api: ScriptedApi, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add(ScriptedJob("bert-2", parse_job_spec(job_of(checkpoints))))
    monkeypatch.chdir(tmp_path)
    result = mics("bert-2", "--step", 20, "--dtype", "bfloat16", "--json", url=api.url)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["format"], found["step"], found["dtype"]) == ("safetensors", 20, "bfloat16")
    assert found["folder"] == str(tmp_path / "bert-2")
    assert found["files"] == sorted(path.name for path in (tmp_path / "bert-2").iterdir())


def test_a_file_stands_in_for_the_service_and_another_folder_for_the_jobs(
    checkpoints: Path, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job_of(None)))
    refused = mics("--job", file, "--output", tmp_path / "model")
    assert refused.exit_code == 2
    assert "--checkpoint" in refused.stderr
    url = f"file://{checkpoints}"
    result = mics("--job", file, "--checkpoint", url, "--output", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "exit_code", "remedy"),
    [
        ((), 2, "--job"),
        (("bert-3", "--job", "{file}"), 2, "Leave out 'bert-3' or --job"),
        (("--job", "missing.yaml"), 2, "existing YAML file"),
        (("bert-3",), 3, "mics serve"),
        (("nobody", "--url", "{url}"), 2, "See `mics list`"),
        (("--job", "{file}", "--step", "7"), 2, "only of 20, 40"),
        (("--job", "{file}", "--checkpoint", "nowhere://x"), 2, "Install the package"),
        (("--job", "{file}", "--output", "{full}"), 2, "Name a folder that does not exist"),
        (("--job", "{file}", "--format", "gguf"), 2, "safetensors"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_remedy(
    api: ScriptedApi,
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    exit_code: int,
    remedy: str,
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job_of(checkpoints)))
    monkeypatch.chdir(tmp_path)
    result = mics(*(word.format(file=file, url=api.url, full=tmp_path) for word in words))
    assert result.exit_code == exit_code
    assert remedy in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_as_a_program_it_says_what_it_wrote_and_nothing_else(
    checkpoints: Path, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job_of(checkpoints)))
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "export"]
    words = ["--job", str(file), "--output", str(tmp_path / "model")]
    result = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 2
