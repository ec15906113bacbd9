"""The route that plans a job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.cluster import ClusterSpec, parse_cluster_spec
from mics_core.spec.load import parse_job_spec
from mics_core.spec.planning import plan_job
from service.bodies import read_specification_body
from service.errors import ERROR_ANSWERS
from service.plans import answer_of, cluster_of, known_shape, with_nodes
from service.routes.examples import PLAN_EXAMPLE, PLAN_EXAMPLE_YAML
from service.schemas import ErrorBody, PlanAnswer, PlanRequest

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/plans", tags=["plans"])

_MOST_LISTED = 100

_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {
                "schema": {"$ref": "#/components/schemas/PlanRequest"},
                "example": example,
            }
            for media_type, example in (
                ("application/json", PLAN_EXAMPLE),
                ("application/yaml", PLAN_EXAMPLE_YAML),
            )
        },
    }
}


async def _plan_request(request: Request) -> PlanRequest:
    """Read the body through the specifications' own checks, whose errors say what to do."""
    body = await read_specification_body(request)
    if not isinstance(body, Mapping) or "job" not in body:
        rule = "a plan is asked for with a mapping of `job` and `cluster`."
        raise _refusal("(body)", "the request", rule, "Put the specification under `job`.")
    if unknown := sorted(set(body) - set(PlanRequest.model_fields)):
        known = ", ".join(PlanRequest.model_fields)
        shown = repr(body[unknown[0]])[:80]
        raise _refusal(unknown[0], shown, "there is no such field.", f"Known here: {known}.")
    nodes = body.get("nodes")
    if nodes is not None and (not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1):
        rule = "a number of nodes is a positive whole number."
        raise _refusal("nodes", repr(nodes)[:80], rule, "Give one, or leave it out.")
    cluster: str | ClusterSpec | None = None
    match body.get("cluster"):
        case None:
            pass
        case str() as name:
            cluster = name
        case other:
            cluster = parse_cluster_spec(other)
    # What was read is checked already; checking it again would only lose its problems' words.
    return PlanRequest.model_construct(
        job=parse_job_spec(body["job"]), cluster=cluster, nodes=nodes
    )


def _refusal(field: str, value: str, rule: str, remedy: str) -> SpecificationError:
    return SpecificationError([Problem(field, value, rule, remedy)])


Asked = Annotated[PlanRequest, Depends(_plan_request)]


@router.post(
    "",
    summary="Plan a job",
    responses={
        415: {"model": ErrorBody, "description": "The body is neither JSON nor YAML."},
        422: ERROR_ANSWERS[422],
    },
    openapi_extra=_REQUEST_BODY,
)
async def plan(asked: Asked) -> PlanAnswer:
    """Choose a job's layout on a cluster by predicted speed; nothing is started.

    The answer holds the choice with its reason, the best of the other layouts that fit, and what
    cannot be, each with its reason. The cluster need not exist.
    """
    return await asyncio.to_thread(_plan, asked)


def _plan(asked: PlanRequest) -> PlanAnswer:
    cluster = cluster_of(asked.job, asked.cluster, may_read_files=False)
    cluster = with_nodes(cluster, asked.nodes)
    model = known_shape(asked.job)
    return answer_of(plan_job(asked.job, model, cluster), cluster, model, _MOST_LISTED)
