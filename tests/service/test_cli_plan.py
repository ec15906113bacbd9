"""`mics plan`: no service, no Ray; torch only in another program, for a user's own module."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_job import example_spec
from typer.testing import CliRunner, Result

from service.cli.main import build_app

ROOT = Path(__file__).resolve().parent.parent.parent


def mics(*words: object, columns: int = 200) -> Result:
    environment = {"COLUMNS": str(columns)}
    return CliRunner().invoke(build_app(), ["plan", *map(str, words)], env=environment)


def write(path: Path, **changes: Any) -> Path:
    value = example_spec() | {"partition_size": "auto", "groups": {}} | changes
    value["training"] = value["training"] | {"micro_batch_size": "auto", "global_batch_size": 64}
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    return write(tmp_path / "job.yaml")


def test_the_plan_shows_the_best_layouts_and_the_choice(job_file: Path) -> None:
    result = mics(job_file, "--cluster", "p4d.24xlarge", "--nodes", 2)
    assert result.exit_code == 0, result.output
    assert "2 × 8 = 16 workers. Predicted, not measured." in result.stdout
    lines = result.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("P "))
    assert lines[header + 1].split()[0].isdigit()
    assert "--all shows them" in result.stdout
    assert "layouts that fit" in result.stdout


def test_a_plan_for_more_groups_than_the_job_asks_for_says_so(tmp_path: Path) -> None:
    # Large enough that what crosses groups is less than what more of them gain.
    sizes = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "vocab_size": 50257}
    model = {"family": "gpt2"} | sizes
    said = "as it stands the job asks for one group: set groups.wanted, or groups.maximum"
    job_file = write(tmp_path / "job.yaml", model=model)
    assert said in " ".join(mics(job_file, "--cluster", "p4d.24xlarge").stdout.split())
    asking = write(tmp_path / "more.yaml", model=model, groups={"maximum": 4})
    result = mics(asking, "--cluster", "p4d.24xlarge")
    assert result.exit_code == 0, result.output
    assert "asks for one group" not in result.stdout


def test_all_layouts_come_with_the_reason_against_them(job_file: Path) -> None:
    result = mics(job_file, "--cluster", "p4d.24xlarge", "--nodes", 2, "--all")
    assert result.exit_code == 0, result.output
    assert "slower than the choice by" in result.stdout
    assert "CANNOT BE" in result.stdout
    assert "no multiple of 8" in result.stdout


def test_json_is_the_answer_of_the_api(job_file: Path) -> None:
    result = mics(job_file, "--cluster", "p4d.24xlarge", "--json")
    plan = json.loads(result.stdout)
    assert plan["nodes"] == 8
    assert plan["reason"] == plan["choice"]["reason"]


def test_the_jobs_own_cluster_counts_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "{name: lab, nodes: 2, workers_per_node: 2, memory_gib: 1, peak_tflops: 0.05,"
        " intra_node: {bandwidth_gbit_per_s: 8, latency_us: 50},"
        " inter_node: {bandwidth_gbit_per_s: 0.2, latency_us: 100}}"
    )
    path = write(tmp_path / "job.yaml", resources={"cluster": "lab.yaml"})
    assert "on lab: 2 × 2 = 4 workers" in mics(path).stdout
    assert "on p4d.24xlarge" in mics(path, "--cluster", "p4d.24xlarge").stdout


def test_scaling_compares_with_full_sharding(job_file: Path) -> None:
    result = mics(job_file, "--cluster", "p4d.24xlarge", "--scale", "8..32")
    assert result.exit_code == 0, result.output
    assert "Weak scaling" in result.stdout
    assert "Strong scaling" in result.stdout
    assert "p = 32 × 1" in result.stdout
    assert result.stdout.count("100.0 %") >= 4


@pytest.mark.parametrize("words", [("--scale", "8..128"), ("--all",), ()], ids=" ".join)
def test_without_a_terminal_no_number_is_cut_at_80_columns(
    job_file: Path, words: tuple[str, ...]
) -> None:
    arguments = (job_file, "--cluster", "p4d.24xlarge", "--nodes", 2, *words)
    narrow, wide = (mics(*arguments, columns=columns) for columns in (80, 400))
    assert narrow.exit_code == 0, narrow.output
    assert "…" not in narrow.stdout
    numbers = [re.findall(r"[0-9][0-9.,]*", each.stdout) for each in (narrow, wide)]
    assert sorted(numbers[0]) == sorted(numbers[1])


def test_a_point_that_cannot_be_says_why(job_file: Path) -> None:
    result = mics(job_file, "--cluster", "p4d.24xlarge", "--scale", "64..128", columns=80)
    assert result.stdout.count("cannot be") == 1
    (line,) = [each for each in result.stdout.splitlines() if "128 workers, " in each]
    assert line.startswith("128 workers, full sharding: no layout suits the batch: ")
    assert line.endswith(".")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ((), "mics probe"),
        (("--cluster", "p4d"), "p4d.24xlarge"),
        (("--cluster", "missing.yaml"), "existing YAML file"),
        (("--cluster", "p4d.24xlarge", "--scale", "9"), "--scale 16..4096"),
        (("--cluster", "p4d.24xlarge", "--nodes", "100000"), "fewer nodes"),
    ],
)
def test_what_cannot_be_planned_exits_with_2(
    job_file: Path, words: tuple[str, ...], remedy: str
) -> None:
    result = mics(job_file, *words)
    assert result.exit_code == 2
    assert remedy in result.stderr
    assert "Traceback" not in result.output


def test_planning_a_transformer_loads_neither_torch_nor_ray(job_file: Path) -> None:
    check = (
        "import sys\n"
        "from service.cli.main import build_app\n"
        f"build_app()(['plan', {str(job_file)!r}, '--cluster', 'p4d.24xlarge'],"
        " standalone_mode=False)\n"
        "sys.exit(str([n for n in ('torch', 'ray', 'fastapi') if n in sys.modules] or ''))"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.stderr.strip() == ""


def test_a_users_own_module_is_built_and_counted() -> None:
    pytest.importorskip("torch")
    path = ROOT / "examples" / "own-model" / "job.yaml"
    result = mics(path, "--cluster", "p4d.24xlarge", "--nodes", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_parameters"] > 10_000


def test_a_module_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = write(tmp_path / "job.yaml", model={"callable": "nowhere.at_all:build"})
    result = mics(path, "--cluster", "p4d.24xlarge")
    assert result.exit_code == 2
    assert "cannot be imported" in result.stderr
