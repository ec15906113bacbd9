"""Examples of what the API answers, for its documentation: one small job, as each route shows it.

They are built from the models that the routes answer with, when somebody asks for the document, so
that a field cannot be forgotten here; `tests/service/test_openapi_examples.py` holds each to its
schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from mics_core.spec.load import parse_job_spec
from mics_core.spec.planning import plan_job
from mics_core.spec.status import (
    CheckpointEvent,
    GenerationEvent,
    GenerationRecord,
    GroupState,
    GroupStatus,
    JobEvent,
    JobState,
    JobStatus,
    SampleCount,
    StepEvent,
    StepRecord,
    WorkerStatus,
)
from service import schemas
from service.auth.callers import Role
from service.listing import Position
from service.plans import answer_of, cluster_of, known_shape, with_nodes
from service.routes.examples import JOB_ID, SPECIFICATION_EXAMPLE

__all__ = ["answer_examples", "error_examples"]

_BEGUN = 1767261600.0
_NODES = ("6d1f0f6a7c1e4b3a9e2d", "b04ce1d25a7f4f0e8c61")
_HOSTS = ("10.0.1.12", "10.0.1.13")
_REASON = "All 2 wanted groups train."
_FOLDER = "/shared/checkpoints/gpt2-tiny"


def answer_examples() -> dict[tuple[str, str], Any]:
    """Return an example of what each route answers when all is well, by method and path."""
    job = "/api/v1/jobs/{job_id}"
    running = _detail(JobState.RUNNING, _REASON)
    paused = _detail(JobState.PAUSED, "It was paused at step 240; its checkpoint is complete.")
    cancelled = _detail(JobState.CANCELLED, "It was cancelled at step 240.")
    summary = schemas.JobSummary.model_validate(
        running.model_dump(include=set(schemas.JobSummary.model_fields))
    )
    who = schemas.SessionInfo(name="ada", role=Role.USER, requires_token=True)
    examples: dict[tuple[str, str], BaseModel | str] = {
        ("post", "/api/v1/jobs"): _submitted(),
        ("get", "/api/v1/jobs"): schemas.JobList(
            jobs=[summary], next_cursor=Position(_BEGUN, JOB_ID).cursor
        ),
        ("post", "/api/v1/jobs/validate"): running.spec,
        ("get", job): running,
        ("post", f"{job}/scale"): running.model_copy(update={"wanted_groups": 3}),
        ("post", f"{job}/cancel"): cancelled,
        ("post", f"{job}/pause"): paused,
        ("post", f"{job}/resume"): _submitted("It is resumed; Ray is starting its driver."),
        ("get", f"{job}/throughput"): _throughput(),
        ("get", f"{job}/checkpoints"): schemas.CheckpointList(checkpoints=_checkpoints()),
        ("get", f"{job}/placement"): _placement(),
        ("get", f"{job}/events"): _stream(),
        ("get", f"{job}/events/list"): schemas.EventList(events=_events(), next_after=262),
        ("get", f"{job}/logs"): _LOG,
        ("get", "/api/v1/cluster"): _cluster(),
        ("post", "/api/v1/plans"): _plan(),
        ("get", "/api/v1/session"): who,
        ("post", "/api/v1/session"): who,
        ("get", "/healthz"): schemas.Health(status="ok", version="0.1.0", ray="connected"),
        ("get", "/readyz"): schemas.Readiness(ready=True, database="connected", ray="connected"),
        ("get", "/metrics"): _METRICS,
    }
    return {route: _plain(example) for route, example in examples.items()}


def error_examples() -> dict[str, Any]:
    """Return an example of each error, by the status that it is answered with."""
    errors = {
        "400": ("bad_request", "Host 'mics.example' is no name of this service."),
        "401": ("token_required", "This service needs a token."),
        "403": ("not_owner", f"Job {JOB_ID} belongs to 'ada', and this token to 'bob'."),
        "404": ("job_not_found", f"No job has the id '{JOB_ID}'."),
        "409": ("job_conflict", f"Job {JOB_ID} is finished."),
        "408": ("request_too_slow", "The body did not go on for 15 s."),
        "413": ("body_too_large", "The body exceeds 262144 bytes."),
        "415": ("unsupported_media_type", "A body of type 'text/plain' is not read."),
        "422": ("invalid_request", "groups: 0: input should be greater than or equal to 1."),
        "429": ("too_many_jobs", "'ada' has 100 open jobs, which is the most."),
        "503": ("cluster_unavailable", "No Ray cluster answers."),
    }
    remedies = {
        "400": "Address it as 127.0.0.1 or localhost.",
        "401": "Send the header Authorization: Bearer TOKEN, of `mics token create`.",
        "403": "Ask its owner or an administrator.",
        "404": "The list of jobs has the ids of all.",
        "409": "Only a job that has not ended can be steered.",
        "408": "Send it at once; try again.",
        "413": "Specifications are small: name files by their path instead of sending them.",
        "415": "Send application/json or application/yaml.",
        "422": "Give 1 or more.",
        "429": "Wait for one to end, or cancel one.",
        "503": "Try again in a few seconds; /readyz says what does not answer.",
    }
    return {
        status: _plain(
            schemas.ErrorBody(
                error=schemas.ErrorDetail(
                    code=code,
                    message=message,
                    field="groups" if status == "422" else None,
                    remedy=remedies[status],
                )
            )
        )
        for status, (code, message) in errors.items()
    }


def _plain(example: BaseModel | str) -> Any:
    return example if isinstance(example, str) else example.model_dump(mode="json")


def _detail(state: JobState, reason: str) -> schemas.JobDetail:
    status = _status(state, reason)
    return schemas.JobDetail(
        job_id=JOB_ID,
        name=status.name,
        source="rest",
        state=state,
        reason=reason,
        created=_BEGUN,
        finished=_BEGUN + 95.0 if state.is_final else None,
        step=status.step,
        steps=status.steps,
        loss=status.loss,
        tokens_per_s=status.tokens_per_s,
        num_groups=0 if state.is_at_rest else 2,
        wanted_groups=2,
        maximum_groups=4,
        generation=1,
        owner="ada",
        labels={"team": "search"},
        spec=parse_job_spec(SPECIFICATION_EXAMPLE),
        status=status,
    )


def _submitted(reason: str = "It was submitted; Ray is starting its driver.") -> schemas.JobDetail:
    nothing = {"step": 0, "loss": None, "tokens_per_s": None, "num_groups": 0, "generation": 0}
    return _detail(JobState.PENDING, reason).model_copy(update=nothing | {"status": None})


def _status(state: JobState, reason: str) -> JobStatus:
    gone = state.is_at_rest
    groups = [
        GroupStatus(
            group_id=number,
            state=GroupState.LEFT if gone else GroupState.MEMBER,
            reason=reason if gone else "It entered generation 1.",
            workers=[] if gone else [_worker(number, rank) for rank in range(2)],
        )
        for number in range(2)
    ]
    return JobStatus(
        job_id=JOB_ID,
        name="gpt2-tiny",
        state=state,
        reason=reason,
        created=_BEGUN,
        step=240,
        steps=1000,
        loss=3.1415,
        tokens_per_s=5120.0,
        generation=1,
        partition_size=2,
        wanted_groups=2,
        minimum_groups=1,
        maximum_groups=4,
        model_flops_per_sample=7.3e8,
        groups=groups,
        generations=[_generation()],
        samples=SampleCount(due=3840, used=3840, repeated=0),
    )


def _worker(group: int, rank: int) -> WorkerStatus:
    return WorkerStatus(
        rank=rank,
        node_id=_NODES[group],
        host=_HOSTS[group],
        pid=4100 + 10 * group + rank,
        step=240,
    )


def _generation() -> GenerationRecord:
    reason = "Training begins with groups 0 and 1."
    return GenerationRecord(number=1, groups=[0, 1], reason=reason, step=0, time=_BEGUN + 12.0)


def _events() -> list[JobEvent]:
    record = StepRecord(
        step=239,
        time=_BEGUN + 90.0,
        loss=3.1415,
        tokens=2048,
        samples=16,
        step_s=0.4,
        tokens_per_s=5120.0,
        gradient_norm=0.87,
        learning_rate=0.0003,
        generation=1,
        num_groups=2,
        communication_s=0.09,
    )
    return [
        GenerationEvent(sequence=13, time=_BEGUN + 12.5, generation=_generation()),
        StepEvent(sequence=261, time=_BEGUN + 90.0, record=record),
        CheckpointEvent(
            sequence=262, time=_BEGUN + 91.2, step=240, path=f"{_FOLDER}/step-00000240", error=""
        ),
    ]


def _stream() -> str:
    return "".join(
        f"event: {event.kind}\nid: {event.sequence}\ndata: {event.model_dump_json()}\n\n"
        for event in _events()[1:]
    )


def _throughput() -> schemas.Throughput:
    point = schemas.ThroughputPoint(
        step=239,
        time=_BEGUN + 90.0,
        loss=3.1466,
        tokens=2048.0,
        samples=16.0,
        step_s=0.4,
        tokens_per_s=5120.0,
        samples_per_s=40.0,
        tflops_per_worker=0.0073,
        mfu=None,
        communication_share=0.225,
        goodput=0.981,
        generation=1,
        num_groups=2,
        gradient_norm=0.91,
        learning_rate=0.0003,
    )
    return schemas.Throughput(
        job_id=JOB_ID,
        tokens_per_s=5120.0,
        goodput=0.981,
        first_time=_BEGUN + 0.4,
        mfu=None,
        steps_per_point=2,
        records=[point],
    )


def _checkpoints() -> list[schemas.Checkpoint]:
    return [
        schemas.Checkpoint(
            step=240, path=f"{_FOLDER}/step-00000240", time=_BEGUN + 91.2, error=None
        )
    ]


def _placement() -> schemas.Placement:
    workers = [
        schemas.PlacedWorker(
            **_worker(group, rank).model_dump(), group_id=group, group_state=GroupState.MEMBER
        )
        for group in range(2)
        for rank in range(2)
    ]
    return schemas.Placement(generation=1, workers=workers)


def _cluster() -> schemas.Cluster:
    nodes = [
        schemas.ClusterNode(
            node_id=node_id,
            host=host,
            state="alive",
            is_head=group == 0,
            resources={"CPU": 4.0},
            used={"CPU": 2.0},
            workers=[
                schemas.NodeWorker(job_id=JOB_ID, group_id=group, rank=rank) for rank in range(2)
            ],
            free_workers=2,
        )
        for group, (node_id, host) in enumerate(zip(_NODES, _HOSTS, strict=True))
    ]
    pending = [schemas.PendingDemand(resources={"CPU": 1.0}, count=2)]
    return schemas.Cluster(nodes=nodes, pending=pending)


def _plan() -> schemas.PlanAnswer:
    spec = parse_job_spec(SPECIFICATION_EXAMPLE)
    cluster = with_nodes(cluster_of(spec, "p4d.24xlarge", may_read_files=False), 2)
    model = known_shape(spec)
    found = answer_of(plan_job(spec, model, cluster), cluster, model, 1)
    return schemas.PlanAnswer.model_validate(_rounded(found.model_dump()))


def _rounded(value: Any) -> Any:
    """Return a value with four digits of every number that is not whole."""
    forms: dict[type, Callable[[Any], Any]] = {
        float: lambda number: float(f"{number:.4g}"),
        dict: lambda mapping: {key: _rounded(each) for key, each in mapping.items()},
        list: lambda items: [_rounded(each) for each in items],
    }
    return forms.get(type(value), lambda other: other)(value)


_LOG = """\
supervisor: Group 0 trains on node 6d1f0f6a.
supervisor: Generation 1 begins with groups 0 and 1.
Partition size 2: the specification names it.
"""

_METRICS = f"""\
# HELP mics_jobs Jobs by state.
# TYPE mics_jobs gauge
mics_jobs{{state="running"}} 1.0
# HELP mics_job_step Committed steps.
# TYPE mics_job_step gauge
mics_job_step{{job_id="{JOB_ID}",name="gpt2-tiny"}} 240.0
"""
