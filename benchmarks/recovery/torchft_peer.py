"""torchft under fire: three groups of two workers, a lighthouse, and the faults of groups.

It has no nodes of its own: a killed node is a group that is lost together with its launcher, which
comes back before the next fault; an added one is a third group beside two.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from benchmarks.harness.environments import PeerEnvironment
from benchmarks.harness.factory import tail_of
from benchmarks.harness.followed import MissingError, eventually
from benchmarks.recovery.commits import Change, cost_of_change, cost_of_loss, normal_s
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome
from benchmarks.recovery.setting import NUM_GROUPS, PARTITION_SIZE, groups_before
from benchmarks.recovery.shots import Report, Shots
from benchmarks.recovery.starts import take_part
from benchmarks.recovery.steps import StepFolder, StepLine
from benchmarks.recovery.torchft_env import VERSION, prepare_torchft
from benchmarks.recovery.torchft_groups import Group, Lighthouse

__all__ = ["TUNED", "VERSION", "run_as_it_comes", "run_tuned"]

TUNED = ("--heartbeat_timeout_ms", "1000")
"""It comes with 5000."""

_Found = TypeVar("_Found")


def run_as_it_comes(shots: Shots, report: Report) -> None:
    """Do all faults to one run of torchft's defaults, and report what each cost."""
    _run(shots, report, ())


def run_tuned(shots: Shots, report: Report) -> None:
    """Do the same with a lighthouse that misses heartbeats sooner."""
    _run(shots, report, TUNED)


def _run(shots: Shots, report: Report, options: Sequence[str]) -> None:
    environment = prepare_torchft()
    with (
        Lighthouse(environment, options, shots.folder / "lighthouse.log") as lighthouse,
        _Groups(environment, lighthouse.address, shots) as groups,
    ):
        shots.inflict(_Shooting(groups, shots).inflict, report)


class _Groups:
    """The groups that are there; a context manager that ends them.

    Args:
        environment: Where torchft is.
        lighthouse: Its address.
        shots: What to do, and the folder.
    """

    def __init__(self, environment: PeerEnvironment, lighthouse: str, shots: Shots):
        self._environment = environment
        self._lighthouse = lighthouse
        self._folder = shots.folder
        arguments = (shots.folder, shots.tokens, shots.course.forward_s)
        self._arguments = [str(argument) for argument in arguments]
        self._groups: dict[str, Group] = {}

    def __enter__(self) -> Self:
        for index in range(NUM_GROUPS):
            self.start(str(index))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for group in self._groups.values():
            group.stop()

    def start(self, name: str, *, gives_way: bool = False) -> None:
        """Start a group that is not there; see `Group.start`."""
        self._leave_file(name).unlink(missing_ok=True)
        self.ready_file(name).unlink(missing_ok=True)
        group = Group(name, self._environment, self._lighthouse, self._arguments, self.log(name))
        self._groups[name] = group
        group.start(gives_way=gives_way)

    def kill(self, name: str) -> None:
        """End a group and its launcher at once."""
        self._groups.pop(name).stop()

    def leave(self, name: str) -> None:
        """Have a group leave at a step boundary; returns when it is gone."""
        self._leave_file(name).touch()
        self._groups.pop(name).leave()

    @property
    def names(self) -> list[str]:
        """The groups whose launchers run."""
        return sorted(self._groups)

    def pids(self, name: str) -> list[int]:
        """Return the workers of a group that was started."""
        return self._groups[name].pids

    def log(self, name: str) -> Path:
        """Return the output of a group's workers."""
        return self._folder / f"group-{name}.log"

    def ready_file(self, name: str) -> Path:
        """Return the file by which a group says that it is about to ask for a quorum."""
        return self._folder / f"{name}.ready"

    def _leave_file(self, name: str) -> Path:
        return self._folder / f"{name}.leave"


class _Shooting:
    """Does faults to a run, after it was brought to as many groups as each begins with.

    Args:
        groups: The groups.
        shots: What to do.
    """

    def __init__(self, groups: _Groups, shots: Shots):
        self._groups = groups
        self._random = random.Random(shots.seed)
        self._steps = StepFolder(shots.folder)

    def inflict(self, fault: str) -> Outcome:
        """Do one fault and measure it; returns when the survivors train."""
        self._bring_to(groups_before(fault))
        victim = self._random.choice(self._groups.names)
        match fault:
            case "worker killed":
                return self._lose(victim, lambda: _kill(self._random.sample(self._pids(victim), 1)))
            case "group killed":
                return self._lose(victim, lambda: _kill(self._pids(victim)))
            case "node killed":
                return self._lose(victim, lambda: self._groups.kill(victim))
            case "node added":
                return self._add_group()
            case "group drained":
                return self._leave(victim)
        raise ValueError(f"{fault} is no fault of torchft's groups")

    # The faults.

    def _lose(self, victim: str, do: Callable[[], None]) -> Outcome:
        survivors = self._others(victim)
        self._steps.read()
        at = time.time()
        do()
        changes = [self._changed(each, at, NUM_GROUPS - 1) for each in survivors]
        return _worst([cost_of_loss(change, at) for change in changes])

    def _add_group(self) -> Outcome:
        others = self._groups.names
        newcomer = self._missing()[0]
        at = time.time()
        self._groups.start(newcomer, gives_way=True)
        is_ready = self._groups.ready_file(newcomer).exists
        self._eventually(lambda: is_ready() or None, f"group {newcomer}, ready")
        take_part(self._groups.pids(newcomer))
        changes = [self._changed(each, at, NUM_GROUPS) for each in others]
        self._wait_for([*others, newcomer], NUM_GROUPS)
        return self._worst_change(others, changes, at, is_join=True)

    def _leave(self, victim: str) -> Outcome:
        at, others = time.time(), self._others(victim)
        self._groups.leave(victim)
        changes = [self._changed(each, at, NUM_GROUPS - 1, since=at) for each in others]
        self._wait_for(others, NUM_GROUPS - 1)
        return self._worst_change(others, changes, at)

    def _worst_change(
        self,
        witnesses: Sequence[str],
        changes: Sequence[Change],
        at: float,
        *,
        is_join: bool = False,
    ) -> Outcome:
        """Measure a change once its members train.

        Args:
            witnesses: The groups that were there before it and after it.
            changes: As each of them saw it.
            at: When it was asked for.
            is_join: Whether a newcomer was started then.
        """
        outcomes = []
        for witness, change in zip(witnesses, changes, strict=True):
            until_s = change.after[-1].time - at if is_join else None
            before_s = normal_s([line for line in change.before if line.time <= at])
            after_s = normal_s(self._commits(witness))
            outcomes.append(cost_of_change(change, before_s, after_s, until_s))
        return _worst(outcomes)

    def _changed(
        self, witness: str, at: float, num_groups: int, since: float | None = None
    ) -> Change:
        """Wait until a group commits a step of so many groups; return how it came there.

        Args:
            witness: The group.
            at: When the change was asked for, or the fault happened.
            num_groups: Groups of the new quorum.
            since: Where the change begins; without, with the first step that was discarded, or of
                the new quorum.
        """

        def find() -> StepLine | None:
            fresh = (line for line in self._commits(witness) if line.time > at)
            return next((line for line in fresh if _num_groups(line) == num_groups), None)

        first = self._eventually(find, f"a step of {num_groups} groups")
        lines = [line for line in self._lines(witness) if line.time <= first.time]
        if since is None:
            since = next(
                line.time
                for line in lines
                if line.time > at and (not line.is_committed or line.generation == first.generation)
            )
        return Change(
            before=[line for line in lines if line.is_committed and line.time < since],
            after=[line for line in lines if line.is_committed and line.time >= since],
            num_discarded=sum(not line.is_committed for line in lines if line.time > at),
        )

    # What is there.

    def _lines(self, group: str) -> list[StepLine]:
        self._steps.read()
        return [line for line in self._steps.lines if (line.group, line.rank) == (group, 0)]

    def _commits(self, group: str) -> list[StepLine]:
        return [line for line in self._lines(group) if line.is_committed]

    def _pids(self, group: str) -> list[int]:
        """Return the processes of a group that trains, by rank."""
        self._steps.read()
        newest = {line.rank: line.pid for line in self._steps.lines if line.group == group}
        return [newest[rank] for rank in range(PARTITION_SIZE)]

    def _others(self, victim: str) -> list[str]:
        return [name for name in self._groups.names if name != victim]

    def _missing(self) -> list[str]:
        return [name for name in map(str, range(NUM_GROUPS)) if name not in self._groups.names]

    def _bring_to(self, num_groups: int) -> None:
        """Wait for so many groups that have trained for a while."""
        for name in self._missing()[: num_groups - len(self._groups.names)]:
            self._groups.start(name)
        for name in self._groups.names[num_groups:]:
            self._groups.leave(name)
        self._wait_for(self._groups.names, num_groups)

    def _wait_for(self, names: Sequence[str], num_groups: int) -> None:
        """Wait for enough steps of so many groups that all of these have committed."""

        def trains(name: str) -> bool:
            last = self._commits(name)[-NORMAL_STEPS - 1 :]
            together = [line for line in last if _num_groups(line) == num_groups]
            # Its own newest steps: a group that is started anew has those of its last life too.
            return len(together) > NORMAL_STEPS and len({line.pid for line in together}) == 1

        what = f"{NORMAL_STEPS} steps of {num_groups} groups"
        self._eventually(lambda: all(map(trains, names)), what)

    def _eventually(self, find: Callable[[], _Found | None], what: str) -> _Found:
        try:
            return eventually(find, what)
        except MissingError as error:
            tails = "\n".join(tail_of(self._groups.log(str(i))) for i in range(NUM_GROUPS))
            raise MissingError(f"{error}\n{tails}") from None


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what a fault cost the group that it cost most."""
    worst = max(outcomes, key=lambda outcome: outcome.stall_s)
    return replace(worst, steps_redone=max(outcome.steps_redone for outcome in outcomes))


def _num_groups(line: StepLine) -> int:
    return line.num_workers // PARTITION_SIZE


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
