"""A worker's reports to a supervisor that does not always answer."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Ended, Entered, Message
from mics_core.cluster.reaching import SupervisorGoneError, SupervisorHandle
from mics_core.errors import ClusterError

DEADLINE_S = 10.0
ENTERED, ENDED = Entered(0, 1, 0, 0.5), Ended(0, finished=False)


class DeafSupervisor(SupervisorHandle):
    """Stands in for a supervisor where it is reached; fails as scripted, then hears.

    Args:
        errors: What the calls with reports raise, one after the other, before one is answered.
    """

    def __init__(self, *errors: ClusterError):
        self._errors = list(errors)
        self.asked: queue.Queue[list[Message]] = queue.Queue()

    def ask(self, method: str, *arguments: object, timeout_s: float) -> object:
        if method == "newest_generation":
            raise SupervisorGoneError("There is no news.")
        assert method == "report"
        _, messages = arguments
        assert isinstance(messages, list)
        self.asked.put(messages)
        if self._errors:
            raise self._errors.pop(0)
        return None


@contextmanager
def link_to(
    supervisor: DeafSupervisor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SupervisorLink]:
    monkeypatch.setattr("mics_core.cluster.link._AGAIN_S", 0.01)
    link = SupervisorLink(supervisor, group_id=4, rank=0)
    link.start()
    try:
        yield link
    finally:
        link.close()
        assert not any(thread.is_alive() for thread in link._threads[1:])


def test_reports_that_nobody_heard_are_sent_again_before_those_that_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaf = ClusterError("It does not answer.")
    supervisor = DeafSupervisor(deaf, deaf)
    with link_to(supervisor, monkeypatch) as link:
        link.send(ENTERED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENTERED]
        link.send(ENDED)
        for _ in range(2):
            assert supervisor.asked.get(timeout=DEADLINE_S) == [ENTERED]
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENDED]


def test_reports_are_not_sent_again_to_a_job_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = DeafSupervisor(SupervisorGoneError("The job has ended."))
    with link_to(supervisor, monkeypatch) as link:
        link.send(ENTERED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENTERED]
        link.send(ENDED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENDED]
