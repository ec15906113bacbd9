"""Every command, run with `--json`: standard output is JSON, and so is what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_api import serving
from scripted_contract import ContractApi
from scripted_job import ScriptedJob, example_spec
from typer.main import get_command
from typer.testing import CliRunner, Result

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState
from service.cli.exit_codes import ExitCode, codes_of
from service.cli.main import build_app
from service.schemas import ErrorBody

ONE, LINES = "one document", "a document a line"

ANSWERS: dict[str, tuple[str, str]] = {
    "doctor --skip-ray": (ONE, "checks"),
    "plan {file} --cluster p4d.24xlarge": (ONE, "choice"),
    "plan {file} --cluster p4d.24xlarge --scale 16..32": (ONE, "weak"),
    "submit {file}": (ONE, "job_id"),
    "submit {file} --watch": (LINES, "job_id"),
    "validate {file}": (ONE, "training"),
    "validate {file} --local": (ONE, "training"),
    "list": (ONE, "jobs"),
    "list --all": (ONE, "jobs"),
    "show done": (ONE, "status"),
    "watch done": (LINES, "sequence"),
    "scale living 3": (ONE, "wanted_groups"),
    "pause living": (ONE, "state"),
    "resume living": (ONE, "state"),
    "cancel living": (ONE, "state"),
    "delete living --yes": (ONE, "deleted"),
    "events done": (ONE, "events"),
    "events done --follow": (LINES, "sequence"),
    "logs done": (LINES, "line"),
    "throughput done": (ONE, "records"),
    "checkpoints done": (ONE, "checkpoints"),
    "placement done": (ONE, "workers"),
    "cluster": (ONE, "nodes"),
    "token create --name ada --role user": (ONE, "token"),
    "token list": (ONE, "tokens"),
    "token revoke ada": (ONE, "revoked"),
}
"""What is asked, in this order; the form of the answer, and a field that it begins with or has."""

MEASURED = ("export", "probe")
"""Their answers are read in `test_cli_export.py` and, on a cluster, in `test_probe.py`."""

REFUSALS: dict[str, tuple[ExitCode, str]] = {
    "doctor --bogus": (ExitCode.REFUSED, "wrong_usage"),
    "plan {file} --cluster nowhere": (ExitCode.REFUSED, "invalid_specification"),
    "probe --output /no/such/folder/c.yaml": (ExitCode.REFUSED, "invalid_specification"),
    "submit missing.yaml": (ExitCode.REFUSED, "invalid_specification"),
    "validate missing.yaml": (ExitCode.REFUSED, "invalid_specification"),
    "list --limit 0": (ExitCode.REFUSED, "wrong_usage"),
    "list --url http://127.0.0.1:9": (ExitCode.UNREACHABLE, "service_unreachable"),
    "show": (ExitCode.REFUSED, "wrong_usage"),
    "show nobody": (ExitCode.REFUSED, "job_not_found"),
    "watch nobody": (ExitCode.REFUSED, "job_not_found"),
    "scale done": (ExitCode.REFUSED, "invalid_specification"),
    "scale done 9": (ExitCode.REFUSED, "job_conflict"),
    "pause nobody": (ExitCode.REFUSED, "job_not_found"),
    "resume done": (ExitCode.REFUSED, "job_conflict"),
    "cancel nobody": (ExitCode.REFUSED, "job_not_found"),
    "delete done": (ExitCode.REFUSED, "invalid_specification"),
    "delete nobody --yes": (ExitCode.REFUSED, "job_not_found"),
    "events nobody": (ExitCode.REFUSED, "job_not_found"),
    "logs nobody": (ExitCode.REFUSED, "job_not_found"),
    "throughput nobody": (ExitCode.REFUSED, "job_not_found"),
    "checkpoints nobody": (ExitCode.REFUSED, "job_not_found"),
    "placement nobody": (ExitCode.REFUSED, "job_not_found"),
    "cluster --url http://127.0.0.1:9": (ExitCode.UNREACHABLE, "service_unreachable"),
    "export": (ExitCode.REFUSED, "invalid_specification"),
    "token create --name ada --role king": (ExitCode.REFUSED, "wrong_usage"),
    "token create --name {long} --role user": (ExitCode.REFUSED, "wrong_usage"),
    "token list --database-url nonsense": (ExitCode.REFUSED, "invalid_specification"),
    "token revoke nobody": (ExitCode.REFUSED, "invalid_specification"),
    "nonsense": (ExitCode.REFUSED, "wrong_usage"),
}


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name; one of a group with the group's before it."""
    for name, command in (group or get_command(build_app())).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{before}{name}", command


def command_of(words: str) -> str:
    first, *rest = words.split()
    return f"{first} {rest[0]}" if first == "token" else first


@pytest.fixture(scope="module")
def api() -> Iterator[ContractApi]:
    with serving(ContractApi()) as api:
        assert isinstance(api, ContractApi)
        for job_id in ("done", "living"):
            job = api.add(ScriptedJob(job_id, parse_job_spec(example_spec(name=job_id, steps=5))))
            job.join(0, 1)
            job.set_state(JobState.RUNNING, "Two groups train.")
            for _ in range(5):
                job.commit_step()
        api.jobs["done"].set_state(JobState.FINISHED, "All steps are done.")
        yield api


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    (folder / "job.yaml").write_text(yaml.safe_dump(example_spec(name="from-file")))
    return folder


def mics(api: ContractApi, folder: Path, words: str, **environment: str) -> Result:
    given = [word.format(file=folder / "job.yaml", long="x" * 101) for word in words.split()]
    known = {"MICS_URL": api.url, "MICS_TOKEN": "", "MICS_DATA_DIRECTORY": str(folder)}
    return CliRunner().invoke(build_app(), [*given, "--json"], env=known | environment)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_every_command_that_answers_is_run_here() -> None:
    with_json = {
        name for name, command in commands() if any("--json" in p.opts for p in command.params)
    }
    assert {name for name, _ in commands()} - with_json == {"serve"}
    assert {command_of(words) for words in ANSWERS} | {*MEASURED} == with_json
    assert with_json <= {command_of(words) for words in REFUSALS}


@pytest.mark.parametrize("words", ANSWERS)
def test_an_answer_is_json_and_nothing_else(api: ContractApi, folder: Path, words: str) -> None:
    if "--watch" in words:
        # Whoever submits has the job's end told by this.
        before = set(api.jobs)
        ended = threading.Event()

        def end() -> None:
            while not (fresh := set(api.jobs) - before):
                if ended.wait(0.01):
                    return
            api.jobs[fresh.pop()].set_state(JobState.FINISHED, "All steps are done.")

        ender = threading.Thread(target=end)
        ender.start()
        result = mics(api, folder, words)
        ended.set()
        ender.join()
    else:
        result = mics(api, folder, words)
    # The scripted API is no whole service, and the doctor says so.
    assert result.exit_code == (1 if words.startswith("doctor") else 0), result.output
    assert result.stderr == ""
    form, field = ANSWERS[words]
    texts = [result.stdout] if form is ONE else result.stdout.splitlines()
    assert texts
    found = [json.loads(text, parse_constant=no_constant) for text in texts]
    assert all(isinstance(one, dict) for one in found)
    assert field in found[0]


@pytest.mark.parametrize("words", REFUSALS)
def test_a_refusal_is_one_error_in_the_form_of_the_api(
    api: ContractApi, folder: Path, words: str
) -> None:
    exit_code, code = REFUSALS[words]
    result = mics(api, folder, words)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    error = ErrorBody.model_validate_json(result.stderr).error
    assert error.code == code
    assert error.remedy.strip()


def test_a_missing_token_and_an_interruption_are_told_in_that_form_too(
    api: ContractApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(api, "token", "secret")
        denied = mics(api, folder, "list")
        (folder / "token").write_text("secret\n")
        named = mics(api, folder, "list", MICS_TOKEN_FILE=str(folder / "token"))
    assert denied.exit_code == ExitCode.DENIED
    assert ErrorBody.model_validate_json(denied.stderr).error.code == "token_required"
    assert named.exit_code == ExitCode.FINE, named.stderr

    def interrupt(*_words: object, **_more: object) -> Iterator[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.client.MicsClient.logs", interrupt)
    interrupted = mics(api, folder, "logs done --follow")
    assert interrupted.exit_code == ExitCode.INTERRUPTED
    assert ErrorBody.model_validate_json(interrupted.stderr).error.code == "interrupted"


def test_a_token_file_that_is_not_there_is_named(api: ContractApi, folder: Path) -> None:
    refused = mics(api, folder, "--token-file /no/such/token list")
    assert refused.exit_code == ExitCode.REFUSED
    assert ErrorBody.model_validate_json(refused.stderr).error.field == "--token-file"


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_the_help_of_a_command_tells_its_exit_codes(name: str) -> None:
    result = CliRunner().invoke(build_app(), [*name.split(), "--help"], env={"COLUMNS": "200"})
    words = " ".join(result.stdout.split()).replace("`", "")
    told = [f"{code.value} {meaning}" for code, meaning in codes_of(name).items()]
    assert f"Exit codes: {' · '.join(told)}.".replace("`", "") in words
