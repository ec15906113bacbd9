"""Measures all systems on one layout and link, in turn: A B C … A B C …

In every turn a system gets fresh worker processes, which train the same steps from the beginning
and are gone before the next system's turn. Kept alive they would not fit the machine's memory, and
each of gloo's threads wakes a hundred times a second also while its system waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.environments import CannotPrepareError
from benchmarks.harness.factory import WorldError, WorldFactory
from benchmarks.harness.nodes import EmulatedNetwork
from benchmarks.harness.world import Step, World
from benchmarks.network.deepspeed_env import MICS_VERSION, NEWEST_VERSION, prepare_deepspeed
from benchmarks.network.layouts import Layout
from benchmarks.network.systems import family_of
from mics_core.planner.question import Question
from mics_core.spec import JobSpec

__all__ = ["Factories", "Measured", "Plan", "largest_loss_difference", "measure"]


@dataclass(slots=True)
class Measured:
    """What one system did on one layout and link.

    Args:
        system: Its name.
        layout: Nodes and workers.
        link_mbit: Rate of the nodes' links; none without a limit.
        description: What it decided by itself.
        questions: What it predicted a step's time from, in each turn.
        error: Why there is no result, or none.
        num_warm_up: Steps at the start of a turn that do not count.
        turns: The steps of each turn.
    """

    system: str
    layout: str
    link_mbit: float | None
    description: str = ""
    questions: list[Question] = field(default_factory=list)
    error: str | None = None
    num_warm_up: int = 0
    turns: list[list[Step]] = field(default_factory=list)

    @property
    def counted_turns(self) -> list[list[Step]]:
        """The steps of each turn that count."""
        return [turn[self.num_warm_up :] for turn in self.turns]

    @property
    def counted(self) -> list[Step]:
        """The steps that count."""
        return [step for turn in self.counted_turns for step in turn]

    @property
    def step_s(self) -> float:
        """Median time of a step."""
        return median(step.step_s for step in self.counted)

    @property
    def bytes_out(self) -> float:
        """Median of the bytes that left the node which sent most."""
        return median(step.bytes_out_per_node for step in self.counted)

    def as_row(self) -> dict[str, Any]:
        """Return the row of the results' file; without a result it has an `error` instead."""
        row: dict[str, Any] = {
            "system": self.system,
            "layout": self.layout,
            "link_mbit": self.link_mbit,
        }
        if self.error is not None:
            return row | {"error": self.error}
        times = [step.step_s for step in self.counted]
        row |= {
            "step_s_median": self.step_s,
            "step_s_min": min(times),
            "step_s_max": max(times),
            "step_s_by_turn": [[step.step_s for step in turn] for turn in self.counted_turns],
            "bytes_out_per_node_per_step": round(self.bytes_out),
            "peak_rss_bytes": max(step.peak_rss_bytes for turn in self.turns for step in turn),
            "loss": self.turns[-1][-1].loss,
        }
        if self.questions:
            predicted = [each.answer().step_s for each in self.questions]
            row["predicted_step_s"] = median(predicted)
            row["predicted_step_s_by_turn"] = predicted
            row["predicted_from"] = [each.as_json() for each in self.questions]
        return row | ({"description": self.description} if self.description else {})


class Factories:
    """The preloaded processes of one network, for each environment that a system asks for.

    Args:
        network: The nodes.
        folder: For the logs.
        stack: Ends the processes.
    """

    def __init__(self, network: EmulatedNetwork, folder: Path, stack: ExitStack):
        self._network = network
        self._folder = folder
        self._stack = stack
        self._factories: dict[str, WorldFactory] = {}

    def of(self, system: str) -> WorldFactory:
        """Return the factory of a system's workers.

        Raises:
            CannotPrepareError: The system's environment cannot be made.
            WorldError: The preloaded processes ended.
        """
        key = ""
        if family_of(system) == "deepspeed":
            key = MICS_VERSION if "mics" in system.split() else NEWEST_VERSION
        if key not in self._factories:
            self._factories[key] = self._stack.enter_context(self._factory(key))
        return self._factories[key]

    def _factory(self, deepspeed_version: str) -> WorldFactory:
        nodes, folder = self._network.nodes, self._folder
        if not deepspeed_version:
            return WorldFactory(nodes, folder)
        environment = prepare_deepspeed(deepspeed_version)
        return WorldFactory(
            nodes,
            folder,
            python=environment.python,
            variables=environment.variables,
            preload=["deepspeed"],
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each system runs.

    Args:
        num_turns: Turns of each system.
        num_warm_up: Steps at the start of each turn that do not count.
        num_steps: Steps after them.
    """

    num_turns: int
    num_warm_up: int
    num_steps: int


def measure(
    factories: Factories,
    spec: JobSpec,
    systems: Sequence[str],
    layout: Layout,
    link_mbit: float | None,
    plan: Plan,
    say: Callable[[str], None],
) -> list[Measured]:
    """Give every system its turns; one that fails keeps the reason and gets no more.

    Args:
        factories: Make the workers.
        spec: What to train.
        systems: Names, in the order of their turns.
        layout: Nodes and workers.
        link_mbit: How the links are shaped now.
        plan: Turns and steps.
        say: Reports progress.
    """
    results = [
        Measured(system, layout.name, link_mbit, num_warm_up=plan.num_warm_up) for system in systems
    ]
    for turn in range(plan.num_turns):
        for result in results:
            if result.error is not None:
                continue
            say(f"turn {turn + 1} of {plan.num_turns}: {result.system}")
            try:
                _take_turn(factories, spec, result, layout, plan)
            except (CannotPrepareError, WorldError) as error:
                result.error = str(error).strip().splitlines()[-1].strip()
                say(f"{result.system} failed: {error}")
    return results


def _take_turn(
    factories: Factories, spec: JobSpec, result: Measured, layout: Layout, plan: Plan
) -> None:
    factory = factories.of(result.system)
    with World(factory, result.system, layout.workers_per_node) as world:
        built = world.build(result.system, spec)[0]
        result.description = built.description
        if built.question is not None:
            result.questions.append(built.question)
        steps = range(plan.num_warm_up + plan.num_steps)
        result.turns.append([world.step(index) for index in steps])


def largest_loss_difference(results: Sequence[Measured]) -> tuple[float, str]:
    """Return the largest relative difference of any step's loss, and between which systems.

    A loss that is not finite agrees with nothing: the difference is then infinite.
    """
    losses = {
        f"{result.system}, turn {number + 1}": [step.loss for step in turn]
        for result in results
        for number, turn in enumerate(result.turns)
    }
    for name, of_turn in losses.items():
        for index, loss in enumerate(of_turn):
            if not math.isfinite(loss):
                return math.inf, f"step {index}: {loss} by {name}"
    worst, words = 0.0, "nothing to compare"
    for index in range(min((len(of_turn) for of_turn in losses.values()), default=0)):
        low, high = (choose(losses, key=lambda name: losses[name][index]) for choose in (min, max))
        lowest, highest = losses[low][index], losses[high][index]
        difference = (highest - lowest) / abs(highest)
        if difference >= worst:
            worst = difference
            words = f"step {index}: {lowest:.6f} by {low}; {highest:.6f} by {high}"
    return worst, words
