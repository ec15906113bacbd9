"""The driver as a program: its exit status, its log, and what it refuses before it starts anything.

python -m mics_core.cluster.driver job.yaml
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.state import list_actors

from mics_core.cluster.local import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_NODES = 2
ENDS_WITHIN_S = 180.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "data.txt").write_text("All the world is a stage. " * 200, encoding="utf-8")
    return folder


def write_job(folder: Path, name: str, **changes: Any) -> Path:
    job: dict[str, Any] = {
        "name": name,
        "model": {"family": "gpt2", "hidden_size": 66, "num_layers": 2, "num_heads": 3},
        "data": {"kind": "text", "paths": ["data.txt"]},
        "training": {
            "sequence_length": 16,
            "global_batch_size": 12,
            "micro_batch_size": 1,
            "steps": 3,
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job | changes), encoding="utf-8")
    return path


def run_driver(cluster: LocalCluster, job: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mics_core.cluster.driver", str(job), "--address", cluster.address],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(cluster: LocalCluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """A job with every field at its default that has one."""
    return run_driver(cluster, write_job(folder, "small"))


def test_a_job_that_finishes_ends_the_driver_with_status_0(
    finished: subprocess.CompletedProcess[str],
) -> None:
    assert finished.returncode == 0, finished.stdout
    assert "job is finished: All steps are done." in finished.stdout


def test_the_driver_logs_groups_generations_and_steps(
    finished: subprocess.CompletedProcess[str],
) -> None:
    words = (
        "job small-",
        "group 0 is placing: The job wants 1 partition group.",
        "generation 1 trains from step 0, groups [0]: Training begins with group 0.",
        "step 0  loss ",
    )
    assert [word for word in words if word not in finished.stdout] == []


def test_a_model_that_fits_one_worker_gets_partition_size_1(
    finished: subprocess.CompletedProcess[str],
) -> None:
    assert "partition size 1: " in finished.stdout


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        pytest.param(
            "heads",
            {"model": {"family": "gpt2", "hidden_size": 66, "num_layers": 2, "num_heads": 4}},
            [
                "model.num_heads: 4 is refused: ",
                "num_heads (4) must divide hidden_size (66).",
                "Choose a number of heads that divides the width.",
            ],
            id="a broken rule",
        ),
        pytest.param(
            "nodata",
            {"data": {"kind": "text", "paths": ["nowhere.txt"]}},
            [
                "data.paths.0: ",
                "nowhere.txt' is refused: no file matches it on this machine.",
                "Check the path; it must exist on every node of the cluster.",
            ],
            id="a missing data file",
        ),
        pytest.param(
            "three",
            {"partition_size": 3},
            [
                "partition_size: partition_size 3 on nodes of 2 × 2 workers is refused: ",
                "a partition group fits on one node or takes whole nodes of equal size.",
                "Choose 2 or 4, leave it at 'auto', or add nodes.",
            ],
            id="an impossible layout",
        ),
    ],
)
def test_a_refused_job_ends_with_status_2_field_value_rule_and_remedy_and_starts_nothing(
    cluster: LocalCluster, folder: Path, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    before = actors(cluster)
    refused = run_driver(cluster, write_job(folder, name, **changes))
    assert refused.returncode == 2, refused.stdout
    assert [word for word in words if word not in refused.stdout] == [], refused.stdout
    assert "Traceback" not in refused.stdout
    assert actors(cluster) == before


def test_a_job_file_that_is_not_there_is_refused(cluster: LocalCluster, folder: Path) -> None:
    refused = run_driver(cluster, folder / "nothing.yaml")
    assert refused.returncode == 2, refused.stdout
    assert "nothing.yaml is refused: it cannot be read (No such file" in refused.stdout
    assert "Name an existing YAML file." in refused.stdout


def actors(cluster: LocalCluster) -> set[str]:
    """All actors that there ever were, the ended ones too."""
    return {actor.actor_id for actor in list_actors(address=cluster.dashboard_url, limit=10_000)}
