"""What the loss of a group means for the run."""

from __future__ import annotations

from mics_core.elastic.events import GroupLost, GroupPhase, RunPhase
from mics_core.elastic.roster import Group
from mics_core.elastic.run_state import RunState

__all__ = ["lose"]


def lose(run: RunState, event: GroupLost, now: float) -> None:
    """Take in that a group is gone without being asked to; see [Note: back-off] in `replacements`.

    Args:
        run: The run.
        event: The loss.
        now: When.
    """
    group = run.living(event.group_id)
    if group is None:
        return
    before, reason = group.phase, event.reason
    # Whatever is left of it must not go on: its processes are ended even if they seem gone.
    run.remove(group, GroupPhase.LOST, reason)
    if run.ending is not None or before == GroupPhase.LEAVING:
        return
    run.replacements.vacate(group, reason)
    if before != GroupPhase.MEMBER:
        _note_failed_start(run, group, reason, event.own_error, now)
        return
    run.last_own_error = reason if event.own_error else ""
    run.replacements.note_loss(group, reason, event.own_error, now)
    if event.own_error and event.step is not None:
        why = run.fault.note(group, event.step, reason, len(run.members))
        if why:
            run.end(RunPhase.FAILED, why)


def _note_failed_start(
    run: RunState, group: Group, reason: str, own_error: bool, now: float
) -> None:
    starts = run.replacements.starts
    starts.fail(group.attempt, reason, own_error, now)
    if run.within(GroupPhase.MEMBER):
        return
    failed, most = starts.failed, run.rules.max_failed_starts
    error = f"The first error: {starts.first_error}"
    if failed < most:
        run.set_phase(
            run.phase,
            f"Attempt {failed} of {most} to start failed; the next begins after"
            f" {starts.pause_s:g} s. {error}",
        )
    elif not run.within(GroupPhase.STARTING):
        times = f", {failed} times in a row" if failed > 1 else ""
        run.end(RunPhase.FAILED, f"Groups could not start{times}. {error}")
