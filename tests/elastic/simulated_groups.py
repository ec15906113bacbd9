"""Partition groups in pure Python that live as `engine.loop` makes them live, and die of faults."""

from __future__ import annotations

from mics_core.elastic.events import (
    GroupBroken,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPlaced,
    GroupReady,
    GroupStarted,
    GroupTrained,
)
from tests.elastic.invariants import Invariants, Life, SimGroup


class SimulatedGroups:
    """All groups of a run, and the generations that were announced to them.

    Args:
        steps: Steps of the run; none for a run that does not end by itself.
    """

    def __init__(self, steps: int | None):
        self.steps = steps
        self.groups: dict[int, SimGroup] = {}
        self.plans: list[tuple[int, ...]] = [()]
        self.announced: set[int] = set()
        """Groups that were in any of them."""
        self.invariants = Invariants(self.groups, self.plans)
        self.own_errors: set[tuple[int, int]] = set()  # group and step
        self.num_failed_starts = 0

    def advance(self, group_id: int) -> bool:
        """Let a group do the next thing that it can do; return whether there was one."""
        moved = self._advance(group_id)
        self.invariants.check_generations()
        return moved

    def _advance(self, group_id: int) -> bool:
        group = self.groups[group_id]
        match group.life:
            case Life.PLACING:
                group.life = Life.STARTING
                group.outbox.append(GroupPlaced(group_id))
            case Life.STARTING:
                group.life = Life.ASKING
                group.outbox += [GroupStarted(group_id), GroupReady(group_id)]
            case Life.ASKING:
                return self._take_plan(group)
            case Life.CONNECTING:
                return self._connect(group.generation)
            case Life.TRAINING if not group.has_state:
                return self._arrive(group)
            case Life.TRAINING:
                return self._train(group.generation)
            case _:
                return False
        return True

    def announce(self, members: tuple[int, ...]) -> None:
        """Announce a generation; whom the news do not reach hears of it later."""
        self.plans.append(members)
        self.announced.update(members)
        for group in self.groups.values():
            self._hear(group)

    def _hear(self, group: SimGroup) -> None:
        if not group.is_deaf and group.life != Life.HUNG:
            group.heard = len(self.plans) - 1

    def _take_plan(self, group: SimGroup) -> bool:
        self._hear(group)  # it asks
        number = group.heard
        is_member = group.group_id in self.plans[number]
        has_joined = any(group.group_id in plan for plan in self.plans[: number + 1])
        if number <= group.generation or not has_joined:
            return False
        if is_member:
            group.life, group.generation = Life.CONNECTING, number
        else:
            self._end(group, finished=False)
        return True

    def _connect(self, number: int) -> bool:
        """Enter a generation whose members are all there, or leave one that is superseded."""
        members = [self.groups[member] for member in self.plans[number]]
        here = [group for group in members if self._is_in(group, Life.CONNECTING, number)]
        if leaving := [group for group in here if group.heard > number]:
            self._break(leaving, number)
            return True
        if len(here) < len(members):
            return False
        holders = [group for group in here if group.has_state]
        if not holders:
            self._break(here, number)
            return True
        newest = max(group.step for group in holders)
        self.invariants.check_entry(newest)
        for group in here:
            # Who is behind listens, and enters when the copy has arrived.
            group.has_state = group.has_state and group.step == newest
            group.life, group.step = Life.TRAINING, newest
            if group.has_state:
                group.outbox.append(GroupEntered(group.group_id, number, newest))
        return True

    def _arrive(self, group: SimGroup) -> bool:
        """Let a group that is behind hold the states of its peers, if they still train."""
        members = [self.groups[member] for member in self.plans[group.generation]]
        here = [g for g in members if self._is_in(g, Life.TRAINING, group.generation)]
        if len(here) < len(members):
            return self._train(group.generation)
        source = next((other for other in here if other.has_state), None)
        if source is None:
            return self._train(group.generation)
        group.has_state, group.history = True, source.history
        group.outbox.append(GroupEntered(group.group_id, group.generation, group.step))
        return True

    def _train(self, number: int) -> bool:
        """Commit a step, or break if a member is not there any more."""
        members = [self.groups[member] for member in self.plans[number]]
        here = [group for group in members if self._is_in(group, Life.TRAINING, number)]
        if len({group.step for group in here}) > 1 or len(here) < len(members):
            self._break(here, number)
            return True
        has_trained = all(group.trained == number for group in here)
        # What one has heard of all hear with the step.
        heard = max(group.heard for group in here)
        if self.steps is None and number == heard and has_trained:
            return False  # one step is like another
        self.invariants.check_commit(here, number)
        for group in here:
            group.heard = heard
            self._commit(group)
        return True

    def _commit(self, group: SimGroup) -> None:
        self.invariants.note_commit(group.step)
        group.step += 1
        if group.has_state:
            group.history = (*group.history, group.generation)
            if group.trained < group.generation:
                group.trained = group.generation
                group.outbox.append(GroupTrained(group.group_id, group.generation))
        if group.step == self.steps:
            self._end(group, finished=True)
        elif group.generation < group.heard:
            group.life = Life.ASKING

    def _break(self, here: list[SimGroup], number: int) -> None:
        for group in here:
            group.life = Life.ASKING
            group.outbox.append(
                GroupBroken(group.group_id, number, group.step, "closed", group.has_state)
            )

    def _end(self, group: SimGroup, *, finished: bool) -> None:
        group.life = Life.GONE
        group.outbox.append(GroupEnded(group.group_id, finished))

    @staticmethod
    def _is_in(group: SimGroup, life: Life, number: int) -> bool:
        return group.life == life and group.generation == number

    # Faults.

    def lose(self, group_id: int, *, own_error: bool) -> None:
        """Kill a group; the supervisor hears of it later."""
        group = self.groups[group_id]
        if group.life != Life.GONE:
            step = group.step if own_error else None
            if own_error:
                self.own_errors.add((group_id, group.step))
            self.num_failed_starts += group.life != Life.TRAINING
            group.life = Life.GONE
            group.outbox.append(GroupLost(group_id, "Its node is gone.", own_error, step))

    def lose_reports(self, group_id: int) -> None:
        """Kill a group before it has sent what it has to tell: that is never heard."""
        if self.groups[group_id].life != Life.GONE:
            self.groups[group_id].outbox.clear()
            self.lose(group_id, own_error=False)

    def lose_while_copying(self, group_id: int) -> None:
        """Kill a member in the middle of a copy: those that were behind hold nothing now."""
        number = self.groups[group_id].generation
        self.lose(group_id, own_error=False)
        here = [g for g in self.groups.values() if self._is_in(g, Life.CONNECTING, number)]
        newest = max((group.step for group in here if group.has_state), default=0)
        for group in here:
            group.has_state = group.has_state and group.step == newest
        self._break(here, number)

    def lose_in_commit(self, group_id: int) -> None:
        """Kill a member in the second hop: some commit the step, others do not."""
        number = self.groups[group_id].generation
        others = [g for g in self.groups.values() if self._is_in(g, Life.TRAINING, number)]
        if len({group.step for group in others}) == 1:
            self.lose(group_id, own_error=False)
            for group in others[::2]:
                if group.life == Life.TRAINING:
                    self._commit(group)

    def hang(self, group_id: int) -> None:
        """Stop a group's processes without ending them."""
        group = self.groups[group_id]
        if group.life in (Life.ASKING, Life.CONNECTING, Life.TRAINING):
            self.num_failed_starts += group.life != Life.TRAINING
            group.hung_in, group.life = group.life, Life.HUNG

    def wake(self, group_id: int) -> None:
        """Let the processes of a group that was stopped go on where they were."""
        group = self.groups[group_id]
        if group.life == Life.HUNG and group.hung_in is not None:
            group.life = group.hung_in
            self.num_failed_starts -= group.life != Life.TRAINING
        group.hung_in = None

    def deafen(self, group_id: int) -> None:
        """Let no news reach a group, until it hears again."""
        self.groups[group_id].is_deaf = True

    def hear_again(self, group_id: int) -> None:
        """Let news reach a group again, and tell it what it has missed."""
        self.groups[group_id].is_deaf = False
        self._hear(self.groups[group_id])

    def break_connections(self, group_id: int) -> None:
        """Cut the connections of a training group."""
        number = self.groups[group_id].generation
        self._break(
            [g for g in self.groups.values() if self._is_in(g, Life.TRAINING, number)], number
        )
