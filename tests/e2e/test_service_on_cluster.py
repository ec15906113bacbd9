"""The whole system: the service as a process, its REST API, a Ray cluster, jobs that train."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.job_submission import JobSubmissionClient

from mics_core.cluster.local import LocalCluster
from mics_core.cluster.reaching import SupervisorHandle, has_supervisor
from mics_core.errors import JobNotFoundError
from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.status import (
    GroupState,
    JobState,
    JobStatus,
    RegroupEvent,
    StateEvent,
    StepEvent,
)
from service.client import MicsClient
from service.schemas import JobDetail
from tests.cluster.running import eventually
from tests.e2e.conftest import NUM_NODES
from tests.e2e.service_process import ServiceProcess
from tests.e2e.stories import DEADLINE_S, ENDLESS, Stream, small_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRUE_WITHIN_S = 5.0


# A job over REST: watched, scaled, its service killed and started again, cancelled.


@dataclass
class Story:
    job_id: str
    submitted: JobDetail
    stream: Stream
    changes: list[dict[str, Any]]
    beyond: httpx.Response
    after_beyond: JobDetail
    logs: dict[str, str]
    cluster_busy: dict[str, Any]
    placement: dict[str, Any]
    steps_while_down: tuple[int, int]
    after_kill: JobDetail
    paused: StateEvent
    cluster_paused: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    folder: Path
    resumed: JobDetail
    listed_alike: list[str]
    ray_jobs_alike: list[str]
    victim: int
    later_changes: list[dict[str, Any]]
    wanted: tuple[int, int]
    heard: int
    after_end: JobDetail
    ended: StateEvent
    repeated_cancel: httpx.Response
    late_scale: httpx.Response


def submit_and_kill(service: ServiceProcess, spec: JobSpec) -> JobDetail:
    """Submit a job to a service that is killed meanwhile, then the same again to the next one."""
    body, headers = spec.model_dump(mode="json"), {"Idempotency-Key": "the-story"}

    def post() -> httpx.Response:
        return httpx.post(f"{service.url}/api/v1/jobs", json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post)
        eventually(
            lambda: httpx.get(f"{service.url}/api/v1/jobs", timeout=30).json()["jobs"],
            "the job in the list",
            DEADLINE_S,
        )
        service.kill()
        service.start()
        with contextlib.suppress(httpx.TransportError):
            first.result()  # it may have been answered just before
    answer = post()
    assert answer.status_code == 201, answer.text
    return JobDetail.model_validate(answer.json())


def find(client: MicsClient, job_id: str) -> JobDetail | None:
    """Return a job once a service knows it."""
    try:
        return client.job(job_id)
    except JobNotFoundError:
        return None


def truth_of(job_id: str) -> JobStatus:
    """Return how a job fares by its supervisor, and not by the service."""
    status = SupervisorHandle(job_id).ask("status", timeout_s=DEADLINE_S)
    return JobStatus.model_validate(status)


def scale_and_kill(service: ServiceProcess, address: str, groups: int) -> None:
    """Ask a service to scale a job, and kill it at once; whether the job hears of it is chance."""

    def post() -> None:
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{address}/scale", json={"groups": groups}, timeout=30)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(post)
        service.kill()
    service.start()


@pytest.fixture(scope="module")
def story(
    cluster: LocalCluster,
    service: ServiceProcess,
    client: MicsClient,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    spec: JobSpec = parse_job_spec(
        small_job(
            data={"kind": "text", "paths": [str(data)]},
            checkpoint={"directory": str(checkpoints), "interval_steps": ENDLESS},
            labels={"team": "stage"},
        )
    )
    submitted = submit_and_kill(service, spec)
    job_id, address = submitted.job_id, f"{service.url}/api/v1/jobs/{submitted.job_id}"
    stream = Stream(client.watch(job_id))
    stream.read_steps(3, num_groups=1)
    client.scale(job_id, 2)
    stream.read_steps(3, num_groups=2)
    beyond = httpx.post(f"{address}/scale", json={"groups": 3}, timeout=30)
    stream.read_steps(3, num_groups=2)
    after_beyond = client.job(job_id)

    def changes_of_membership() -> list[dict[str, Any]] | None:
        answer = httpx.get(f"{address}/events/list?kind=regroup", timeout=30)
        found: list[dict[str, Any]] = answer.json()["events"]
        return found if len(found) == 2 else None

    changes = eventually(changes_of_membership, "both changes of membership", DEADLINE_S)
    logs = {
        name: httpx.get(f"{address}/logs", params=query, timeout=60).text
        for name, query in {"job": {}, "worker": {"worker": "1.0"}}.items()
    }
    cluster_busy = httpx.get(f"{service.url}/api/v1/cluster", timeout=30).json()
    placement = httpx.get(f"{address}/placement", timeout=30).json()
    service.kill()
    at_kill = truth_of(job_id).step
    eventually(lambda: truth_of(job_id).step > at_kill, "steps without a service", DEADLINE_S)
    before_start = truth_of(job_id).step
    service.start()
    # What the supervisor itself says once the service answers again is what the service shows soon.
    truth = truth_of(job_id).step
    after_kill = eventually(
        lambda: shown if (shown := client.job(job_id)).step >= truth else None,
        f"step {truth} of the job after the restart",
        TRUE_WITHIN_S,
    )
    # The same stream goes on: the client asks again from the last event that it has.
    stream.read_until(
        lambda e: isinstance(e, StepEvent) and e.record.step > truth, "steps after the restart"
    )
    assert httpx.post(f"{address}/pause", timeout=30).status_code == 200
    paused = stream.read_state(JobState.PAUSED)

    def is_free() -> dict[str, Any] | None:
        found: dict[str, Any] = httpx.get(f"{service.url}/api/v1/cluster", timeout=30).json()
        is_whole = sum(node["free_workers"] for node in found["nodes"]) == 4
        return found if is_whole and not any(node["workers"] for node in found["nodes"]) else None

    cluster_paused = eventually(is_free, "the nodes that a paused job gives back", DEADLINE_S)
    checkpoints_listed = httpx.get(f"{address}/checkpoints", timeout=30).json()["checkpoints"]
    resume = httpx.post(f"{address}/resume", timeout=60)
    assert resume.status_code == 200, resume.text
    stream.read_steps(3, num_groups=2)
    resumed = client.job(job_id)
    alike = httpx.get(f"{service.url}/api/v1/jobs?label=team:stage", timeout=30).json()["jobs"]
    ray_jobs = JobSubmissionClient(cluster.dashboard_url).list_jobs()
    _, victim = (g for g in truth_of(job_id).groups if g.state == GroupState.MEMBER)
    os.kill(victim.workers[-1].pid, signal.SIGKILL)
    stream.read_steps(1, num_groups=1)
    stream.read_until(
        lambda e: isinstance(e, RegroupEvent) and e.reason.endswith("joins."), "what the join took"
    )
    client.scale(job_id, 1)
    stream.read_steps(2, num_groups=1)
    only = {"kind": "regroup", "after": paused.sequence}
    later = httpx.get(f"{address}/events/list", params=only, timeout=30).json()["events"]
    scale_and_kill(service, address, 2)
    wanted = (client.job(job_id).wanted_groups, truth_of(job_id).wanted_groups)
    service.kill()
    heard = truth_of(job_id).step
    eventually(lambda: truth_of(job_id).step > heard + 2, "steps that nobody hears", DEADLINE_S)
    SupervisorHandle(job_id).ask("cancel", "It ends without a service.", timeout_s=DEADLINE_S)
    eventually(lambda: not has_supervisor(job_id), "the end of the supervisor", DEADLINE_S)
    service.start()
    after_end = eventually(
        lambda: shown if (shown := client.job(job_id)).state == JobState.CANCELLED else None,
        "the end of the job after the restart",
        TRUE_WITHIN_S,
    )
    ended = stream.read_state(JobState.CANCELLED)
    repeated_cancel = httpx.post(f"{address}/cancel", timeout=30)
    late_scale = httpx.post(f"{address}/scale", json={"groups": 1}, timeout=30)
    return Story(
        job_id=job_id,
        submitted=submitted,
        stream=stream,
        changes=changes,
        beyond=beyond,
        after_beyond=after_beyond,
        logs=logs,
        cluster_busy=cluster_busy,
        placement=placement,
        steps_while_down=(at_kill, before_start),
        checkpoints=checkpoints_listed,
        folder=checkpoints,
        victim=victim.group_id,
        later_changes=later,
        wanted=wanted,
        heard=heard,
        ended=ended,
        paused=paused,
        cluster_paused=cluster_paused,
        resumed=resumed,
        listed_alike=[job["job_id"] for job in alike],
        ray_jobs_alike=[
            str(job.submission_id)
            for job in ray_jobs
            if (job.metadata or {}).get("mics") == submitted.name
        ],
        after_kill=after_kill,
        repeated_cancel=repeated_cancel,
        late_scale=late_scale,
        after_end=after_end,
    )


def test_a_submission_that_outlives_a_killed_service_is_one_job(story: Story) -> None:
    assert story.submitted.source == "rest"
    assert story.listed_alike == [story.job_id]
    # Its first driver, and the one with which it went on.
    assert sorted(story.ray_jobs_alike) == [story.job_id, f"{story.job_id}-r1"]


def test_logs_of_a_job_and_of_one_worker_are_shown(story: Story) -> None:
    assert f"job {story.job_id} started" in story.logs["job"]
    assert "generation 2 trains from step" in story.logs["job"]
    assert "rank 0 of 2 meets the others at" in story.logs["worker"]
    for text in story.logs.values():
        assert ":job_id:" not in text, "marks of Ray's own are left out"


def test_the_cluster_shows_the_workers_of_the_job(story: Story) -> None:
    nodes = {node["node_id"]: node for node in story.cluster_busy["nodes"]}
    assert [node["is_head"] for node in nodes.values()].count(True) == 1
    assert len(nodes) == NUM_NODES + 1
    status = story.after_beyond.status
    assert status is not None
    for group in status.groups:
        for worker in group.workers:
            shown = {"job_id": story.job_id, "group_id": group.group_id, "rank": worker.rank}
            assert shown in nodes[worker.node_id]["workers"]
            assert nodes[worker.node_id]["free_workers"] == 0
            assert nodes[worker.node_id]["used"]["CPU"] == 2.0


def test_a_paused_job_goes_on_where_it_was_with_the_groups_that_it_had(story: Story) -> None:
    before = [e for e in story.stream.read if e.sequence < story.paused.sequence]
    last = max(event.record.step for event in before if isinstance(event, StepEvent))
    assert f"It goes on from step {last + 1}." in story.paused.reason
    after = [e for e in story.stream.read if e.sequence > story.paused.sequence]
    assert next(e.record.step for e in after if isinstance(e, StepEvent)) == last + 1
    assert isinstance(after[0], StateEvent)
    assert after[0].state == JobState.PENDING
    assert story.resumed.wanted_groups == 2
    assert story.resumed.created == story.submitted.created
    assert story.resumed.status is not None
    assert story.resumed.status.model_flops_per_sample is not None


def test_the_stream_has_every_event_once_across_a_killed_service(story: Story) -> None:
    numbers = [event.sequence for event in story.stream.read]
    assert numbers == list(range(1, len(numbers) + 1))
    assert story.stream.steps == list(range(len(story.stream.steps)))


def test_a_scale_request_within_the_bounds_brings_a_second_group(story: Story) -> None:
    status = story.after_beyond.status
    assert status is not None
    assert [group.state for group in status.groups] == [GroupState.MEMBER, GroupState.MEMBER]


def test_the_api_tells_what_each_phase_of_a_change_of_membership_took(story: Story) -> None:
    start, join = story.changes
    for change, number, reason in (
        (start, 1, "Training begins with group 0."),
        (join, 2, "Group 1 joins."),
    ):
        assert (change["generation"], change["reason"]) == (number, reason)
        names = ["detect_s", "agree_s", "connect_s", "copy_s", "redo_s"]
        assert list(change["phases"]) == names
    assert start["step"] == 0
    assert join["step"] > 0
    # Nobody was lost: there was nothing to detect, and no step to redo.
    taken = {name for name, seconds in join["phases"].items() if seconds is not None}
    assert taken == {"agree_s", "connect_s", "copy_s"}
    assert all(join["phases"][name] >= 0 for name in taken)


def test_the_api_tells_what_a_loss_took_and_a_leave(story: Story) -> None:
    loss, join, leave = story.later_changes[-3:]
    for change, reason, phases in (
        (loss, f"Group {story.victim} was lost: ", {"detect_s", "redo_s"}),
        (join, f"Group {story.victim + 1} joins.", {"copy_s"}),
        (leave, f"Group {story.victim + 1} leaves: 1 partition group is wanted: ", set()),
    ):
        assert change["reason"].startswith(reason)
        taken = {name: seconds for name, seconds in change["phases"].items() if seconds is not None}
        assert taken.keys() == {"agree_s", "connect_s"} | phases
        assert all(seconds >= 0 for seconds in taken.values())
    assert loss["step"] < join["step"] < leave["step"]
    assert loss["generation"] < join["generation"] < leave["generation"]
    assert 0 <= loss["kept"] <= 1
    assert (join["kept"], leave["kept"]) == (None, None)


def test_a_scale_request_beyond_the_bounds_is_refused_and_changes_nothing(story: Story) -> None:
    assert story.beyond.status_code == 409
    error = story.beyond.json()["error"]
    assert (error["code"], error["field"]) == ("scale_out_of_bounds", "groups")
    assert error["message"].startswith("3 partition groups are outside the job's bounds")
    assert "groups.maximum" in error["remedy"]
    assert (story.after_beyond.state, story.after_beyond.wanted_groups) == (JobState.RUNNING, 2)


def test_a_service_that_was_killed_finds_its_running_job_again(story: Story) -> None:
    before, after = story.after_beyond, story.after_kill
    assert after.state == JobState.RUNNING
    assert after.created == before.created
    assert before.status is not None
    assert after.status is not None
    pids_before = [worker.pid for group in before.status.groups for worker in group.workers]
    pids_after = [worker.pid for group in after.status.groups for worker in group.workers]
    assert pids_after == pids_before, "the job was disturbed"
    at_kill, before_start = story.steps_while_down
    assert before_start > at_kill, "it trained on meanwhile"


def test_a_scale_request_that_a_kill_cuts_off_is_heard_or_not(story: Story) -> None:
    shown, true = story.wanted
    assert shown == true
    assert true in (1, 2)


def test_the_placement_of_every_worker_is_shown(story: Story) -> None:
    status = story.after_beyond.status
    assert status is not None
    places = [
        (place["group_id"], place["rank"], place["node_id"]) for place in story.placement["workers"]
    ]
    expected = [(g.group_id, w.rank, w.node_id) for g in status.groups for w in g.workers]
    assert sorted(places) == sorted(expected)
    assert len(places) == 4


def test_the_checkpoint_of_a_paused_job_is_listed_and_there(story: Story) -> None:
    (listed,) = story.checkpoints
    assert listed["error"] is None
    assert f"It goes on from step {listed['step']}." in story.paused.reason
    assert (listed["step"], listed["path"]) in CheckpointFolder(str(story.folder)).complete()


def test_a_job_that_has_ended_can_neither_be_cancelled_nor_scaled(story: Story) -> None:
    for answer, verb in ((story.repeated_cancel, "cancelled"), (story.late_scale, "scaled")):
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert error["code"] == "job_conflict"
        assert f"is cancelled and cannot be {verb}" in error["message"]
        assert error["remedy"]


def test_a_service_that_was_killed_knows_the_end_of_its_jobs(story: Story) -> None:
    assert story.after_end.reason == story.ended.reason == "It ends without a service."
    status = story.after_end.status
    assert status is not None
    assert (status.state, status.step) == (JobState.CANCELLED, story.after_end.step)
    lost = [group.group_id for group in status.groups if group.state == GroupState.LOST]
    assert lost == [story.victim]
    assert {group.state for group in status.groups} == {GroupState.LEFT, GroupState.LOST}


def test_steps_that_no_service_heard_before_the_end_are_in_the_history(story: Story) -> None:
    assert story.after_end.step > story.heard + 2
    assert story.stream.steps == list(range(story.after_end.step))


def test_a_service_with_an_empty_database_knows_the_job_that_ended_before(
    story: Story, cluster: LocalCluster, tmp_path: Path
) -> None:
    other = ServiceProcess(cluster, tmp_path)
    other.start()
    try:
        with MicsClient(other.url) as client:
            job = eventually(lambda: find(client, story.job_id), "the job", DEADLINE_S)
            assert (job.state, job.step) == (JobState.CANCELLED, story.after_end.step)
            events = list(client.watch(story.job_id))
    finally:
        other.stop()
    # What came before it was paused went with the supervisor of that time.
    since = [event for event in story.stream.read if event.sequence > story.paused.sequence + 1]
    assert [event.sequence for event in events] == [event.sequence for event in since]
    assert events[-1] == story.ended


# What is refused.


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("POST", "/scale"), ("POST", "/cancel"), ("GET", "/events")]
)
def test_an_unknown_job_is_not_found(service: ServiceProcess, method: str, path: str) -> None:
    body = {"groups": 1} if path == "/scale" else None
    address = f"{service.url}/api/v1/jobs/nobodys-job{path}"
    answer = httpx.request(method, address, json=body, timeout=30)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"


def test_a_broken_specification_is_refused_with_field_value_rule_and_remedy(
    service: ServiceProcess, client: MicsClient, data: Path
) -> None:
    jobs_before = {job.job_id for job in client.jobs().jobs}
    body = small_job(data={"kind": "text", "paths": [str(data)]}, partition_size=0)
    answer = httpx.post(f"{service.url}/api/v1/jobs", json=body, timeout=30)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid_specification"
    (problem,) = error["problems"]
    assert (problem["field"], problem["value"]) == ("partition_size", "0")
    assert problem["rule"] == "this is a positive whole number or 'auto'."
    assert problem["remedy"] == "Leave it at 'auto' to have the planner choose."
    assert {job.job_id for job in client.jobs().jobs} == jobs_before
