"""The command line against a real HTTP server, inside this process and as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from scripted_api import ScriptedApi, serving
from scripted_contract import ContractApi
from scripted_job import ScriptedJob, example_spec
from typer.testing import CliRunner, Result

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState
from service.cli.main import build_app


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedApi]:
    with serving(ScriptedApi()) as api:
        yield api


def mics(api: ScriptedApi, *words: str) -> Result:
    environment = {"MICS_URL": api.url, "COLUMNS": "160"}
    return CliRunner().invoke(build_app(), list(words), env=environment)


def program(api: ScriptedApi | None, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"MICS_URL": api.url} if api else {})
    command = [sys.executable, "-c", "from service.cli.main import main; main()", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def running_job(api: ScriptedApi, job_id: str, *, steps: int = 40) -> ScriptedJob:
    job = api.add(ScriptedJob(job_id, parse_job_spec(example_spec(name=job_id, steps=steps))))
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(steps // 2):
        job.commit_step()
    job.lose(1, "Its node 10.0.0.5 died.")
    job.join(2)
    for _ in range(steps // 2):
        job.commit_step()
    return job


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    value = example_spec(name="from-file")
    value["data"]["paths"] = ["corpus/*.txt"]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def test_submit_prints_the_id_alone(api: ScriptedApi, job_file: Path) -> None:
    result = mics(api, "submit", str(job_file))
    assert result.exit_code == 0
    assert result.stdout.strip() in api.jobs


def test_relative_paths_count_from_the_file(api: ScriptedApi, job_file: Path) -> None:
    result = mics(api, "submit", str(job_file), "--json")
    sent = json.loads(result.stdout)
    assert sent["spec"]["data"]["paths"] == [str(job_file.parent / "corpus/*.txt")]


def test_a_broken_file_is_refused_with_field_and_remedy(api: ScriptedApi, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(example_spec() | {"partition_size": 3}))
    result = mics(api, "submit", str(path))
    assert result.exit_code == 2
    assert "training.global_batch_size" in result.stderr
    assert "remedy" in result.stderr
    assert "Traceback" not in result.output


def test_validate_asks_the_service_unless_told_not_to(api: ScriptedApi, job_file: Path) -> None:
    api.calls.clear()
    assert "were not checked" in mics(api, "validate", str(job_file), "--local").stdout
    assert api.calls == []
    assert "can run" in mics(api, "validate", str(job_file)).stdout
    assert [path for _, path, _ in api.calls] == ["/api/v1/jobs/validate"]


def test_list_shows_state_progress_and_groups(api: ScriptedApi) -> None:
    running_job(api, "listed")
    (line,) = [row for row in mics(api, "list").stdout.splitlines() if row.startswith("listed")]
    assert line.split()[2:4] == ["running", "40/40"]
    assert "2/2" in line
    jobs = json.loads(mics(api, "list", "--json").stdout)["jobs"]
    assert "listed" in [job["job_id"] for job in jobs]


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_an_id_in_the_list_is_whole_however_narrow_the_window(
    api: ScriptedApi, terminal: str
) -> None:
    job_id = "a-name-of-one-who-likes-long-names-2011de54"
    running_job(api, job_id)
    environment = {"MICS_URL": api.url, "COLUMNS": "80", "TTY_COMPATIBLE": terminal}
    printed = CliRunner().invoke(build_app(), ["list"], env=environment).stdout
    assert job_id in printed
    assert "running" in printed, "cells are cut"
    assert ("NAME" in printed) == (terminal == "0")


def test_show_names_the_groups_and_why_one_is_gone(api: ScriptedApi) -> None:
    running_job(api, "shown")
    text = mics(api, "show", "shown").stdout
    assert "member" in text
    assert "lost Its node 10.0.0.5 died." in text
    assert "generation 3 from step 20, groups 0, 2" in text
    assert json.loads(mics(api, "show", "shown", "--json").stdout)["generation"] == 3


def test_names_and_reasons_are_not_taken_for_markup(api: ScriptedApi) -> None:
    job = running_job(api, "marked")
    job.set_state(JobState.RUNNING, "the shape [bold]4[/bold] and [/nothing]")
    assert "[bold]4[/bold] and [/nothing]" in mics(api, "show", "marked").stdout


def test_scale_and_cancel_reach_the_job(api: ScriptedApi) -> None:
    job = running_job(api, "steered")
    assert "3 partition groups wanted" in mics(api, "scale", "steered", "3").stdout
    assert job.wanted == 3
    assert "cancelled" in mics(api, "cancel", "steered").stdout
    assert job.state is JobState.CANCELLED


@pytest.mark.parametrize("words", [("scale", "kept", "9"), ("show", "nobody"), ("list", "--bogus")])
def test_what_is_refused_exits_with_2(api: ScriptedApi, words: tuple[str, ...]) -> None:
    if "kept" not in api.jobs:
        running_job(api, "kept")
    result = mics(api, *words)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output


def test_an_unreachable_service_exits_with_3(api: ScriptedApi) -> None:
    result = mics(api, "list", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "mics serve" in result.stderr


def test_watch_without_a_terminal_prints_steps_and_membership(api: ScriptedApi) -> None:
    running_job(api, "watched").set_state(JobState.FINISHED, "All 40 steps are done.")
    result = program(api, "watch", "watched", "--every", "10")
    assert result.returncode == 0, result.stderr
    lines = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["9", "19", "29", "39"]
    assert "group 1 lost: Its node 10.0.0.5 died." in lines
    assert lines[-1] == "job finished: All 40 steps are done."


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_watching_a_job_that_does_not_finish_exits_with_1(
    api: ScriptedApi, state: JobState
) -> None:
    running_job(api, f"job-{state}").set_state(state, "It ended early.")
    result = mics(api, "watch", f"job-{state}")
    assert result.exit_code == 1
    assert "It ended early." in result.stdout


def test_the_help_documents_the_exit_codes(api: ScriptedApi) -> None:
    words = mics(api, "--help").stdout
    for code in "0123":
        assert code in words
    assert "Exit codes" in words


def test_the_command_line_starts_without_torch_and_ray() -> None:
    check = (
        "import sys, service.cli.main as m; m.build_app();"
        "sys.exit(str([n for n in ('torch', 'ray', 'fastapi') if n in sys.modules] or ''))"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.stderr.strip() == ""


def test_serve_refuses_to_listen_to_other_machines() -> None:
    pytest.importorskip("ray")
    result = program(None, "serve", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert "host" in result.stderr
    assert "Traceback" not in result.stderr


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    asked = {
        "_MICS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["mics", *words]),
        "COMP_CWORD": str(len(words)),
    }
    program = [sys.executable, "-c", "from service.cli.main import main; main()"]
    # As the shell knows the program.
    program[2] = "import sys; sys.argv = ['mics']; " + program[2]
    done = subprocess.run(
        program, env=os.environ | environment | asked, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_ids(api: ScriptedApi) -> None:
    running_job(api, "demo-1")
    running_job(api, "demo-2")
    running_job(api, "other")
    there = {"MICS_URL": api.url}
    assert completed(there, "sc") == ["scale"]
    assert completed(there, "scale", "--min") == ["--minimum"]
    assert completed(there, "show", "demo") == ["demo-2", "demo-1"]
    assert completed({}, "show", "--url", api.url, "oth") == ["other"]
    assert completed({"MICS_URL": "http://127.0.0.1:9"}, "show", "demo") == []


def test_the_shell_completes_ids_where_a_token_is_needed(tmp_path: Path) -> None:
    with serving(ContractApi()) as api:
        api.add(ScriptedJob("demo-1", parse_job_spec(example_spec())))
        api.token = "mics-secret"
        file = tmp_path / "token"
        there = {"MICS_URL": api.url, "MICS_TOKEN": ""}
        assert completed(there, "show", "demo") == []
        assert completed(there | {"MICS_TOKEN_FILE": str(file)}, "show", "demo") == []
        file.write_text("mics-secret\n")
        assert completed(there | {"MICS_TOKEN_FILE": str(file)}, "show", "demo") == ["demo-1"]
        assert completed(there, "--token-file", str(file), "show", "demo") == ["demo-1"]
