"""The pieces of `make demo` on a scripted job: what it does when, and that it tells the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from running import eventually
from scripted_api import ScriptedApi, serving
from scripted_job import ScriptedJob

from examples.demo.job import demo_job
from examples.demo.report import conclude, failures_of, result_of
from examples.demo.scenario import STEPS_BEFORE_LOSS, STEPS_BEFORE_SCALING, Facts, Scenario
from mics_core.data.documents import data_files
from mics_core.spec.status import JobState, SampleCount
from service.client import MicsClient

STEPS = 130
NODES, WORKERS_PER_NODE = 3, 2


def test_the_job_fills_the_cluster_of_the_demonstration_and_has_data() -> None:
    spec = demo_job(STEPS)
    assert spec.partition_size == WORKERS_PER_NODE
    assert spec.groups.upper_bound * WORKERS_PER_NODE == NODES * WORKERS_PER_NODE
    assert spec.training.steps == STEPS
    assert data_files(spec.data)


@pytest.fixture(scope="module")
def facts() -> Facts:
    """What the scenario saw of a job that fares as a real one does."""
    api, killed = ScriptedApi(), threading.Event()
    job = api.add(ScriptedJob("demo", demo_job(STEPS)))

    def live() -> None:
        job.join(0, 1)
        job.set_state(JobState.RUNNING, "Two groups train.")
        commit(STEPS_BEFORE_SCALING + 1)
        eventually(lambda: job.wanted == 3, "the third group that is asked for")
        job.join(2)
        commit(STEPS_BEFORE_LOSS + 1)
        assert killed.wait(20), "no node was killed"
        job.lose(1, "Its node died.")
        commit(STEPS - len(job.records))
        job.set_state(JobState.FINISHED, "All steps are done.")

    def commit(number: int) -> None:
        for _ in range(number):
            job.commit_step()

    def kill_node(node_id: str) -> list[int]:
        assert node_id == job.groups[1].workers[0].node_id
        killed.set()
        return [worker.pid for worker in job.groups[1].workers]

    with serving(api), MicsClient(api.url) as client:
        life = threading.Thread(target=live)
        life.start()
        said: list[str] = []
        scenario = Scenario(client, kill_node, said.append)
        facts = scenario.follow("demo", STEPS)
        scenario.join()
        life.join()
    assert any("three partition groups" in line for line in said)
    assert any("SIGKILL" in line for line in said)
    return facts


def conclusion(facts: Facts, folder: Path) -> tuple[int, str]:
    console = Console(record=True, width=160, quiet=False, file=(folder / "out").open("w"))
    status = conclude(console, facts, STEPS, 61.0, folder / "result.json")
    return status, console.export_text()


def test_what_was_promised_and_held_is_told_and_ends_with_0(facts: Facts, tmp_path: Path) -> None:
    status, text = conclusion(facts, tmp_path)
    assert status == 0, text
    assert "Not as promised" not in text
    assert "Group 1 was lost: Its node died." in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == result_of(facts, 61.0)
    assert result["samples_used"] == result["samples_due"] == 24 * STEPS
    assert [one["groups"] for one in result["generations"]] == [[0, 1], [0, 1, 2], [0, 2]]
    assert result["survivor_pids_unchanged"] is True


def with_samples(facts: Facts, **counts: int) -> Facts:
    assert facts.final is not None
    samples = SampleCount(**{"due": 9, "used": 9, "repeated": 0} | counts)
    return replace(facts, final=facts.final.model_copy(update={"samples": samples}))


def with_steps(facts: Facts, **changes: Any) -> Facts:
    return replace(facts, steps=[step.model_copy(update=changes) for step in facts.steps])


BROKEN: dict[str, Callable[[Facts], Facts]] = {
    "the job ended as failed": lambda facts: replace(facts, state=JobState.FAILED),
    "the steps are not 0, 1, 2": lambda facts: replace(facts, steps=facts.steps[:-1]),
    "the loss fell by less than 30%": lambda facts: with_steps(facts, loss=2.0),
    "samples were lost": lambda facts: with_samples(facts, used=8),
    "samples were repeated": lambda facts: with_samples(facts, repeated=1),
    "the survivors were restarted": lambda facts: replace(facts, pids_at_end=[1, 2]),
    "no third group joined": lambda facts: with_steps(facts, num_groups=2),
    "no node was lost": lambda facts: replace(facts, lost_processes=[]),
    "no step followed the loss": lambda facts: with_steps(facts, num_groups=3),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_promise_that_was_broken_is_named_and_ends_with_1(
    facts: Facts, tmp_path: Path, promise: str
) -> None:
    broken = BROKEN[promise](facts)
    (failure,) = failures_of(broken, result_of(broken, 61.0), STEPS)
    assert failure.startswith(promise)
    status, text = conclusion(broken, tmp_path)
    assert (status, f"Not as promised: {promise}" in text) == (1, True)


def test_a_job_that_never_trained_ends_with_1(tmp_path: Path) -> None:
    nothing = Facts("demo", state=JobState.FAILED, reason="It found no data.")
    assert conclusion(nothing, tmp_path) == (1, "The job ended as failed: It found no data.\n")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_one_that_stays_up_heeds_signals_also_in_the_background_of_a_script(
    number: signal.Signals, status: int
) -> None:
    """A shell that runs a script lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        demo = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "scripted_demo.py"), "--keep"],
            env=os.environ | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with demo:
        assert demo.stdout is not None
        try:
            assert any("until Ctrl-C" in line for line in demo.stdout)
            demo.send_signal(number)
            said, _ = demo.communicate(timeout=20)
        finally:
            demo.kill()
    assert "The cluster is down." in said
    assert demo.returncode == status
