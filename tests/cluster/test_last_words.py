"""What supervisors leave behind: found again as it was left, and bounded."""

from __future__ import annotations

import math
import time

import pytest

from mics_core.cluster import last_words
from mics_core.cluster.last_words import KEPT_JOBS, ended_jobs, leave_last_words, read_last_words
from mics_core.spec.last_words import LastWords
from mics_core.spec.status import (
    JobState,
    JobStatus,
    SampleCount,
    StateEvent,
    StepEvent,
    StepRecord,
)
from tests.cluster.head import Head
from tests.cluster.jobs import recorded_job


def words(reason: str, loss: float = 2.0) -> LastWords:
    step = StepRecord(
        step=0,
        time=1.5,
        loss=loss,
        tokens=64,
        samples=8,
        step_s=0.5,
        tokens_per_s=128.0,
        gradient_norm=1.0,
        learning_rate=3e-4,
        generation=1,
        num_groups=1,
    )
    status = JobStatus(
        job_id="job",
        name="recorded",
        state=JobState.FAILED,
        reason=reason,
        created=1.0,
        step=1,
        steps=10,
        loss=loss,
        tokens_per_s=128.0,
        generation=1,
        partition_size=1,
        wanted_groups=1,
        minimum_groups=1,
        maximum_groups=1,
        groups=[],
        generations=[],
        samples=SampleCount(due=8, used=8, repeated=0),
    )
    return LastWords(
        spec=recorded_job(None, 10),
        status=status,
        events=[
            StepEvent(sequence=1, time=1.5, record=step),
            StateEvent(sequence=2, time=2.0, state=JobState.FAILED, reason=reason),
        ],
    )


def test_what_was_left_is_found_as_it_was(head: Head) -> None:
    assert read_last_words("a") is None
    before = time.time()
    leave_last_words("a", words("It ended."))
    leave_last_words("b", words("Another one."))
    assert read_last_words("a") == words("It ended.")
    assert before - 1 < ended_jobs()["a"].time < time.time() + 1
    assert ended_jobs()["a"].last_sequence == 2
    assert list(ended_jobs()) == ["a", "b"]


def test_a_loss_that_is_no_number_is_left_too(head: Head) -> None:
    leave_last_words("a", words("It diverged.", loss=math.nan))
    found = read_last_words("a")
    assert found is not None
    assert found.status.loss is not None
    assert math.isnan(found.status.loss)
    assert isinstance(found.events[0], StepEvent)
    assert math.isnan(found.events[0].record.loss)


def test_what_a_job_left_last_takes_the_place_of_what_it_left_before(head: Head) -> None:
    leave_last_words("a", words("It was paused."))
    leave_last_words("a", words("It finished."))
    assert read_last_words("a") == words("It finished.")
    assert len(head.values) == 1


def test_the_newest_jobs_are_kept_and_no_more(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr(last_words.time, "time", lambda: now)
    for number in range(KEPT_JOBS + 5):
        now += 1.0
        leave_last_words(f"job-{number}", words("It ended."))
    assert list(ended_jobs()) == [f"job-{number}" for number in range(5, KEPT_JOBS + 5)]


def test_the_newest_are_kept_as_far_as_their_bytes_allow(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        leave_last_words(f"job-{number}", words("It ended."))
    (size,) = {len(value) for value in head.values.values()}
    monkeypatch.setattr(last_words, "KEPT_BYTES", 2 * size + size // 2)
    leave_last_words("job-4", words("It ended."))
    assert list(ended_jobs()) == ["job-3", "job-4"]
    monkeypatch.setattr(last_words, "KEPT_BYTES", 1)
    leave_last_words("job-5", words("It ended."))
    assert list(ended_jobs()) == ["job-5"]


@pytest.mark.parametrize("key", [b"", b"x", b"nan/1/2/job", b"1.0/job", b"\xff/1/2/job"])
def test_what_others_have_stored_there_is_left_alone(head: Head, key: bytes) -> None:
    head.values[key] = b"theirs"
    leave_last_words("a", words("It ended."))
    assert list(ended_jobs()) == ["a"]
    assert read_last_words("a") == words("It ended.")
    assert head.values[key] == b"theirs"


@pytest.mark.parametrize("value", [b"", b"no zlib", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_what_cannot_be_read_is_as_good_as_nothing(head: Head, value: bytes) -> None:
    leave_last_words("a", words("It ended."))
    (key,) = head.values
    head.values[key] = value
    assert read_last_words("a") is None
