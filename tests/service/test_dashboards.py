"""Every expression of every panel and rule, asked of a real Prometheus that scrapes the service."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fakes import TOKENS, FakeCluster, FakeSupervisor, specification
from monitoring import (
    BOARDS,
    FOLDER,
    ask,
    asked_of,
    expressions,
    need,
    numbers_of,
    panels,
    rules,
    running_prometheus,
)
from postgres import PostgresServer
from running import Service, eventually, run_service

from mics_core.cluster.local import free_port
from mics_core.spec.status import (
    CheckpointEvent,
    GroupEvent,
    GroupState,
    GroupStatus,
    JobState,
    JobStatus,
    RegroupEvent,
    RegroupPhases,
    ScaleEvent,
    StepEvent,
)
from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.settings import Settings
from service.store import Store

JOB = "story-1"
PAST_S = 1200.0


class Troubled(FakeSupervisor):
    """A job to which everything happens: each alert has its reason in it."""

    def status(self) -> JobStatus:
        status = super().status()
        lost = GroupStatus(group_id=9, state=GroupState.LOST, reason="It is gone.", workers=[])
        return status.model_copy(update={"groups": [*status.groups, lost], "minimum_groups": 3})

    def go_through_everything(self) -> None:
        """One of each event, with times long past: no step since, and a goodput near zero."""
        past = time.time() - PAST_S
        with self._lock:
            for group_id, reason in enumerate(
                (
                    "The process of rank 0 is gone: its connection closed.",
                    "It has not answered for 5 s since generation 2 broke.",
                    "Rank 1 failed at step 7: no space.",
                    "Something else.",
                )
            ):
                self._tell(GroupEvent, group_id=group_id, state=GroupState.LOST, reason=reason)
            self.enter_generation([1, 2], "Groups were lost.")
            phases = RegroupPhases(detect_s=0.1, agree_s=0.2, connect_s=0.3, copy_s=4.0, redo_s=0.5)
            self._tell(RegroupEvent, generation=2, reason="A loss.", step=4, phases=phases)
            self._tell(ScaleEvent, wanted=4, reason="It was asked for.")
            self._tell(CheckpointEvent, step=2, path="/there", error="")
            self._tell(CheckpointEvent, step=4, path="/there", error="No space is left.")
            # Last, so that the newest event of the batch is an old one: the service lags behind.
            for number in range(3):
                record = self.steps[-1].model_copy(
                    update={"step": len(self.steps), "time": past + number}
                )
                self.steps.append(record)
                self.history.append(
                    StepEvent(sequence=len(self.history) + 1, time=past, record=record)
                )


def address_of(service: Service) -> str:
    return f"127.0.0.1:{service.client.base_url.port}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that has seen a job before and after all of its troubles."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = Settings(
        data_directory=folder, discovery_interval_s=0.05, poll_timeout_s=0.5, poll_pause_s=0.01
    )
    store = Store(settings.database)
    tokens = TokenStore(store.database)
    viewer, admin = tokens.create("prometheus", Role.VIEWER), tokens.create("ada", Role.ADMIN)
    store.close()
    cluster = FakeCluster()
    with (
        run_service(settings, cluster) as service,
        # The second address is one at which nobody listens: a service that is down.
        running_prometheus(
            folder, [address_of(service), f"127.0.0.1:{free_port()}"], viewer, []
        ) as client,
    ):
        service.client.headers["authorization"] = f"Bearer {admin}"

        def fail() -> None:
            cluster.is_reachable = False
            answer = service.client.post("/api/v1/jobs", json=specification())
            assert answer.status_code == 503
            cluster.is_reachable = True

        fail()
        cluster.start_supervisor(JOB)
        job = Troubled(JOB, cluster.supervisors[JOB].spec)
        cluster.supervisors[JOB] = job
        job.train(2)
        lost = f'mics_job_lost_groups_total{{job_id="{JOB}"}}'
        eventually(lambda: ask(client, f"count_over_time({lost}[1m]) >= 2"), "two scrapes")
        job.go_through_everything()
        fail()
        eventually(lambda: ask(client, f"sum({lost}) == 4"), "the scrape after the troubles")
        yield client
        assert job.state is JobState.RUNNING


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_every_expression_gives_data(prometheus: httpx.Client, name: str, expression: str) -> None:
    asked = asked_of(expression, JOB)
    eventually(lambda: numbers_of(prometheus, asked), f"data for {name}: {asked}")


def test_every_alert_is_pending_or_fires_for_its_reason(prometheus: httpx.Client) -> None:
    wanted = {rule["alert"] for rule in rules() if "alert" in rule}

    def all_there() -> bool:
        found = {series["metric"]["alertname"] for series in ask(prometheus, "ALERTS")}
        return found == wanted

    eventually(all_there, "an alert")


def test_losses_are_counted_by_their_causes(prometheus: httpx.Client) -> None:
    found = ask(prometheus, f'mics_job_lost_groups_total{{job_id="{JOB}"}} > 0')
    counts = {series["metric"]["cause"]: series["value"][1] for series in found}
    assert counts == {"connection": "1", "silent": "1", "own_error": "1", "other": "1"}


def test_several_services_on_one_database_count_every_job_once(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = Settings(
        data_directory=tmp_path,
        database_url=postgres.new_database_with_tables(),
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
    )
    cluster = FakeCluster()
    with (
        run_service(settings, cluster) as one,
        run_service(settings, cluster) as two,
        running_prometheus(tmp_path, [address_of(one), address_of(two)], "none", []) as client,
    ):
        for number in range(3):
            cluster.start_supervisor(f"job-{number}").train(4)
        for service in (one, two):
            for number in range(3):
                service.wait_for(f"job-{number}", step=4)
        eventually(lambda: ask(client, "count(mics_job_step == 4) == 6"), "scrapes of both")
        eventually(lambda: ask(client, "count(mics:job_training_groups) == 6"), "the rules of both")
        fleet = {panel["title"]: panel for panel in panels(FOLDER / "grafana" / "fleet.json")}

        def shown(title: str) -> list[float]:
            found = (ask(client, target["expr"]) for target in fleet[title]["targets"])
            return [float(series["value"][1]) for (series,) in found]

        assert shown("Jobs running") == [3]
        assert shown("Groups that train") == [6]
        assert shown("Tokens a second") == [3 * TOKENS / 0.5]
        assert shown("Groups that train, and wanted") == [6, 6, 3]
        # Each counts the events that it stored itself.
        for job_id in cluster.supervisors:
            cluster.supervisors[job_id].lose_group(0, "It is gone.")
        lost = "sum(mics_job_lost_groups_total)"
        eventually(lambda: ask(client, f"{lost} == 3"), "the losses")


def test_the_rules_are_valid_and_fire_when_they_should() -> None:
    for arguments in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            [need("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    explained = (FOLDER / "README.md").read_text(encoding="utf-8")
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}" in tested
            assert f"| `{rule['alert']}`" in explained
            assert rule["annotations"]["remedy"]  # type: ignore[index]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_boards_are_complete_and_their_panels_do_not_overlap(board: Path) -> None:
    content = json.loads(board.read_text(encoding="utf-8"))
    names = {variable["name"] for variable in content["templating"]["list"]}
    assert "datasource" in names
    assert names >= set(re.findall(r"\$(job)\b", board.read_text(encoding="utf-8")))
    assert len({panel["id"] for panel in panels(board)}) == len(panels(board))
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
