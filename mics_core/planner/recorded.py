"""The cost model held against what the network benchmark measured, from the rows that it keeps.

[Note: a turn's own steps]
A row is one system on one network, measured in several turns. The planner is asked anew in each,
and may choose other routes, so a layout's prediction is held against the steps of the turns that
took it. Rows of older runs kept no steps by turn: there the median of all turns stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mics_core.planner.prediction import Layout
from mics_core.planner.question import Question

__all__ = ["Recorded", "num_beyond", "recorded", "worst"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One layout on one network: measured, and predicted now and then.

    Args:
        system: The benchmark's name of it.
        nodes: Nodes and workers of each, such as `4x2`.
        link_mbit: Rate of the nodes' links; none without a limit.
        layout: How it was trained.
        measured_s: Median time of a step.
        model_s: What the cost model of today says from the probes of that run.
        told_s: What was predicted just before it was measured, by the model of that time.
        is_own: Whether `measured_s` and `told_s` are of the turns with this layout alone.
    """

    system: str
    nodes: str
    link_mbit: float | None
    layout: Layout
    measured_s: float
    model_s: float
    told_s: float
    is_own: bool

    @property
    def error(self) -> float:
        """Today's prediction over the measured time, less one."""
        return self.model_s / self.measured_s - 1.0

    @property
    def told_error(self) -> float:
        """The prediction of that time over the measured time, less one."""
        return self.told_s / self.measured_s - 1.0


def recorded(rows: Iterable[Mapping[str, Any]]) -> list[Recorded]:
    """Return a result for each layout of every row that holds predictions.

    Args:
        rows: Of the benchmark's results file. Those of peers and of failures are passed over.
    """
    return [result for row in rows if "predicted_from" in row for result in _of_row(row)]


def worst(errors: Sequence[float]) -> float:
    """Return the error that is furthest from nothing, with its sign."""
    return max(errors, key=abs)


def num_beyond(errors: Sequence[float], limit: float) -> int:
    """Return how many errors are larger than `limit` in either direction."""
    return sum(abs(error) > limit for error in errors)


def _of_row(row: Mapping[str, Any]) -> Iterator[Recorded]:
    questions = [Question.from_json(value) for value in row["predicted_from"]]
    steps, told = row.get("step_s_by_turn"), row.get("predicted_step_s_by_turn")
    for layout in dict.fromkeys(question.layout for question in questions):
        turns = [turn for turn, question in enumerate(questions) if question.layout == layout]
        measured_s, told_s = row["step_s_median"], row["predicted_step_s"]
        is_own = len(turns) == len(questions)
        if not is_own and steps is not None and told is not None:
            is_own = True
            measured_s = median(step_s for turn in turns for step_s in steps[turn])
            told_s = median(told[turn] for turn in turns)
        yield Recorded(
            row["system"],
            row["layout"],
            row["link_mbit"],
            layout,
            measured_s,
            median(questions[turn].answer().step_s for turn in turns),
            told_s,
            is_own,
        )
