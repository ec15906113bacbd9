"""The policy of a run, and what the membership machine knows of each partition group."""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.elastic.events import GroupPhase

__all__ = ["ALIVE", "GONE", "JOINED", "Group", "Rules"]

GONE = (GroupPhase.LEFT, GroupPhase.LOST)
# In the order in which surplus groups are let go.
ALIVE = (GroupPhase.PLACING, GroupPhase.STARTING, GroupPhase.READY, GroupPhase.MEMBER)
JOINED = (GroupPhase.READY, GroupPhase.MEMBER)


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy of a run.

    Args:
        minimum: Fewer groups than this and the run waits; at least 1.
        wanted: Groups wanted at the start; never below `minimum`.
        start_grace_s: How long the first ready group waits for the others of the start that have
            their nodes.
        join_grace_s: How long the first group that is ready to join waits for others that have
            their nodes, so that they join together.
        settles_s: A member that is lost sooner after its first entry was lost early, see
            [Note: back-off].
        start_s: How long a group that has its nodes may take until its workers run, and then as
            long until they are ready; and all members for a first step that none has done before.
        silence_s: How long a member may take to answer after its generation broke under others.
        first_step_s: How long if it was at its first step under that generation, and a group there
            at the first that it computes at all, of which nothing can be foretold: it may be
            compiling.
        quiet_s: How long all members may say nothing for a reason: they wait for a checkpoint.
        max_failed_starts: Attempts in a row to start groups that may fail, with no group alive
            that trains, until the run is given up. Groups launched side by side are one attempt.
        back_off_s: Pause after the first failed attempt; it doubles with each further one.
        max_back_off_s: Longest pause.
    """

    minimum: int
    wanted: int
    start_grace_s: float = 20.0
    join_grace_s: float = 2.0
    settles_s: float = 10.0
    start_s: float = 600.0
    silence_s: float = 60.0
    first_step_s: float = 120.0
    quiet_s: float = 0.0
    max_failed_starts: int = 3
    back_off_s: float = 1.0
    max_back_off_s: float = 60.0


@dataclass(slots=True)
class Group:
    """What the machine knows of one partition group.

    Args:
        group_id: Its id, never used twice.
        phase: Where it stands.
        reason: Why it stands there.
        holds_state: Whether others could copy from it, see [Note: who holds the state] in
            `mics_core.elastic.settling`.
        attempt: Attempts to start a group that had failed in a row when it was launched.
        lineage: The first of the groups that replaced each other, of which it is the last.
        early_losses: Members that had been lost early in a row when it was launched.
        starting_since: When it had its nodes, or later when its workers ran.
        has_started: Whether all its workers run.
        ready_at: When its workers were ready.
        member_since: When it entered a generation for the first time.
        joined: First generation that names it; 0 before.
        met: Newest generation that somebody has entered of which it is a member: it was there, for
            all have to be.
        entered: Newest generation that it has entered.
        trained: Newest generation under which it has done a step.
        broke: Newest generation that it reports broken.
        copied: Whether it says that it copied all states before its generation broke.
        draining: Why a node of it is to be taken away; empty if none is.
    """

    group_id: int
    phase: GroupPhase
    reason: str
    holds_state: bool
    attempt: int
    lineage: int
    early_losses: int = 0
    starting_since: float = 0.0
    has_started: bool = False
    ready_at: float = 0.0
    member_since: float = 0.0
    joined: int = 0
    met: int = 0
    entered: int = 0
    trained: int = 0
    broke: int = 0
    copied: bool = False
    draining: str = ""

    @property
    def holds_states_of_the_run(self) -> bool:
        """Whether it holds what was trained, rather than what a run begins with."""
        return self.holds_state and (self.entered > 0 or self.copied)
