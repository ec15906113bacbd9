"""Reads the logs of Ray's processes through the log API of its dashboard.

`ray.util.state.get_log` asks the same address, but blocks a thread for as long as a log is followed
and cannot be stopped; a service with many readers needs neither.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_actors

from mics_core.cluster.names import supervisor_name
from mics_core.errors import ClusterError
from mics_core.spec.nodes import LogSource

__all__ = ["log_files", "open_lines"]

_ANSWER_S = 15.0
_LONGEST_LINE = 64 * 1024
_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines that Ray puts into the logs for its own tools."""


def log_files(source: LogSource, jobs: JobSubmissionClient) -> list[dict[str, Any]]:
    """Return what Ray's log API is asked for to read a source, one query a file.

    Asks the cluster where a driver or a supervisor is; one that has ended still has its log.

    Args:
        source: Whose output.
        jobs: Knows where the drivers are.
    """
    if source.driver_id is not None:
        # The log API does not find the drivers of Ray 2.60 by their submission ids.
        found = [job for job in jobs.list_jobs() if job.submission_id == source.driver_id]
        name = f"job-driver-{source.driver_id}.log"
        return [{"node_id": job.driver_node_id, "filename": name} for job in found]
    if source.supervisor_of is not None:
        named = [("name", "=", supervisor_name(source.supervisor_of))]
        # At its address: this machine may run another cluster, or none.
        found = list_actors(address=jobs.get_address(), filters=named, detail=True)
        return [
            {"node_id": actor.node_id, "pid": actor.pid, "suffix": "err"}
            for actor in found
            if actor.node_id and actor.pid
        ]
    return [
        {"node_id": source.node_id, "pid": source.pid, "suffix": suffix}
        for suffix in ("out", "err")
    ]


async def open_lines(
    dashboard: str, files: Sequence[dict[str, Any]], tail: int, *, follow: bool
) -> list[AsyncGenerator[str]]:
    """Open logs at Ray's dashboard; those that are not there are left out.

    Args:
        dashboard: Its address.
        files: As `log_files` names them.
        tail: At most so many lines of the past of each.
        follow: Whether to go on until closed.

    Raises:
        ClusterError: The dashboard does not answer.
    """
    opened = []
    for file in files:
        lines = _lines(dashboard, {**file, "lines": tail}, follow)
        # Up to its first word it says whether there is such a log.
        if await anext(lines):
            opened.append(lines)
        else:
            await lines.aclose()
    return opened


async def _lines(dashboard: str, query: dict[str, Any], follow: bool) -> AsyncGenerator[str]:
    """Yield first whether there is such a log, as text or none, and then its lines."""
    kind = "stream" if follow else "file"
    asked = {**query, "filter_ansi_code": "true"}
    # A log that is followed may be silent for long.
    limits = httpx.Timeout(_ANSWER_S, read=None if follow else _ANSWER_S)
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=limits))
            answer = await stack.enter_async_context(
                client.stream(
                    "GET",
                    f"{dashboard}/api/v0/logs/{kind}",
                    params=asked,
                    headers=get_auth_headers_if_auth_enabled({}),
                )
            )
            if answer.status_code != httpx.codes.OK:
                yield ""
                return
            yield "open"
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            rest = ""
            async for chunk in answer.aiter_bytes():
                *whole, rest = (rest + decoder.decode(chunk)).split("\n")
                if len(rest) > _LONGEST_LINE:
                    whole, rest = [*whole, rest], ""
                for line in whole:
                    if not line.startswith(_MARKS):
                        yield line
            if rest:
                yield rest
        except httpx.HTTPError as error:
            raise ClusterError(
                f"Ray's dashboard does not give the log: {type(error).__name__}.",
                remedy="Check the cluster with `ray status`.",
            ) from None
