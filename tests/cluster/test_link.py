"""A worker's reports: what they say, and a supervisor that does not always answer."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray.exceptions import RayError, RaySystemError, RpcError

from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Committed, Ended, Entered, Message
from mics_core.cluster.reaching import SupervisorGoneError, SupervisorHandle
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.summary import Share, StepCommit
from mics_core.errors import ClusterError
from tests.cluster.running import eventually

DEADLINE_S = 10.0
ENTERED, ENDED = Entered(0, 1, 0, 0.5), Ended(0, finished=True)
PLAN = GenerationPlan(1, (4,), None, "Training begins with group 4.")
DEAF = ClusterError("It does not answer.")
UNREACHABLE = RpcError("The head is away.")


class DeafSupervisor(SupervisorHandle):
    """Stands in for a supervisor where it is reached; fails as scripted, then hears.

    Args:
        errors: What the calls with reports raise, one after the other, before one is answered.
    """

    def __init__(self, *errors: Exception):
        self._errors = list(errors)
        self.asked: queue.Queue[list[Message]] = queue.Queue()

    def ask(self, method: str, *arguments: object, timeout_s: float, **_: object) -> object:
        if method == "newest_generation":
            raise SupervisorGoneError("There is no news.")
        if method in ("next_plan", "plan"):
            return self._answer(PLAN)
        assert method == "report"
        _, messages = arguments
        assert isinstance(messages, list)
        self.asked.put(messages)
        return self._answer(None)

    def _answer(self, answer: object) -> object:
        if self._errors:
            raise self._errors.pop(0)
        return answer


class SilentForAWhile(SupervisorHandle):
    """Stands in for a supervisor that says nothing new before it says that of `PLAN`.

    Args:
        errors: What the calls for news raise before that.
    """

    def __init__(self, *errors: Exception):
        self._errors = list(errors)

    def ask(self, method: str, *arguments: object, timeout_s: float, **_: object) -> object:
        assert method == "newest_generation"
        if self._errors:
            raise self._errors.pop(0)
        return PLAN, 0


@contextmanager
def link_to(
    supervisor: SupervisorHandle, monkeypatch: pytest.MonkeyPatch, rank: int = 0
) -> Iterator[SupervisorLink]:
    monkeypatch.setattr("mics_core.cluster.link._AGAIN_S", 0.01)
    link = SupervisorLink(supervisor, group_id=4, rank=rank)
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


def test_the_word_of_an_end_in_order_waits_for_a_supervisor_however_long_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mics_core.cluster.link._FLUSH_S", 0.0)
    supervisor = DeafSupervisor(*[ClusterError("It has not come back.")] * 20)
    with link_to(supervisor, monkeypatch) as link:
        link.ended(finished=True)
    said = [supervisor.asked.get_nowait() for _ in range(21)]
    assert said == [[ENDED]] * 21


def test_a_worker_that_failed_goes_though_nobody_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mics_core.cluster.link._FLUSH_S", 0.0)
    monkeypatch.setattr("mics_core.cluster.link._AGAIN_S", 0.01)
    deaf = DeafSupervisor(*[ClusterError("It does not answer.")] * 10_000)
    link = SupervisorLink(deaf, group_id=4, rank=0)
    link.start()
    link.failed(3, "It is broken.", own_error=True)
    link.close()
    deaf._errors.clear()
    link._threads[1].join(DEADLINE_S)
    assert not link._threads[1].is_alive()


def test_reports_are_not_sent_again_to_a_job_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = DeafSupervisor(SupervisorGoneError("The job has ended."))
    with link_to(supervisor, monkeypatch) as link:
        link.send(ENTERED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENTERED]
        link.send(ENDED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENDED]


class NewsAlone(SupervisorHandle):
    """Stands in for a supervisor that has told of one plan, and now answers nothing else."""

    def __init__(self, plan: GenerationPlan):
        self._plan = plan
        self.asked: queue.Queue[str] = queue.Queue()

    def ask(self, method: str, *arguments: object, timeout_s: float, **_: object) -> object:
        if method == "newest_generation" and arguments[0] == 0:
            return self._plan, 0
        self.asked.put(method)
        raise SupervisorGoneError("It is silent.")


def test_a_plan_that_is_here_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = NewsAlone(PLAN)
    with link_to(supervisor, monkeypatch) as link:
        assert supervisor.asked.get(timeout=DEADLINE_S) == "newest_generation", "the news is here"
        assert link.next_plan(after=0) == PLAN
        assert supervisor.asked.empty()
        with pytest.raises(SupervisorGoneError):
            link.next_plan(after=1)
        assert supervisor.asked.get(timeout=DEADLINE_S) == "next_plan"


def test_a_plan_without_this_group_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # It may be one that says that the group was evicted, or that it leaves.
    supervisor = NewsAlone(GenerationPlan(1, (5,), None, "Training begins with group 5."))
    with link_to(supervisor, monkeypatch) as link:
        assert supervisor.asked.get(timeout=DEADLINE_S) == "newest_generation", "the news is here"
        with pytest.raises(SupervisorGoneError):
            link.next_plan(after=0)
        assert supervisor.asked.get(timeout=DEADLINE_S) == "next_plan"


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look like one that Ray started and that goes on."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)


@pytest.fixture
def shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look like one that Ray shuts down."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("error", [DEAF, UNREACHABLE])
@pytest.mark.usefixtures("connected")
def test_there_is_no_plan_yet_where_the_supervisor_does_not_answer(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with link_to(DeafSupervisor(error), monkeypatch) as link:
        assert link.next_plan(after=0) is None
        assert link.next_plan(after=0) == PLAN
    with link_to(DeafSupervisor(error), monkeypatch) as link:
        assert link.plan(1) is None
        assert link.plan(1) == PLAN


@pytest.mark.parametrize("error", [SupervisorGoneError("It has ended."), RaySystemError("Bye.")])
@pytest.mark.usefixtures("shut_down")
def test_no_plan_is_waited_for_where_none_can_come(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        link_to(DeafSupervisor(error), monkeypatch) as link,
        pytest.raises((SupervisorGoneError, RayError)),
    ):
        link.next_plan(after=0)


@pytest.mark.usefixtures("connected")
def test_news_is_waited_for_while_ray_cannot_reach_the_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with link_to(SilentForAWhile(UNREACHABLE, DEAF), monkeypatch) as link:
        eventually(lambda: link.announced() == PLAN, "news of the plan", DEADLINE_S)


@pytest.mark.usefixtures("connected")
def test_reports_are_sent_again_while_ray_cannot_reach_the_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = DeafSupervisor(UNREACHABLE)
    with link_to(supervisor, monkeypatch) as link:
        link.send(ENTERED)
        for _ in range(2):
            assert supervisor.asked.get(timeout=DEADLINE_S) == [ENTERED]


@pytest.mark.usefixtures("shut_down")
def test_a_process_that_is_shut_down_sends_no_report_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = DeafSupervisor(RaySystemError("The worker is shutting down."))
    with link_to(supervisor, monkeypatch) as link:
        link.send(ENTERED)
        link.send(ENDED)
    sent = [supervisor.asked.get_nowait()]
    while not supervisor.asked.empty():
        sent.append(supervisor.asked.get_nowait())
    assert [message for messages in sent for message in messages] == [ENTERED, ENDED]


def commit(step: int) -> StepCommit:
    return StepCommit(
        step=step,
        loss=1.0,
        num_tokens=8,
        gradient_norm=1.0,
        learning_rate=1e-3,
        generation=2,
        num_groups=3,
        shares=(Share((range(8),)),),
        pending_generation=2,
        checkpoint=0.0,
        up_to_date=(0, 1, 2),
    )


def test_the_first_step_of_a_newcomer_took_as_long_as_it_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = DeafSupervisor()
    with link_to(supervisor, monkeypatch) as link:
        # It still copies the states: it has not entered anything.
        link.committed(commit(7), 0.5)
        (first,) = supervisor.asked.get(timeout=DEADLINE_S)
        link.committed(commit(8), 100.0)
        (second,) = supervisor.asked.get(timeout=DEADLINE_S)
    assert isinstance(first, Committed)
    assert isinstance(second, Committed)
    assert first.step_s == pytest.approx(0.5)
    assert 0 < second.step_s < 5.0, "from commit to commit, whatever else happens between"


def test_rank_0_reports_a_step_for_all_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report costs milliseconds of the processors that train; all have voted for the step."""
    supervisor = DeafSupervisor()
    with link_to(supervisor, monkeypatch, rank=1) as link:
        link.committed(commit(7), 0.5)
        link.send(ENDED)
        assert supervisor.asked.get(timeout=DEADLINE_S) == [ENDED]
