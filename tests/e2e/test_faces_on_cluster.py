"""The service's faces before one real cluster: the page in a browser, Prometheus, `ray job submit`.

A job goes from login to its end in the browser while one that was sent by Ray's own command waits
for its nodes; then Prometheus looks at that one, and the command line scales and cancels it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import ray
import yaml
from browsing import Visit
from monitoring import asked_of, expressions, numbers_of, rules, running_prometheus
from ray.job_submission import JobStatus as RayJobStatus
from ray.job_submission import JobSubmissionClient

from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import JobState
from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.client import MicsClient
from service.schemas import Cluster, JobSummary, PendingDemand, Throughput
from service.store import Store
from tests.cluster.running import eventually
from tests.e2e.conftest import NUM_NODES
from tests.e2e.other_environment import OtherEnvironment
from tests.e2e.service_process import ServiceProcess
from tests.e2e.stories import DEADLINE_S, Stream, mics, small_job

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass
class Guarded:
    """A service of the cluster that asks for tokens."""

    service: ServiceProcess
    ada: str
    """An administrator's token."""
    viewer: str

    def get(self, path: str, **query: Any) -> Any:
        headers = {"authorization": f"Bearer {self.ada}"}
        url = f"{self.service.url}/api/v1{path}"
        answer = httpx.get(url, headers=headers, params=query, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def guarded(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    store = Store(f"sqlite:///{folder / 'service.sqlite3'}")
    tokens = TokenStore(store.database)
    ada, viewer = tokens.create("ada", Role.ADMIN), tokens.create("prometheus", Role.VIEWER)
    store.close()
    service = ServiceProcess(cluster, folder)
    service.start()
    try:
        yield Guarded(service, ada, viewer)
    finally:
        service.stop()


# A job that never met the service: `ray job submit`, with the user's own code.

THEIR_MODEL = '''
import torch
from torch import nn


class Bigrams(nn.Module):
    """Each token predicts the next one."""

    def __init__(self, width):
        super().__init__()
        self.tokens = nn.Embedding(257, width)
        self.head = nn.Linear(width, 257)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.tokens(input_ids))


def build(width):
    return Bigrams(width)
'''


@pytest.fixture(scope="module")
def their_environment(tmp_path_factory: pytest.TempPathFactory) -> OtherEnvironment:
    return OtherEnvironment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture(scope="module")
def their_job(
    cluster: LocalCluster,
    data: Path,
    their_environment: OtherEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Submit a folder with a job, a module and a text by Ray's own command; return the job's id.

    The command runs in another virtual environment, which has Ray alone.
    """
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_model.py").write_text(THEIR_MODEL, encoding="utf-8")
    (folder / "data.txt").write_text(data.read_text(encoding="utf-8"), encoding="utf-8")
    model = {"callable": "their_model:build", "arguments": {"width": 30}}
    job = yaml.safe_dump(small_job(name="theirs", model=model, partition_size=1))
    (folder / "job.yaml").write_text(job, encoding="utf-8")
    ray = ["-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
    target = ["--address", cluster.dashboard_url, "--working-dir", str(folder)]
    # Of the cluster's Python, not of theirs.
    driver = [sys.executable, "-m", "mics_core.cluster.driver", "job.yaml"]
    their_environment.run(
        *ray, *target, "--submission-id", "theirs-1", "--", *driver, timeout_s=DEADLINE_S
    )
    return "theirs-1"


# A job in the browser, from login to its end.


@dataclass
class FollowedLog:
    """The lines of a log, read in a thread as they are written."""

    lines: list[str] = field(default_factory=list)

    def has(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@contextmanager
def followed_log(guarded: Guarded, job_id: str, **query: str) -> Iterator[FollowedLog]:
    """Follow a log; at the end of the context the job must have ended, and the log with it."""
    log = FollowedLog()
    url = f"{guarded.service.url}/api/v1/jobs/{job_id}/logs"
    headers = {"authorization": f"Bearer {guarded.ada}"}

    def follow() -> None:
        params = {"follow": "true", **query}
        with httpx.stream("GET", url, params=params, headers=headers, timeout=DEADLINE_S) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                log.lines.append(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    yield log
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "the log goes on after the end of its job"


def shown_step(visit: Visit) -> int:
    """Return the step of the newest point of the chart of the throughput; -1 if it has none."""
    found = re.search(r"step ([\d,]+)", visit.text("#rate-readout"))
    return int(found[1].replace(",", "")) if found else -1


def wait_for_steps(visit: Visit, number: int) -> None:
    """Wait until the chart has moved by so many steps."""
    first: int = eventually(lambda: shown_step(visit) + 1, "a step on the chart", DEADLINE_S)
    eventually(
        lambda: shown_step(visit) >= first + number, f"{number} more steps on the chart", DEADLINE_S
    )


def log_in_and_submit(visit: Visit, token: str, spec: dict[str, Any]) -> str:
    """Log in and submit a job by the form; return its id."""
    page = visit.page
    visit.open("/#/submit")
    visit.wait_for_text("#login-title", "Log in")
    page.get_by_label("Token", exact=True).fill(token)
    visit.press("Enter")
    visit.wait_for_text("#session-name", "ada (admin)")
    text = page.get_by_role("textbox", name="Specification, YAML or JSON")
    text.fill(yaml.safe_dump(spec))
    visit.wait_for_text("#check-summary", "Valid: browsed", DEADLINE_S)
    page.get_by_role("button", name="Submit the job").click()
    visit.wait_for_text("#job-name", "browsed", DEADLINE_S)
    return visit.text("#job-id")


def scale_to_two_groups(visit: Visit, partition_size: int) -> None:
    page = visit.page
    marks = page.locator("#loss-chart .mark").count()
    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("button", name="One group more").click()
    page.get_by_role("button", name="Scale", exact=True).click()
    visit.wait_for_text("#action-note", "2 groups wanted now", DEADLINE_S)
    visit.wait_for_text("#figure-groups", "of 2 wanted")
    eventually(
        lambda: page.locator("#loss-chart .mark").count() > marks,
        "the mark of the second group",
        DEADLINE_S,
    )
    visit.wait_for_number("#picture [data-group=member]", 2)
    assert page.locator("#picture .worker").count() == 2 * partition_size
    assert page.locator("#picture .replication").count() == partition_size
    assert page.locator("#picture .node").count() in (1, 2)


def scale_to_one_group(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("button", name="One group fewer").click()
    page.get_by_role("button", name="Scale", exact=True).click()
    visit.wait_for_text("#action-note", "1 group wanted now", DEADLINE_S)
    visit.wait_for_number("#picture [data-group=member]", 1)


def cancel_after_second_thoughts(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Cancel job…").click()
    visit.press("Escape")
    wait_for_steps(visit, 1)
    page.get_by_role("button", name="Cancel job…").click()
    page.get_by_role("button", name="Cancel the job").click()
    visit.wait_for_text("#job-state", "cancelled", DEADLINE_S)
    visit.wait_for_text("#job-reason", "It was cancelled through the service.")


def check_history(history: Throughput) -> None:
    """Check what a real job's newest point says against what it follows from."""
    newest = history.records[-1]
    assert newest.samples == 12.0
    assert newest.samples_per_s == pytest.approx(newest.samples / newest.step_s)
    assert newest.tokens_per_s == pytest.approx(newest.tokens / newest.step_s)
    assert newest.tflops_per_worker is not None
    assert 0.0 < newest.tflops_per_worker < 10.0
    assert newest.mfu is None, "nobody knows the peak of a CPU"
    assert newest.communication_share is not None
    assert 0.0 <= newest.communication_share <= 1.0
    assert history.goodput is not None
    assert 0.0 < history.goodput <= 1.0


def test_a_job_goes_from_login_to_its_end_in_a_browser_and_makes_room_for_one_of_rays(
    browser: Browser, guarded: Guarded, data: Path, request: pytest.FixtureRequest
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page(), guarded.service.url)
    page = visit.page
    spec = small_job(name="browsed", data={"kind": "text", "paths": [str(data)]})
    job_id = log_in_and_submit(visit, guarded.ada, spec)
    refused_before = list(visit.refused)
    # Before the login; and the form's own example, should it be checked before it is replaced.
    assert {401} <= set(refused_before) <= {401, 422}
    try:
        visit.wait_for_text("#job-state", "running", DEADLINE_S)
        wait_for_steps(visit, 3)
        with (
            followed_log(guarded, job_id) as of_job,
            followed_log(guarded, job_id, worker="0.0") as of_worker,
        ):
            eventually(lambda: of_worker.has("rank 0 of 2"), "the worker's log", DEADLINE_S)
            scale_to_two_groups(visit, partition_size=2)
            assert page.locator("#picture .node").count() == 2, "a group on each"
            # It is told while the job runs, not at its end.
            eventually(
                lambda: of_job.has("generation 2 trains from step"), "a line of the log", DEADLINE_S
            )
            wait_for_steps(visit, 3)
            check_history(Throughput.model_validate(guarded.get(f"/jobs/{job_id}/throughput")))

            # All nodes are taken now, so the next job waits for room.
            their_job: str = request.getfixturevalue("their_job")

            def pending() -> list[PendingDemand]:
                return Cluster.model_validate(guarded.get("/cluster")).pending

            (demand,) = eventually(pending, "a demand that waits", DEADLINE_S)
            assert demand.resources == {"CPU": 1.0}
            page.get_by_role("link", name="Cluster").click()
            visit.wait_for_text("#cluster-pending", "Waits for room: 1 × 1 CPU", DEADLINE_S)

            page.set_viewport_size({"width": 390, "height": 844})  # a phone
            visit.open(f"/#/jobs/{job_id}")
            wait_for_steps(visit, 3)
            assert not visit.is_too_wide
            cancel_after_second_thoughts(visit)
        assert of_job.has("job is cancelled")
        visit.open("/#/")
        page.locator(f'#jobs-list a[href="#/jobs/{their_job}"]').click()
        visit.wait_for_text("#job-name", "theirs")
        visit.wait_for_text("#job-state", "running", DEADLINE_S)
        wait_for_steps(visit, 3)
        scale_to_two_groups(visit, partition_size=1)
        assert not visit.is_too_wide
        scale_to_one_group(visit)
    finally:
        with MicsClient(guarded.service.url, token=guarded.ada) as client:
            if not client.job(job_id).state.is_final:
                client.cancel(job_id)
        context.close()
    assert visit.foreign == [], "the page must work without any other host"
    assert visit.complaints == [], "the page must not write errors to the console"
    assert visit.refused == refused_before, "nothing that the page asks for is refused"


# Prometheus, which scrapes the service and Ray's nodes.


IDLE = ("ALERTS",)
"""What gives no data where nothing is wrong."""


def test_every_panel_and_record_shows_a_real_job_and_every_node_of_ray_is_seen(
    guarded: Guarded, their_job: str, tmp_path: Path
) -> None:
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    nodes = session / "prom_metrics_service_discovery.json"
    eventually(nodes.exists, "Ray's list of its nodes", DEADLINE_S)
    # The shipped configuration reads it where the newest cluster of a machine has it.
    linked = session.parent / nodes.name
    assert linked.resolve().name == nodes.name
    (listed,) = json.loads(nodes.read_text(encoding="utf-8"))
    assert len(listed["targets"]) >= NUM_NODES + 1
    service = urlsplit(guarded.service.url).netloc
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    shown = [
        asked_of(expression, their_job)
        for name, expression in expressions()
        if name not in alerts and not any(word in expression for word in IDLE)
    ]
    with (
        running_prometheus(tmp_path, [service], guarded.viewer, [str(nodes)]) as prometheus,
        MicsClient(guarded.service.url, token=guarded.ada) as client,
    ):
        counted = (
            f'count_over_time(mics_job_regroup_seconds_count{{job_id="{their_job}"}}[1m]) >= 2'
        )
        eventually(lambda: numbers_of(prometheus, counted), "two scrapes", DEADLINE_S)
        # A join, which Prometheus sees; and a single group is slower than nobody.
        newest = client.events(their_job, kinds=["state"]).next_after
        client.scale(their_job, 2)
        Stream(client.watch(their_job, after=newest)).read_steps(3, num_groups=2)
        for expression in (
            *shown,
            f'mics:job_training_groups{{job_id="{their_job}"}} == 2',
            f'mics:job_seconds_since_step{{job_id="{their_job}"}} < 60',
            f'mics_job_goodput_ratio{{job_id="{their_job}"}} > 0',
            f'rate(mics_job_step{{job_id="{their_job}"}}[1m]) > 0',
            f'count(up{{job="ray"}} == 1) == {len(listed["targets"])}',
            f'count(ray_node_mem_used{{job="ray"}}) >= {NUM_NODES + 1}',
            'sum(ray_node_cpu_count{job="ray"}) > 0',
        ):
            eventually(
                lambda expression=expression: numbers_of(prometheus, expression),  # type: ignore[misc]
                f"data for {expression}",
                60.0,
            )


# That job by the command line.


def test_their_environment_has_ray_and_nothing_of_this_project(
    their_environment: OtherEnvironment,
) -> None:
    modules = ["ray", "torch", "mics_core", "service"]
    look = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"
    assert their_environment.run("-c", look, timeout_s=30).stdout.strip() == "['ray']"


def test_a_job_sent_from_another_environment_is_watched_scaled_and_cancelled_alike(
    cluster: LocalCluster, service: ServiceProcess, client: MicsClient, their_job: str
) -> None:
    ray_jobs = JobSubmissionClient(cluster.dashboard_url)

    def listed() -> JobSummary | None:
        state = ray_jobs.get_job_status(their_job)
        assert not state.is_terminal(), f"{state}: {ray_jobs.get_job_logs(their_job)}"
        return next((job for job in client.jobs().jobs if job.job_id == their_job), None)

    job = eventually(listed, f"job {their_job} in the list of the service", DEADLINE_S)
    assert (job.source, job.name) == ("ray", "theirs")
    assert their_job in mics(service, "list")
    stream = Stream(client.watch(their_job))
    stream.read_steps(3, num_groups=1)
    assert "2 partition groups wanted" in mics(service, "scale", their_job, "2")
    stream.read_steps(3, num_groups=2)
    assert "running" in mics(service, "show", their_job)
    assert f"job {their_job} started" in mics(service, "logs", their_job)
    assert "rank 0 of 1" in mics(service, "logs", their_job, "--worker", "0.0")
    mics(service, "cancel", their_job)
    assert stream.read_state(JobState.CANCELLED).reason == "It was cancelled through the service."
    assert stream.steps == list(range(len(stream.steps)))

    eventually(
        lambda: ray_jobs.get_job_status(their_job) == RayJobStatus.SUCCEEDED,
        f"the end of Ray's job {their_job}",
        DEADLINE_S,
    )
