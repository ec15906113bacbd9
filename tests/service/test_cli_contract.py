"""The commands over the whole contract of the API, against a real HTTP server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_api import serving
from scripted_contract import ContractApi
from scripted_job import ScriptedJob, example_spec
from typer.testing import CliRunner, Result

from mics_core.spec import parse_job_spec
from mics_core.spec.status import CheckpointEvent, JobState
from service.cli.exit_codes import ExitCode
from service.cli.main import build_app


@pytest.fixture(scope="module")
def api() -> Iterator[ContractApi]:
    with serving(ContractApi()) as api:
        assert isinstance(api, ContractApi)
        yield api


def mics(api: ContractApi, *words: str, **environment: str) -> Result:
    environment = {"MICS_URL": api.url, "COLUMNS": "160", "MICS_TOKEN": "", **environment}
    return CliRunner().invoke(build_app(), list(words), env=environment)


def answer_of(api: ContractApi, *words: str) -> Any:
    result = mics(api, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def running_job(api: ContractApi, job_id: str, *, steps: int = 20) -> ScriptedJob:
    job = ScriptedJob(job_id, parse_job_spec(example_spec(name=job_id, steps=steps)))
    api.add(job)
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(steps):
        job.commit_step()
    return job


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(example_spec(name="from-file")))
    return path


def test_submitting_twice_with_one_key_makes_one_job(api: ContractApi, job_file: Path) -> None:
    first, second = (mics(api, "submit", str(job_file), "--key", "k").stdout for _ in range(2))
    assert first == second
    assert mics(api, "submit", str(job_file)).stdout != first


def test_the_list_is_filtered_and_tells_of_further_pages(api: ContractApi) -> None:
    for number in range(3):
        running_job(api, f"listed-{number}", steps=1)
    running_job(api, "listed-done", steps=1).set_state(JobState.FINISHED, "All steps are done.")
    result = mics(api, "list")
    assert "--all shows them" in result.stderr
    assert len(answer_of(api, "list")["jobs"]) == 2
    assert len(answer_of(api, "list", "--all")["jobs"]) == len(api.jobs)
    page = answer_of(api, "list", "--state", "finished")
    assert [job["job_id"] for job in page["jobs"]] == ["listed-done"]
    mics(api, "list", "--owner", "me", "--label", "team:search")
    assert api.calls[-1][2] == {"owner": "me", "label": ["team:search"]}
    wrong = mics(api, "list", "--label", "search")
    assert (wrong.exit_code, "NAME:VALUE" in wrong.stderr) == (2, True)


def test_pause_resume_and_delete_reach_the_job(api: ContractApi) -> None:
    job = running_job(api, "steered")
    assert "mics resume steered" in mics(api, "pause", "steered").stdout
    assert job.state is JobState.PAUSED
    assert "paused" in mics(api, "show", "steered").stdout
    refused = mics(api, "pause", "steered")
    assert (refused.exit_code, refused.stdout) == (ExitCode.REFUSED, "")
    assert "goes on from its checkpoint" in mics(api, "resume", "steered").stdout
    job.cancel()
    declined = CliRunner().invoke(
        build_app(), ["delete", "steered"], env={"MICS_URL": api.url}, input="n\n"
    )
    assert declined.exit_code == 1
    assert "steered" not in api.deleted
    assert answer_of(api, "delete", "steered", "--yes") == {"job_id": "steered", "deleted": True}
    assert "steered" in api.deleted


def test_scaling_takes_a_number_bounds_or_both(api: ContractApi) -> None:
    running_job(api, "scaled")
    assert "3 partition groups wanted" in mics(api, "scale", "scaled", "3").stdout
    mics(api, "scale", "scaled", "--minimum", "1", "--maximum", "4")
    assert api.calls[-1][2] == '{"minimum":1,"maximum":4}'
    nothing = mics(api, "scale", "scaled")
    assert (nothing.exit_code, "needs a number" in nothing.stderr) == (2, True)


def test_events_are_listed_followed_and_chosen_by_kind(api: ContractApi) -> None:
    job = running_job(api, "eventful")
    lines = mics(api, "events", "eventful", "--limit", "4").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert "group 0 placing" in lines[0]
    chosen = answer_of(api, "events", "eventful", "--kind", "generation")
    assert {event["kind"] for event in chosen["events"]} == {"generation"}
    job.set_state(JobState.FINISHED, "All steps are done.")
    followed = mics(api, "events", "eventful", "--follow", "--after", "5", "--json").stdout
    numbers = [json.loads(line)["sequence"] for line in followed.splitlines()]
    assert numbers == list(range(6, len(job.events) + 1))
    watched = mics(api, "watch", "eventful", "--json")
    assert watched.exit_code == 0
    assert len(watched.stdout.splitlines()) == len(job.events)


def test_logs_are_those_of_the_driver_or_of_one_worker(api: ContractApi) -> None:
    running_job(api, "logged")
    assert mics(api, "logs", "logged", "--tail", "2").stdout == "driver: line 3\ndriver: line 4\n"
    api.late_line.set()
    followed = mics(api, "logs", "-f", "logged", "--worker", "1.0", "--tail", "1", "--json").stdout
    assert [json.loads(line) for line in followed.splitlines()] == [
        {"line": "worker 1.0: line 4"},
        {"line": "worker 1.0: the end"},
    ]


def test_history_and_places_are_shown(api: ContractApi) -> None:
    job = running_job(api, "shown")
    assert "None yet" in mics(api, "checkpoints", "shown").stdout
    job.events.append(
        CheckpointEvent(sequence=99, time=7.0, step=10, path="/runs/step-00000010", error="full")
    )
    shown = mics(api, "checkpoints", "shown").stdout
    assert "failed: full" in shown
    assert "/runs/step-00000010" in shown
    speed = mics(api, "throughput", "shown").stdout
    assert "goodput 97.0 %" in speed
    assert "25.0 %" in speed
    assert len(answer_of(api, "throughput", "shown", "--points", "5")["records"]) == 5
    rows = mics(api, "placement", "shown").stdout.splitlines()
    assert [row.split()[2:4] for row in rows[1:]] == [
        ["0", "0"],
        ["0", "1"],
        ["1", "0"],
        ["1", "1"],
    ]
    cluster = mics(api, "cluster").stdout
    assert "placed × 1, 1 free" in cluster
    assert "waits for room: 3 × 2 CPU" in cluster
    assert answer_of(api, "cluster")["pending"][0]["count"] == 3


def test_a_missing_token_has_an_exit_code_of_its_own(
    api: ContractApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "token", "secret-2")
    refused = mics(api, "list")
    assert refused.exit_code == ExitCode.DENIED
    assert "MICS_TOKEN" in refused.stderr
    assert mics(api, "list", MICS_TOKEN="secret-2").exit_code == ExitCode.FINE


def test_the_shell_completes_commands_and_the_ids_of_jobs(api: ContractApi) -> None:
    running_job(api, "completed-1")
    environment = os.environ | {
        "MICS_URL": api.url,
        "_MICS_COMPLETE": "complete_bash",
        "COMP_CWORD": "2",
    }
    api.page_size = 100
    program = "import sys; sys.argv = ['mics']; from service.cli.main import main; main()"
    for typed, wanted in (("mics show compl", "completed-1"), ("mics pa", "pause")):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | words,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split() == [wanted], done.stderr
