"""Chooses a layout by predicted speed: every candidate is predicted, the fastest that fits wins.

Two layouts are compared by the time of a step, which takes the same samples in all of them, over
the whole cluster: workers that a layout leaves idle count against it. Where the job bounds its
groups, layouts use different numbers of workers; they are then compared by worker-seconds a step,
so that a larger partition group does not win by its workers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.planner.amounts import amount, percent, seconds
from mics_core.planner.candidates import Choices, Refused, candidates
from mics_core.planner.cost import predict
from mics_core.planner.footprint import reserve_in_words, usable_bytes, usable_percent
from mics_core.planner.layout import LayoutProblem
from mics_core.planner.prediction import Layout, Prediction
from mics_core.planner.words import described

__all__ = ["NoPlan", "Plan", "Ranked", "plan_layout"]

_TIE = 1.03


@dataclass(frozen=True, slots=True)
class Ranked:
    """A layout that fits, and how it compares."""

    prediction: Prediction
    score: float
    """Seconds of a step, or worker-seconds where the numbers of workers differ; less is better."""
    reason: str
    """Why it was chosen or not, in one sentence."""

    @property
    def layout(self) -> Layout:
        """The layout."""
        return self.prediction.layout


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout to train with."""

    choice: Ranked
    """The chosen layout."""
    others: tuple[Ranked, ...]
    """All other layouts that fit, best first."""
    refused: tuple[Refused, ...]
    """What cannot be, by partition size."""

    @property
    def reason(self) -> str:
        """Why the chosen layout, in one sentence."""
        return self.choice.reason


@dataclass(frozen=True, slots=True)
class NoPlan:
    """No layout can be."""

    problem: LayoutProblem
    """The value, the rule and the remedy."""
    refused: tuple[Refused, ...]
    """What was tried, by partition size."""


def plan_layout(choices: Choices) -> Plan | NoPlan:
    """Choose the fastest layout that fits; within 3 % the smaller p, then the fewest bytes.

    Bytes are those that leave a node, since its link may be shared with others; what sends as many
    is told apart by memory.

    Memory that is saved by computing twice does not count: what hides the second computation may
    not last.

    Args:
        choices: Model, workload, cluster and what the job fixes.

    Returns:
        The plan, or what stands against all layouts; both with a reason for each that was turned
        down.
    """
    refused, fitting = [], []
    for found in candidates(choices):
        if isinstance(found, Refused):
            refused.append(found)
        else:
            fitting.append(predict(choices.model, choices.cluster, found, choices.workload))
    if not fitting:
        return NoPlan(_problem(choices, refused), tuple(refused))
    is_bounded = choices.pins.largest_groups is not None

    def score(prediction: Prediction) -> float:
        return prediction.step_s * (prediction.layout.num_workers if is_bounded else 1)

    fitting.sort(key=score)
    limit = score(fitting[0]) * _TIE
    tied = [prediction for prediction in fitting if score(prediction) <= limit]
    chosen = min(tied, key=lambda each: (*_preference(each), score(each)))
    best = score(chosen)
    others = [
        Ranked(each, score(each), _reason_against(each, chosen, score(each) / best))
        for each in fitting
        if each is not chosen
    ]
    reason = _reason_for(chosen, fitting[0], len(fitting), choices)
    return Plan(Ranked(chosen, best, reason), tuple(others), tuple(refused))


def _reason_for(chosen: Prediction, fastest: Prediction, num_fitting: int, choices: Choices) -> str:
    usable = amount(usable_bytes(choices.cluster.memory_bytes, choices.model))
    needs = f"{seconds(chosen.step_s)} a step, {amount(chosen.memory.total)} of {usable} a worker"
    name, kept = described(chosen.layout), reserve_in_words(choices.model)
    if num_fitting == 1:
        return f"{name} is the only layout that fits: {needs}{kept}."
    if chosen is fastest:
        return f"{name} is the fastest of {num_fitting} layouts that fit: {needs}{kept}."
    return (
        f"{name} is within 3 % of the fastest of {num_fitting} layouts that fit and"
        f" {_advantage(chosen, fastest)}: {needs}{kept}."
    )


def _reason_against(other: Prediction, chosen: Prediction, ratio: float) -> str:
    if ratio > _TIE:
        return f"It is slower than the choice by {percent(ratio - 1)}."
    advantage = _advantage(chosen, other)
    if ratio < 1:
        return f"It is faster by {percent(1 - ratio)}, but the choice {advantage}."
    return f"It is slower by {percent(ratio - 1)}, and the choice {advantage}."


def _preference(prediction: Prediction) -> tuple[int, bool, int, float]:
    layout = prediction.layout
    # Whole bytes: sums in another order differ in the last bits.
    sent = round(prediction.traffic.total)
    return (layout.partition_size, layout.is_checkpointed, sent, prediction.memory.total)


def _advantage(one: Prediction, other: Prediction) -> str:
    """What `one` has over `other`, which is about as fast: the first that `_preference` finds."""
    if one.layout.partition_size < other.layout.partition_size:
        return "has the smaller partition group"
    if not one.layout.is_checkpointed and other.layout.is_checkpointed:
        return "computes nothing twice"
    if round(one.traffic.total) < round(other.traffic.total):
        return "sends less out of a node"
    if one.memory.total < other.memory.total:
        return "has the smaller need of memory"
    return "comes first"


def _problem(choices: Choices, refused: list[Refused]) -> LayoutProblem:
    """Say what is missing where it comes closest: memory last, since it depends on the others."""
    usable = usable_bytes(choices.cluster.memory_bytes, choices.model)
    pinned = choices.pins.partition_size
    value = f"partition_size {pinned!r} on {choices.cluster.name}"
    short = [each for each in refused if each.memory is not None]
    if short:
        closest = min(short, key=lambda each: each.memory.total if each.memory else 0.0)
        assert closest.memory is not None
        needed = -(-closest.memory.total * 100 // usable_percent(choices.model))
        return LayoutProblem(
            f"{value} with {amount(usable)} usable a worker",
            f"the layout that comes closest ({closest.what}) needs"
            f" {amount(closest.memory.total)} a worker{reserve_in_words(choices.model)}.",
            f"Give each worker at least {amount(needed)}, add nodes for a larger partition group,"
            " lower training.micro_batch_size, or set training.activation_checkpointing.",
        )
    batch = [each for each in refused if each.cause == "batch"]
    if batch:
        broken = batch[0].broken
        return LayoutProblem(
            value,
            f"no layout suits the batch: {broken.rule}",
            broken.remedy
            or "Change training.global_batch_size, training.micro_batch_size or partition_size.",
        )
    broken = refused[-1].broken
    return LayoutProblem(
        value,
        broken.rule,
        broken.remedy or "Leave the engine's choices at 'auto', or choose another partition_size.",
    )
