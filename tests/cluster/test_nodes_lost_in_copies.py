"""The nodes at both ends of a copy are lost while it is under way, raylets and all.

A source is stopped between two pieces of what it sends, so that the copy cannot be over.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks.miniature.points import FailAt
from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState
from tests.cluster.conftest import StartJob
from tests.cluster.outcomes import (
    check_that_it_lived_on,
    check_the_run,
    lost_of,
    members_of,
    num_groups_now,
    pid_of_victim,
    train_until,
    wait_for,
)
from tests.cluster.running import RunningJob, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NUM_NODES = 2
STEPS = 30
SOURCE = FailAt(group=0, rank=0, step=-1, phase="copy out", stops=True)


@dataclass(frozen=True)
class Copied:
    job: RunningJob
    pids_of_survivor: list[int]
    pids_of_source: list[int]


@pytest.fixture(scope="module")
def copied(cluster: LocalCluster, start_job: StartJob) -> Copied:
    """Three groups, each of which fills a node; the last one comes when the others train."""
    job = start_job(STEPS, faults=[SOURCE], groups={"minimum": 1, "wanted": 2, "maximum": 3})
    job.train_to(0)
    assert num_groups_now(job) == 2, "one of them would be a newcomer"
    sources, survivors = job.pids(0), job.pids(1)
    newcomers_node = cluster.add_node()
    job.scale(3)
    wait_for(job, 2, GroupState.READY)
    assert job.node_of(2) == newcomers_node
    job.control.allow(job.control.allowed + 3)  # it joins when one has begun and ended
    eventually(lambda: pid_of_victim(job, SOURCE), "a copy under way", 60.0)
    for node in (newcomers_node, job.node_of(0)):
        cluster.kill_node(node)
    for group in (0, 2):
        wait_for(job, group, GroupState.LOST)
    job.scale(2)  # nobody is to come in the newcomer's place
    job.train_until(lambda job: num_groups_now(job) == 1, "a step of the group that is left")
    cluster.add_node()
    wait_for(job, 3, GroupState.READY)
    train_until(job, 3, GroupState.MEMBER)
    job.train_to_the_end()
    return Copied(job, survivors, sources)


def test_a_copy_whose_nodes_are_lost_at_both_ends_changes_nothing(copied: Copied) -> None:
    check_the_run(copied.job)
    check_that_it_lived_on(copied.job, 1, copied.pids_of_survivor)
    assert lost_of(copied.job) == [0, 2]


def test_the_newcomer_of_a_broken_copy_never_trains(copied: Copied) -> None:
    job = copied.job
    assert pid_of_victim(job, SOURCE) == copied.pids_of_source[SOURCE.rank]
    assert not job.group_events(2, GroupState.MEMBER)
    assert members_of(job)[0] == [0, 1]
    assert [0, 1, 2] in members_of(job), "it was copying"


def test_a_later_newcomer_copies_from_who_is_left(copied: Copied) -> None:
    job = copied.job
    assert job.group_events(3, GroupState.MEMBER)
    assert members_of(job)[-1] == [1, 3]
