"""The examples, run as a reader would run them, on the cluster of the end-to-end tests."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet
from ray.job_submission import JobSubmissionClient
from ray.train import RunConfig, ScalingConfig
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from mics_core.cluster.local import LocalCluster
from mics_core.errors import JobFailedError
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.status import JobState, StepEvent
from mics_core.trainer import MicsTrainer
from service.cli.main import build_app
from service.client import MicsClient
from service.schemas import JobSummary
from tests.cluster.running import eventually
from tests.e2e.service_process import ServiceProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0
SCRIPT_STEPS = 40


def test_a_script_trains_with_mics_trainer_and_the_service_lists_its_job(
    cluster: LocalCluster, client: MicsClient, tmp_path: Path
) -> None:
    script = ROOT / "examples" / "ray-trainer" / "train.py"
    with subprocess.Popen(
        [sys.executable, str(script), "--steps", str(SCRIPT_STEPS), "--storage", str(tmp_path)],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def listed() -> JobSummary | None:
            assert process.poll() in (None, 0), "the script failed"
            return next((job for job in client.jobs().jobs if job.name == "ray-trainer"), None)

        job = eventually(listed, "the script's job in the list", DEADLINE_S)
        printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, printed
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert (job.job_id, job.source) == (result["job_id"], "ray")
    assert (result["state"], result["steps"]) == ("finished", SCRIPT_STEPS)
    assert CheckpointFolder(str(tmp_path / "ray-trainer")).complete()[-1] == (
        SCRIPT_STEPS,
        result["checkpoint"],
    )
    seen = client.wait(job.job_id, timeout_s=DEADLINE_S)
    assert (seen.state, seen.step, seen.loss) == (
        JobState.FINISHED,
        SCRIPT_STEPS,
        result["loss"],
    )


def test_a_run_that_fails_is_a_result_with_its_error_and_its_last_checkpoint(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    model = {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 257}
    poisoned = {"num_samples": 2000, "sequence_length": 8, "poisoned": 4 * 200 + 2}
    result = MicsTrainer(
        {
            "name": "poisoned",
            "model": model,
            "data": {
                "kind": "callable",
                "callable": "tests.faults.poisoned_data:build",
                "arguments": poisoned,
            },
            "training": {
                "sequence_length": 8,
                "global_batch_size": 4,
                "micro_batch_size": 1,
                "steps": 400,
            },
            "partition_size": 1,
            "checkpoint": {"interval_steps": 20},
        },
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="poisoned", storage_path=str(tmp_path)),
    ).fit()
    assert result.state is JobState.FAILED
    assert isinstance(result.error, JobFailedError)
    assert "position 802 of the data cannot be read" in str(result.error)
    assert "step 200" in result.reason.lower()
    assert [step["step"] for step in result.metrics_history] == list(range(200))
    assert result.metrics == result.metrics_history[-1]
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        # The newest may still have been under way.
        assert int(Path(folder).name.removeprefix("step-")) in range(20, 201, 20)
        assert (Path(folder) / "mics.json").is_file()


def test_the_doctor_finds_the_cluster_and_the_service_sound(
    cluster: LocalCluster, service: ServiceProcess, tmp_path: Path
) -> None:
    environment = {"MICS_URL": service.url, "MICS_DATA_DIRECTORY": str(tmp_path)}
    words = ["doctor", "--json", "--address", cluster.address]
    result = CliRunner().invoke(build_app(), words, env=environment)
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (0, True), result.stdout
    found = {check["name"]: check["found"] for check in report["checks"]}
    assert found["ray"] == "3 nodes, 4 CPU slots, 0 GPUs"
    assert sum(name.startswith("node ") for name in found) == 3


@pytest.fixture(scope="module")
def submitted(
    cluster: LocalCluster, client: MicsClient, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The ids of the examples' jobs; they run side by side where there is room."""
    root = tmp_path_factory.mktemp("examples")
    (root / "mics_core").symlink_to(ROOT / "mics_core")
    fine_tune = root / "examples" / "fine-tune"
    shutil.copytree(ROOT / "examples" / "fine-tune", fine_tune)
    runpy.run_path(str(fine_tune / "make_checkpoint.py"))["make_checkpoint"](
        fine_tune / "checkpoint"
    )
    own_model = root / "examples" / "own-model"
    shutil.copytree(ROOT / "examples" / "own-model", own_model)
    shorter = example("own-model/job.yaml")
    shorter["training"] |= {"steps": 60}
    (own_model / "job.yaml").write_text(yaml.safe_dump(shorter))
    submission = JobSubmissionClient(cluster.dashboard_url).submit_job(
        entrypoint=f"{sys.executable} -m mics_core.cluster.driver job.yaml",
        runtime_env={"working_dir": str(own_model)},
    )
    (root / "examples" / "gpt2-bytes.yaml").write_text(yaml.safe_dump(short_byte_job()))
    return {
        "gpt2-bytes": client.submit(root / "examples" / "gpt2-bytes.yaml").job_id,
        "llama-auto": client.submit(small_llama_job(root)).job_id,
        "fine-tune": client.submit(fine_tune / "job.yaml").job_id,
        "own-model": submission,
        "parquet": client.submit(small_parquet_job(root)).job_id,
    }


def example(name: str) -> dict[str, Any]:
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    job: dict[str, Any] = yaml.safe_load(text)
    return job


def short_byte_job() -> dict[str, Any]:
    """The first example with fewer and shorter steps; its paths count from its place."""
    job = example("gpt2-bytes.yaml")
    job["training"] |= {"steps": 10, "sequence_length": 32}
    job["training"]["schedule"] |= {"warmup_steps": 2}
    job["groups"] |= {"wanted": 1}
    return job


def small_llama_job(folder: Path) -> dict[str, Any]:
    """The example on GPUs with its own kinds of model, data and choices, but small and on CPUs."""
    tokens = np.tile(np.arange(100, dtype=np.uint16), 100)
    tokens.tofile(folder / "tokens.bin")
    job = example("llama-auto.yaml")
    job["model"] |= {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 128}
    job["model"] |= {"intermediate_size": 64}
    job["data"]["paths"] = [str(folder / "*.bin")]
    job["training"] |= {"sequence_length": 16, "global_batch_size": 8, "steps": 20}
    job["training"]["optimizer"] |= {"learning_rate": 3.0e-3}
    job["training"]["schedule"] |= {"warmup_steps": 3}
    job["groups"] = {"minimum": 1, "wanted": 1, "maximum": 2}
    job["resources"] = {"cpus": 1}
    job["checkpoint"] |= {"directory": str(folder / "llama"), "interval_steps": 20}
    return job


def small_parquet_job(folder: Path) -> dict[str, Any]:
    """The example over Parquet files with its own kinds of model, data and tokenizer, but small."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[SEP]", "[MASK]"]
    sentences = [f"the {number} sheep went over the {number + 1} hills" for number in range(300)]
    tokenizer.train_from_iterator(sentences, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.save(str(folder / "tokenizer.json"))
    parquet.write_table(pyarrow.table({"text": sentences}), folder / "corpus.parquet")
    job = example("parquet.yaml")
    job["model"] |= {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
    job["data"]["paths"] = [str(folder / "*.parquet")]
    job["tokenizer"]["path"] = str(folder / "tokenizer.json")
    sizes = {"sequence_length": 16, "global_batch_size": 8, "micro_batch_size": 2, "steps": 30}
    job["training"] |= sizes | {"schedule": {"kind": "linear", "warmup_steps": 3}}
    job["groups"] = {"minimum": 1, "wanted": 1, "maximum": 2}
    job["resources"] = {"cpus": 1}
    job["checkpoint"] |= {"directory": str(folder / "parquet"), "interval_steps": 30}
    return job


@pytest.mark.parametrize("name", ["gpt2-bytes", "llama-auto", "fine-tune", "own-model", "parquet"])
def test_an_example_trains_to_its_end_and_learns(
    client: MicsClient, submitted: dict[str, str], name: str
) -> None:
    # What was sent to Ray alone is found a moment later.
    eventually(
        lambda: submitted[name] in [job.job_id for job in client.all_jobs()],
        f"the job of {name} in the list",
        DEADLINE_S,
    )
    events = list(client.watch(submitted[name]))
    detail = client.job(submitted[name])
    assert detail.state is JobState.FINISHED, detail.reason
    losses = [event.record.loss for event in events if isinstance(event, StepEvent)]
    assert len(losses) == detail.steps
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_fine_tuned_model_is_one_that_transformers_loads(
    service: ServiceProcess, client: MicsClient, submitted: dict[str, str], tmp_path: Path
) -> None:
    client.wait(submitted["fine-tune"], timeout_s=DEADLINE_S)
    words = ["export", submitted["fine-tune"], "--output", str(tmp_path / "tuned"), "--json"]
    result = CliRunner().invoke(build_app(), words, env={"MICS_URL": service.url})
    assert json.loads(result.stdout)["step"] == 40, result.output

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    tokens = tokenizer("def main() -> None:", return_tensors="pt")
    assert model(**tokens).logits.shape[-1] == 500
