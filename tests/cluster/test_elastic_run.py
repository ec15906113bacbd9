"""One run in which a group joins, a node is lost and a group leaves, beside one plain process."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import pytest
import ray

from mics_core.cluster.local import LocalCluster
from mics_core.cluster.runner import PartitionGroupRunner
from mics_core.cluster.supervisor import JobSupervisor
from mics_core.spec.status import (
    GenerationEvent,
    GroupEvent,
    GroupState,
    JobEvent,
    JobState,
    JobStatus,
    RegroupEvent,
    StepRecord,
)
from tests.cluster.conftest import StartJob
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, gold_losses
from tests.cluster.recording_data import Reads
from tests.cluster.remote_calls import read_calls

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_NODES = 3
STEPS = 170
NUM_STEADY = 101
NUM_MICRO_BATCHES = GLOBAL_BATCH_SIZE // 2


@dataclass(frozen=True)
class Story:
    """What happened."""

    status: JobStatus
    returned: JobState | None
    events: list[JobEvent]
    steps: list[StepRecord]
    reads: Reads
    pids_at_start: list[int]
    parents: list[str]
    pids_of_killed_node: list[int]
    killed_at: int
    tasks: set[str]
    """Of Ray's own list, by the names of their methods."""

    @property
    def contributes_from(self) -> int:
        """The first step with three groups."""
        return next(step.step for step in self.steps if step.num_groups == 3)

    def pids(self, group_id: int) -> list[int]:
        return [worker.pid for worker in self.status.groups[group_id].workers]


@pytest.fixture(scope="module")
def story(cluster: LocalCluster, start_job: StartJob) -> Story:
    """Two groups train; one more joins, the node of the second is lost, and the third leaves."""
    job = start_job(STEPS)
    job.train_to(2)
    pids_at_start = job.pids(0)
    workers = [psutil.Process(pid) for group in (0, 1) for pid in job.pids(group)]
    parents = [parent.cmdline()[0] for worker in workers if (parent := worker.parent())]
    job.scale(3)
    job.train_to(5)
    job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a third group that is ready")
    job.train_until(
        lambda job: job.group_events(2, GroupState.MEMBER), "the entry of the third group"
    )
    job.train_to(job.control.allowed + 2)
    # All workers are held while they read the next step, or will be.
    killed_at = job.control.allowed + 1
    pids_of_killed_node = cluster.kill_node(job.node_of(1))
    job.train_to(killed_at + NUM_STEADY + 1)
    job.scale(1)
    job.train_until(lambda job: job.has_entered(0), "the generation without group 2")
    status = job.train_to_the_end()
    return Story(
        status=status,
        returned=job.returned,
        events=job.events,
        steps=job.steps,
        reads=Reads(job.control.folder, STEPS, GLOBAL_BATCH_SIZE),
        pids_at_start=pids_at_start,
        parents=parents,
        pids_of_killed_node=pids_of_killed_node,
        killed_at=killed_at,
        tasks={event["name"] for event in ray.timeline()},
    )


def test_the_run_finishes_with_the_group_that_is_left(story: Story) -> None:
    assert (story.status.state, story.returned) == (JobState.FINISHED, JobState.FINISHED)
    assert story.status.reason == "All steps are done."
    assert story.steps[-1].num_groups == 1


def test_every_loss_is_that_of_one_undisturbed_process(story: Story) -> None:
    gold = gold_losses(STEPS)
    assert [step.loss for step in story.steps] == pytest.approx(gold, rel=1e-5)
    assert gold[-1] < 0.8 * gold[0], "nothing was learned, so equal losses prove little"


def test_every_step_is_committed_once_and_in_order(story: Story) -> None:
    assert [step.step for step in story.steps] == list(range(STEPS))


def test_the_events_are_numbered_without_a_gap(story: Story) -> None:
    numbers = [event.sequence for event in story.events]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_ledger_counts_every_sample_once(story: Story) -> None:
    samples = story.status.samples
    assert (samples.due, samples.used) == (STEPS * GLOBAL_BATCH_SIZE, STEPS * GLOBAL_BATCH_SIZE)
    assert samples.repeated == 0


def test_the_workers_that_committed_a_step_read_each_of_its_samples_exactly_once(
    story: Story,
) -> None:
    """Seen by the data itself, and also of the step that a loss broke: it went on."""
    groups_of = {record.number: record.groups for record in story.status.generations}
    for step in story.steps:
        groups = groups_of[step.generation]
        if step.step < story.contributes_from:
            groups = [group for group in groups if group != 2]  # it copies, and reads nothing
        assert step.num_groups == len(groups)
        members = [pid for group in groups for pid in story.pids(group)]
        reads = [story.reads.of_step(step.step, pid) for pid in members]
        assert all(reads), f"a member of step {step.step} read nothing: {reads}"
        read = sorted(place for of_member in reads for place in of_member)
        assert read == list(range(GLOBAL_BATCH_SIZE)), f"step {step.step}: {reads}"


def test_no_sample_is_read_for_nothing(story: Story) -> None:
    """Over all processes: the lost ones had read nothing yet of the step that they were lost in."""
    once = list(range(GLOBAL_BATCH_SIZE))
    assert [step for step in range(STEPS) if story.reads.of_step(step) != once] == []


def test_the_survivors_are_the_processes_of_the_start(story: Story) -> None:
    assert story.pids(0) == story.pids_at_start
    assert all(story.reads.of_step(0, pid) for pid in story.pids_at_start)
    assert all(story.reads.of_step(STEPS - 1, pid) for pid in story.pids_at_start)


def test_workers_are_forks_of_the_templates_of_their_nodes(story: Story) -> None:
    assert story.parents == ["mics-elastic: template of workers"] * 4


def test_the_loss_of_a_node_is_the_loss_of_its_processes(story: Story) -> None:
    assert set(story.pids(1)) <= set(story.pids_of_killed_node)
    assert not any(psutil.pid_exists(pid) for pid in story.pids(1))
    group = story.status.groups[1]
    assert group.state == GroupState.LOST
    where = f"on node {group.workers[0].node_id[:8]}"
    assert group.reason in [
        f"The process of rank {rank} {where} is gone: its connection closed." for rank in (0, 1)
    ]


def test_every_generation_has_its_members_its_first_step_and_its_reason(story: Story) -> None:
    first, second, third, fourth = story.status.generations
    assert (first.groups, first.step) == ([0, 1], 0)
    assert first.reason == "Training begins with groups 0 and 1."
    assert second.groups == [0, 1, 2]
    assert second.reason == "Group 2 joins."
    assert (third.groups, third.step) == ([0, 2], story.killed_at)
    lost = story.status.groups[1].reason
    assert third.reason == f"Group 1 was lost: {lost}"
    assert fourth.groups == [0]
    assert fourth.reason == f"Group 2 leaves: {story.status.groups[2].reason}"


def test_scaling_down_lets_the_youngest_group_leave(story: Story) -> None:
    group = story.status.groups[2]
    assert group.state == GroupState.LEFT
    assert group.reason == "1 partition group is wanted: Its follower asks for it."


def test_every_change_of_membership_says_what_its_phases_took(story: Story) -> None:
    changes = [event for event in story.events if isinstance(event, RegroupEvent)]
    assert [(change.generation, change.step) for change in changes] == [
        (generation.number, generation.step) for generation in story.status.generations
    ]
    start, join, loss, leave = (change.phases for change in changes)
    assert (start.detect_s, start.copy_s, start.redo_s) == (None, None, None)
    assert (join.detect_s, join.redo_s) == (None, None)
    assert join.copy_s is not None
    assert loss.copy_s is None
    assert loss.detect_s is not None
    assert loss.redo_s is not None
    assert (leave.detect_s, leave.copy_s, leave.redo_s) == (None, None, None)
    for phases in (start, join, loss, leave):
        assert all(seconds >= 0 for _, seconds in phases if seconds is not None)
        # Members meet at once; what they wait for before is their own step.
        assert phases.connect_s < 5.0


def test_the_survivors_of_a_loss_say_how_much_of_the_step_they_kept(story: Story) -> None:
    changes = [event for event in story.events if isinstance(event, RegroupEvent)]
    start, join, loss, leave = (change.kept for change in changes)
    assert (start, join, leave) == (None, None, None)
    # Of three groups the lost one had a third; each of the others was at its first micro-batch.
    assert loss is not None
    assert 2 / NUM_MICRO_BATCHES <= loss <= 2 / 3


def test_steps_name_the_generation_that_was_entered_before_them(story: Story) -> None:
    starts = [record.step for record in story.status.generations]
    assert None not in starts
    for step in story.steps:
        number = sum(start <= step.step for start in starts if start is not None)
        assert step.generation == number


def test_a_newcomer_has_its_share_once_it_holds_the_states(story: Story) -> None:
    first = story.contributes_from
    member = next(
        event
        for event in story.events
        if isinstance(event, GroupEvent) and (event.group_id, event.state) == (2, GroupState.MEMBER)
    )
    assert member.reason == f"It trains since step {first} (generation 2)."
    begins = story.status.generations[1].step
    assert begins is not None
    # The members train on while it copies: the step that it joins with is theirs alone.
    assert begins < first <= story.killed_at


def test_every_step_took_time_whoever_told_of_it_first(story: Story) -> None:
    """Also those of which a newcomer told first, which had committed none before."""
    assert all(step.step_s > 0 and step.tokens_per_s > 0 for step in story.steps)


def test_no_remote_call_is_on_the_path_of_a_steady_step(story: Story) -> None:
    for pid in story.pids(0):
        calls = read_calls(story.reads.folder, pid)
        begin = story.killed_at + 1
        steady = [calls[step] for step in range(begin, begin + NUM_STEADY)]
        assert set(steady) == {steady[0]}, f"a call was made between two of {NUM_STEADY} steps"
        assert calls[0] == 1, "the counter does not count"


def test_reports_of_steps_are_not_in_rays_list_of_tasks(story: Story) -> None:
    """They are thousands, each costs its sender, and nobody looks for them there."""
    assert PartitionGroupRunner.prepare.__name__ in story.tasks, "there is no such list"
    of_supervisor = (JobSupervisor.report, JobSupervisor.newest_generation, JobSupervisor.lifeline)
    assert story.tasks.isdisjoint(method.__name__ for method in of_supervisor)


def test_the_others_train_on_while_a_group_starts(story: Story) -> None:
    """Steps 3 to 5 are committed between the request and the announcement of the new member."""
    steps = [event.sequence for event in story.events if getattr(event, "record", None)]
    announced = next(
        event.sequence
        for event in story.events
        if isinstance(event, GenerationEvent) and event.generation.number == 2
    )
    scaled = next(event.sequence for event in story.events if event.kind == "scale")
    assert sum(scaled < sequence < announced for sequence in steps) >= 3
