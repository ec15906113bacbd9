"""The last words of supervisors, kept by Ray's head for a service that did not hear them.

A service that is down while a job ends finds neither the supervisor nor its journal any more. So a
supervisor leaves both behind, as JSON: what any process of the cluster may have written must not be
unpickled by a service. Only the newest are kept, for nobody says when all services have read them.
What there is says the keys, so that words are read once, and not to see that they are old.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from dataclasses import dataclass

from pydantic import ValidationError
from ray.experimental import internal_kv

from mics_core.spec.last_words import EndedJob, LastWords

__all__ = ["KEPT_BYTES", "KEPT_JOBS", "ended_jobs", "leave_last_words", "read_last_words"]

logger = logging.getLogger(__name__)

KEPT_JOBS = 32
KEPT_BYTES = 32 << 20
"""Of all jobs together, as they are stored; the newest is kept whatever it takes."""

_SPACE = b"mics-ended"
_KEY = re.compile(r"(\d{13}\.\d{6})/(\d+)/(\d+)/(.+)")


@dataclass(frozen=True, slots=True)
class _Kept:
    key: bytes
    time: float
    last_sequence: int
    num_bytes: int
    job_id: str


def leave_last_words(job_id: str, words: LastWords) -> None:
    """Leave behind what is known of a job, in the place of what it left when it was paused."""
    value = zlib.compress(words.model_dump_json().encode())
    last = words.events[-1].sequence if words.events else 0
    key = f"{time.time():020.6f}/{last}/{len(value)}/{job_id}".encode()
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=_SPACE)
    num_jobs = num_bytes = 0
    for kept in reversed(_kept()):
        is_outdated = kept.job_id == job_id and kept.key != key
        if not is_outdated:
            num_jobs, num_bytes = num_jobs + 1, num_bytes + kept.num_bytes
        is_much = num_jobs > 1 and (num_jobs > KEPT_JOBS or num_bytes > KEPT_BYTES)
        if is_outdated or is_much:
            internal_kv._internal_kv_del(kept.key, namespace=_SPACE)


def ended_jobs() -> dict[str, EndedJob]:
    """Return the jobs that left last words, the oldest first."""
    return {kept.job_id: EndedJob(kept.time, kept.last_sequence) for kept in _kept()}


def read_last_words(job_id: str) -> LastWords | None:
    """Return what a job left behind; none if nothing is kept, or nothing that can be read."""
    kept = next((each for each in reversed(_kept()) if each.job_id == job_id), None)
    if kept is None:
        return None
    value = internal_kv._internal_kv_get(kept.key, namespace=_SPACE)
    if value is None:  # deleted since
        return None
    try:
        return LastWords.model_validate_json(zlib.decompress(value))
    except (zlib.error, ValidationError):
        logger.exception("the last words of job %s cannot be read", job_id)
        return None


def _kept() -> list[_Kept]:
    """Return what is kept, the oldest first; what is no key of this form is left alone."""
    found = []
    for key in sorted(internal_kv._internal_kv_list(b"", namespace=_SPACE)):
        if parts := _KEY.fullmatch(key.decode(errors="replace")):
            when, last, num_bytes, job_id = parts.groups()
            found.append(_Kept(key, float(when), int(last), int(num_bytes), job_id))
    return found
