"""What follows from the state of a run: launches, generations, and the end.

[Note: who holds the state]
Until a group has entered a generation, every group is launched to begin the run, and any of them
will do. From then on new groups are launched to copy, and so must those that were launched before
and come late. A group holds the trained state once it has entered a generation, or says when one
broke that its copy was whole, until it reports that a copy broke under it. A joiner that was
announced may have copied already, and is believed to until it says that the generation broke under
it. When all who may hold the state are gone, the machine calls back a leaving group that does;
without one the groups that waited to copy are useless and the run begins again, unless the last
holder failed by its own error, which would only repeat itself. Before that an error may end the run
that one step brings about in group after group, see [Note: what is evidence].

[Note: the end of the run]
Every ending is told to the groups first and declared when the last of them is gone. The members
learn of it from an empty generation. A run that finishes needs none as a rule, for all members
commit the last step together. If that step broke under one of them, after others committed it and
ended, its peers are gone for good: it is told to leave.
"""

from __future__ import annotations

from mics_core.elastic.events import GroupLost, GroupPhase, RunPhase, SetRunPhase
from mics_core.elastic.losses import lose
from mics_core.elastic.replacements import Vacancy
from mics_core.elastic.roster import ALIVE, GONE, JOINED, Group
from mics_core.elastic.run_state import STOPS, RunState
from mics_core.elastic.wording import counted, named, why_groups_come, why_members_go

__all__ = ["settle"]


def settle(run: RunState, now: float) -> None:
    """Decide what follows from the state that an event left.

    Args:
        run: The run.
        now: The time.
    """
    if run.ending is None:
        _keep_the_state(run)
    if run.ending is None and run.why_wanted:
        _match_wanted(run, now)
        _let_the_draining_go(run)
        _form_generation(run, now)
        if run.phase == RunPhase.RUNNING:
            run.set_phase(RunPhase.RUNNING, run.training(now))
    if run.ending is not None:
        _wind_down(run, run.ending)


def _keep_the_state(run: RunState) -> None:
    """See [Note: who holds the state]."""
    if not run.has_trained or any(_may_hold(run, group) for group in run.within(*JOINED)):
        return
    leaving = [g for g in run.within(GroupPhase.LEAVING) if g.holds_states_of_the_run]
    if leaving:
        run.move(
            leaving[0].group_id,
            GroupPhase.MEMBER,
            "It is called back: no other group holds the model states.",
        )
    elif run.last_own_error:
        run.end(
            RunPhase.FAILED,
            f"No group is left, and the last one failed: {run.last_own_error}",
        )
    else:
        _begin_again(run)


def _may_hold(run: RunState, group: Group) -> bool:
    is_unheard = group.group_id in run.members and group.broke < run.generation
    return is_unheard or group.holds_states_of_the_run


def _begin_again(run: RunState) -> None:
    reason = "Every group that held the model states is lost, so the run begins again."
    for group in run.within(*ALIVE):
        # A group that has built its states did so before the newest checkpoint, maybe.
        if not group.holds_state or group.phase != GroupPhase.PLACING:
            run.remove(group, GroupPhase.LEFT, reason)
            run.replacements.vacancies.append(Vacancy(reason))
        group.joined = 0
    run.members, run.has_trained = (), False
    run.rebuilding.begin_run_again()
    run.set_phase(RunPhase.WAITING, reason)


def _match_wanted(run: RunState, now: float) -> None:
    alive = [group for group in run.within(*ALIVE) if not group.draining]
    surplus = _surplus(alive, len(alive) - run.wanted)
    stay = [group for group in _up_to_date(run) if group not in surplus]
    for group in surplus:
        verb = "is" if run.wanted == 1 else "are"
        reason = f"{counted(run.wanted)} {verb} wanted: {run.why_wanted}"
        if not group.joined:
            run.remove(group, GroupPhase.LEFT, reason)
        elif stay or not run.has_trained:
            run.move(group.group_id, GroupPhase.LEAVING, reason)
    missing = max(0, run.wanted - len(alive))
    for vacancy in run.replacements.due(missing, run.why_wanted, now):
        run.launch(vacancy)


def _let_the_draining_go(run: RunState) -> None:
    """Let groups on draining nodes leave, as soon as the others can train on without them.

    Their nodes' time may run out before; then they are lost, as without a notice.
    """
    stay = [group for group in _up_to_date(run) if not group.draining]
    for group in run.within(*ALIVE):
        if group.draining and not group.joined:
            run.remove(group, GroupPhase.LEFT, group.draining)
        elif group.draining and len(stay) >= run.rules.minimum:
            run.move(group.group_id, GroupPhase.LEAVING, group.draining)


def _up_to_date(run: RunState) -> list[Group]:
    """Return the members that hold the newest states for sure; one must stay when others leave."""
    if any(group.phase in GONE for group in run.newest_groups):
        return []
    newest = run.rebuilding.newest(run.newest_groups, run.generation)
    return [group for group in newest if group.phase == GroupPhase.MEMBER]


def _surplus(alive: list[Group], number: int) -> list[Group]:
    """Choose who goes: first those that do not train yet, then the youngest."""
    if number <= 0:
        return []
    order = sorted(alive, key=lambda group: (ALIVE.index(group.phase), -group.group_id))
    return order[:number]


def _form_generation(run: RunState, now: float) -> None:
    # Survivors keep their order, so that their micro-batches move as little as can be.
    staying = [member for member in run.members if run.groups[member].phase in JOINED]
    known = set(staying)
    new = [group for group in run.within(*JOINED) if group.group_id not in known]
    wished = (*staying, *(group.group_id for group in new))
    why_gone = why_members_go(run.newest_groups)
    if not staying and not run.has_trained:
        run.members = ()  # whoever was to begin is gone: it is a start as the first was
    if not run.members:
        if _start_is_due(run, new, now):
            again = " again" if run.generation else ""
            run.announce(wished, f"Training begins{again} with {named(wished)}.")
    elif wished == run.members:
        _rebuild_if_broken(run, now)
    elif len(wished) < run.rules.minimum:
        # A bound that was raised does not stop the members of a generation that it came after.
        if not _trains_on(run, len(staying)):
            _wait_for_more(run, len(wished), why_gone, now)
    elif not _must_wait(run, len(staying), new, now):
        run.announce(wished, f"{why_gone} {why_groups_come(new)}".strip())


def _trains_on(run: RunState, num_staying: int) -> bool:
    """Whether all members of the newest generation are there, and none says that it broke."""
    return num_staying == len(run.members) and not run.rebuilding.told


def _wait_for_more(run: RunState, num_ready: int, why: str, now: float) -> None:
    verb = "is" if num_ready == 1 else "are"
    reason = f"{counted(num_ready)} {verb} ready, {run.rules.minimum} needed."
    parts = (reason, why, run.replacements.pause(now))
    run.set_phase(RunPhase.WAITING, " ".join(part for part in parts if part))


def _must_wait(run: RunState, num_staying: int, new: list[Group], now: float) -> bool:
    """Whether newcomers wait, which they do only while the members train without them.

    A change of members would begin the copies of others anew. And groups that come at the same
    moment are to join together: the first waits a little for those that start.
    """
    if not _trains_on(run, num_staying):
        return False
    if any(run.groups[member].entered < run.generation for member in run.members):
        return True
    waited_s = now - min(group.ready_at for group in new)
    return bool(run.within(GroupPhase.STARTING)) and waited_s < run.rules.join_grace_s


def _start_is_due(run: RunState, ready: list[Group], now: float) -> bool:
    """Whether to begin with the groups that are there, or to wait for those that start.

    Groups without a node are not waited for: nobody knows when there will be one.
    """
    if len(ready) < run.rules.minimum:
        return False
    if len(ready) >= run.wanted or not run.within(GroupPhase.STARTING):
        return True
    return now - min(group.ready_at for group in ready) >= run.rules.start_grace_s


def _rebuild_if_broken(run: RunState, now: float) -> None:
    """See [Note: members that meet again] in `mics_core.elastic.rebuilding`."""
    members = run.newest_groups
    broken_for_s = run.silence.broken_for_s(run.generation, now)
    if not run.rebuilding.is_due(members, run.generation, broken_for_s):
        return
    cause, shut_out = run.rebuilding.cause(members), run.rebuilding.shut_out(members)
    if shut_out:
        for group_id in shut_out:
            lose(run, GroupLost(group_id, f"It cannot join the others. {cause}"), now)
        _form_generation(run, now)
    elif len(members) < run.rules.minimum:
        _wait_for_more(run, len(members), cause, now)
    elif must_wait := run.rebuilding.begin(members, now):
        run.set_phase(RunPhase.WAITING, f"{must_wait} {cause}")
    else:
        reason = f"All groups are alive, but their connections broke. {cause}"
        run.announce(run.members, reason)


def _wind_down(run: RunState, ending: SetRunPhase) -> None:
    """Tell the members, and declare the end once no group is left."""
    remaining = run.within(*ALIVE, GroupPhase.LEAVING)
    if not remaining:
        run.set_phase(ending.phase, ending.reason)
    elif run.members and (ending.phase in STOPS or any(_is_stranded(run, g) for g in remaining)):
        run.announce((), ending.reason)


def _is_stranded(run: RunState, group: Group) -> bool:
    """Whether a group cannot finish with the others, for they have ended or went on."""
    return group.phase == GroupPhase.MEMBER and (
        group.entered < run.generation or group.group_id in run.rebuilding.told
    )
