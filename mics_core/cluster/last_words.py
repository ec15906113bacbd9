"""The last words of supervisors, kept by Ray's head for a service that did not hear them.

A service that is down while a job ends finds neither the supervisor nor its journal any more. So a
supervisor leaves both behind, as JSON: what any process of the cluster may have written must not be
unpickled by a service. Only the newest are kept, for nobody says when all services have read them.
"""

from __future__ import annotations

import logging
import time
import zlib

from pydantic import ValidationError
from ray.experimental import internal_kv

from mics_core.spec.last_words import LastWords

__all__ = ["KEPT_JOBS", "ended_jobs", "leave_last_words", "read_last_words"]

logger = logging.getLogger(__name__)

KEPT_JOBS = 32

_SPACE = b"mics-ended"


def leave_last_words(job_id: str, words: LastWords) -> None:
    """Leave behind what is known of a job, in the place of what it left when it was paused."""
    key = f"{time.time():020.6f}/{job_id}".encode()
    value = zlib.compress(words.model_dump_json().encode())
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=_SPACE)
    others = sorted(set(_keys()) - {key})
    earlier = [other for other in others if _job_of(other) == job_id]
    oldest = [other for other in others if other not in earlier][: -(KEPT_JOBS - 1)]
    for outdated in earlier + oldest:
        internal_kv._internal_kv_del(outdated, namespace=_SPACE)


def ended_jobs() -> dict[str, float]:
    """Return the jobs that left last words, with the time at which they did."""
    return {_job_of(key): float(key.split(b"/", 1)[0]) for key in sorted(_keys())}


def read_last_words(job_id: str) -> LastWords | None:
    """Return what a job left behind; none if nothing is kept, or nothing that can be read."""
    for key in sorted(_keys(), reverse=True):
        if _job_of(key) != job_id:
            continue
        value = internal_kv._internal_kv_get(key, namespace=_SPACE)
        if value is None:  # deleted since
            return None
        try:
            return LastWords.model_validate_json(zlib.decompress(value))
        except (zlib.error, ValidationError):
            logger.exception("the last words of job %s cannot be read", job_id)
            return None
    return None


def _keys() -> list[bytes]:
    found: list[bytes] = internal_kv._internal_kv_list(b"", namespace=_SPACE)
    return found


def _job_of(key: bytes) -> str:
    return key.split(b"/", 1)[1].decode()
