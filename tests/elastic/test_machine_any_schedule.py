"""Any schedule of faults, requests and messages: what always holds, and that the run goes on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mics_core.elastic.events import GroupPhase, RunPhase
from tests.elastic.cluster_model import FINAL, ClusterModel
from tests.elastic.invariants import Life

pytestmark = pytest.mark.pure

# How often each thing happens: mostly the cluster works.
WEIGHTS = {
    "advance": 12,
    "deliver": 12,
    "deliver_again": 2,
    "restart_supervisor": 1,
    "crash_before_storing": 2,
    "crash_after_storing": 2,
    "pass_time": 3,
    "scale": 1,
    "bound": 1,
    "lose": 1,
    "fail": 1,
    "lose_reports": 1,
    "lose_while_copying": 1,
    "lose_in_commit": 1,
    "hang": 1,
    "wake": 1,
    "deafen": 1,
    "hear_again": 1,
    "drain": 1,
    "break": 1,
}
ACTIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
SCHEDULES = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 255)), min_size=40, max_size=100
)
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def act(cluster: ClusterModel, action: str, number: int) -> None:
    """Do one thing of a schedule, to the living group that `number` points at."""
    living = [g.group_id for g in cluster.groups.values() if g.life != Life.GONE or g.outbox]
    match action:
        case "deliver_again":
            cluster.deliver_again(number)
        case "restart_supervisor":
            cluster.restart_supervisor(number)
        case "pass_time":
            cluster.pass_time(float(number))
        case "scale":
            cluster.scale(number % 6 + 1)
        case "bound":
            cluster.scale(number // 4 % 6 + 1, minimum=number % 4 + 1)
        case "cancel":
            cluster.cancel()
        case "pause":
            cluster.pause()
        case _ if not living:
            pass
        case _:
            group_id = living[number % len(living)]
            match action:
                case "advance":
                    cluster.advance(group_id)
                case "deliver":
                    cluster.deliver(group_id)
                case "lose":
                    cluster.lose(group_id, own_error=False)
                case "fail":
                    cluster.lose(group_id, own_error=True)
                case "lose_reports":
                    cluster.lose_reports(group_id)
                case "crash_before_storing":
                    cluster.crash_before_storing(group_id, number)
                case "crash_after_storing":
                    cluster.crash_after_storing(group_id, number)
                case "lose_while_copying":
                    if cluster.groups[group_id].life == Life.CONNECTING:
                        cluster.lose_while_copying(group_id)
                case "lose_in_commit":
                    if cluster.groups[group_id].life == Life.TRAINING:
                        cluster.lose_in_commit(group_id)
                case "drain":
                    cluster.drain(group_id)
                case "hang":
                    cluster.hang(group_id)
                case "wake":
                    cluster.wake(group_id)
                case "deafen":
                    cluster.deafen(group_id)
                case "hear_again":
                    cluster.hear_again(group_id)
                case "break":
                    if cluster.groups[group_id].life == Life.TRAINING:
                        cluster.break_connections(group_id)


def check_failure_is_deserved(cluster: ClusterModel) -> None:
    if cluster.machine.phase != RunPhase.FAILED:
        return
    if "follows the data" in cluster.machine.reason:
        steps = Counter(step for _, step in cluster.own_errors)
        assert max(steps.values()) >= 2
    else:
        assert cluster.own_errors or cluster.num_failed_starts >= 4


@pytest.mark.long
@FEW
@given(st.integers(1, 5), st.integers(1, 3), st.booleans(), SCHEDULES)
def test_a_run_recovers_with_all_wanted_groups_from_whatever_happened(
    wanted: int, minimum: int, trains: bool, schedule: list[tuple[str, int]]
) -> None:
    cluster = ClusterModel(max(wanted, minimum), minimum, steps=None)
    if trains:
        cluster.begin()
    for action, number in schedule:
        act(cluster, action, number)
    cluster.recover()
    machine = cluster.machine
    check_failure_is_deserved(cluster)
    if machine.phase == RunPhase.FAILED:
        return
    assert machine.phase == RunPhase.RUNNING
    assert len(machine.members) == machine.wanted
    assert {machine.groups[member].phase for member in machine.members} == {GroupPhase.MEMBER}
    for member in machine.members:
        group = cluster.groups[member]
        assert (group.life, group.generation) == (Life.TRAINING, machine.generation)


@pytest.mark.long
@FEW
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.booleans(), SCHEDULES)
def test_a_run_finishes_once_the_cluster_is_healthy(
    wanted: int, minimum: int, steps: int, trains: bool, schedule: list[tuple[str, int]]
) -> None:
    cluster = ClusterModel(max(wanted, minimum), minimum, steps)
    if trains:
        cluster.begin()
    for action, number in schedule:
        act(cluster, action, number)
    cluster.recover()
    check_failure_is_deserved(cluster)
    assert cluster.machine.phase in (RunPhase.FINISHED, RunPhase.FAILED)


@pytest.mark.long
@FEW
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["cancel", "pause"]),
    SCHEDULES,
    SCHEDULES,
)
def test_a_run_that_is_cancelled_or_paused_ends_whatever_happens(
    wanted: int,
    minimum: int,
    request: str,
    before: list[tuple[str, int]],
    after: list[tuple[str, int]],
) -> None:
    cluster = ClusterModel(max(wanted, minimum), minimum, steps=6)
    for action, number in [*before, (request, 0), *after[:40]]:
        act(cluster, action, number)
    cluster.recover()
    machine = cluster.machine
    assert machine.phase in FINAL
    # What was not asked for is only what it had come to before, or could not be helped.
    asked = {"cancel": RunPhase.CANCELLED, "pause": RunPhase.PAUSED}[request]
    assert machine.phase in (asked, RunPhase.FINISHED, RunPhase.FAILED)


@pytest.mark.long
@FEW
@given(st.integers(1, 5), st.integers(1, 3), SCHEDULES)
def test_a_run_with_as_few_groups_as_it_may_have_trains_or_waits_for_more(
    wanted: int, minimum: int, schedule: list[tuple[str, int]]
) -> None:
    """The model checks that no generation has fewer groups than the bound of its time."""
    cluster = ClusterModel(max(wanted, minimum), minimum, steps=None)
    cluster.begin()
    for action, number in schedule:
        act(cluster, action, number)
        cluster.scale(cluster.machine.wanted, minimum=cluster.machine.wanted)
    cluster.recover()
    check_failure_is_deserved(cluster)
    machine = cluster.machine
    if machine.phase != RunPhase.FAILED:
        assert machine.phase == RunPhase.RUNNING
        assert len(machine.members) == machine.wanted == machine.rules.minimum
