"""What must hold of the partition groups themselves, whatever the machine decides and hears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from mics_core.elastic.events import Event


class Life(Enum):
    """What a group's processes do."""

    PLACING = auto()
    STARTING = auto()
    ASKING = auto()  # waits for a plan above `generation`
    CONNECTING = auto()
    TRAINING = auto()
    HUNG = auto()
    GONE = auto()


@dataclass(slots=True)
class SimGroup:
    """One partition group as it truly is.

    Args:
        history: The generation under which each step that its states hold was committed.
        heard: The newest generation that it has heard of.
        is_deaf: Whether news do not reach it at present.
        hung_in: What it did when its processes were stopped, if they are.
    """

    group_id: int
    has_state: bool
    life: Life = Life.PLACING
    generation: int = 0
    step: int = 0
    trained: int = 0
    history: tuple[int, ...] = ()
    heard: int = 0
    is_deaf: bool = False
    hung_in: Life | None = None
    outbox: list[Event] = field(default_factory=list)


class Invariants:
    """Checks them at each thing that happens.

    Args:
        groups: All groups.
        plans: The members of each generation that was announced, by number.
    """

    def __init__(self, groups: Mapping[int, SimGroup], plans: Sequence[tuple[int, ...]]):
        self._groups = groups
        self._plans = plans
        self.committed = 0
        """Steps that a group has committed, and whoever was told of them."""

    def check_generations(self) -> None:
        """One generation at a time commits steps, no group is in two, and there is one timeline."""
        training = [g for g in self._groups.values() if g.life == Life.TRAINING]
        numbers = {group.generation for group in training}
        able = [number for number in numbers if self._can_commit(number)]
        assert len(able) <= 1, f"generations {able} are in effect at once"
        for group in training:
            # Whoever was left behind may train an older one still, until its connections break.
            begun = [n for n in numbers if group.group_id in self._plans[n]]
            assert group.generation in begun, f"{group} is no member of the generation it trains"
            assert max(begun) == group.generation, f"{group} is also in generations {begun}"
        self._check_timeline()

    def _check_timeline(self) -> None:
        """Of two groups that go on, one holds all the steps of the other, and the very same."""
        histories = [g.history for g in self._groups.values() if self._goes_on_with(g, 0)]
        longest = max(histories, key=len, default=())
        for history in histories:
            assert history == longest[: len(history)], f"two timelines: {longest} and {history}"

    def can_commit_somewhere(self) -> bool:
        """Whether the members of a generation train: they tell of every step."""
        return any(map(self._can_commit, range(1, len(self._plans))))

    def _can_commit(self, number: int) -> bool:
        members = [self._groups[member] for member in self._plans[number]]
        return bool(members) and all(
            g.life == Life.TRAINING and g.generation == number for g in members
        )

    def check_commit(self, here: Sequence[SimGroup], number: int) -> None:
        """No commit without agreement: all members are there, with the same steps behind them."""
        assert {group.group_id for group in here} == set(self._plans[number])
        histories = {group.history for group in here if group.has_state}
        assert len(histories) == 1, f"members of generation {number} come from {histories}"

    def note_commit(self, step: int) -> None:
        """Take in that a group has committed a step; it has told so."""
        self.committed = max(self.committed, step + 1)

    def check_entry(self, newest: int) -> None:
        """Committed steps never go back while anybody goes on who holds them."""
        holders = [g for g in self._groups.values() if self._goes_on_with(g, self.committed)]
        assert newest >= self.committed or not holders, (newest, holders)
        self.committed = min(self.committed, newest)

    def check_stop(self, group: SimGroup) -> None:
        """Nobody ends the last group that holds the committed steps."""
        if self.committed and self._holds(group, self.committed):
            others = [g for g in self._groups.values() if g is not group]
            assert any(self._holds(other, self.committed) for other in others), group

    def check_leaves(self, members: Sequence[int]) -> None:
        """Nobody who holds states leaves of its own will unless one who stays does too.

        Who stays may have died or hang in secret: then who leaves is called back.
        """
        before = [self._groups[member] for member in self._plans[-1]]
        leaving = [g for g in before if g.group_id not in members and self._holds(g, 0)]
        staying = [self._groups[member] for member in members]
        all_live = all(group.life not in (Life.GONE, Life.HUNG) for group in staying)
        if staying and all_live and self.committed and leaving:
            assert any(self._holds(group, 0) for group in staying), leaving

    def _goes_on_with(self, group: SimGroup, step: int) -> bool:
        """Whether a group holds so many steps, and is not about to leave."""
        joined = any(group.group_id in plan for plan in self._plans)
        return self._holds(group, step) and (group.group_id in self._plans[-1] or not joined)

    @staticmethod
    def _holds(group: SimGroup, step: int) -> bool:
        lives = group.life not in (Life.GONE, Life.HUNG)
        return lives and group.has_state and group.step >= step
