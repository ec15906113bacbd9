"""Chooses a layout by predicted speed: every candidate is predicted, the fastest that fits wins.

Two layouts are compared by the time of a step, which takes the same samples in all of them, over
the whole cluster: workers that a layout leaves idle count against it. Where the job bounds its
groups, layouts use different numbers of workers; they are then compared by worker-seconds a step,
so that a larger partition group does not win by its workers alone. Workers of a node that are too
few for another group serve nobody, so they count with the groups of that node: on nodes of 8
workers a group of 5 counts as 8, and a group of 3, of which a node holds two, as 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mics_core.planner.amounts import amount, percent, seconds
from mics_core.planner.candidates import Choices, Refused, candidates, held_up_by_batch
from mics_core.planner.collectives import Span, span_of
from mics_core.planner.cost import predict
from mics_core.planner.footprint import reserve_in_words, usable_bytes, usable_percent
from mics_core.planner.layout import LayoutProblem, claimed_workers
from mics_core.planner.prediction import Layout, Prediction
from mics_core.planner.words import described

__all__ = ["NoPlan", "Plan", "Ranked", "plan_layout"]

_TIE = 1.03


@dataclass(frozen=True, slots=True)
class Ranked:
    """A layout that fits, and how it compares."""

    prediction: Prediction
    score: float
    """Seconds of a step, or worker-seconds where the numbers of workers differ, those that are too
    few for another group included; less is better."""
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
    shape, eventual = choices.shape, choices.eventual_shape

    @cache
    def span(partition_size: int) -> Span:
        return span_of(partition_size, shape)

    @cache
    def claimed(partition_size: int) -> float:
        return claimed_workers(partition_size, eventual)

    model, cluster, workload = choices.model, choices.cluster, choices.workload
    refused, fitting = [], []
    for found in candidates(choices):
        if isinstance(found, Refused):
            refused.append(found)
        else:
            fitting.append(predict(model, cluster, found, workload, span(found.partition_size)))
    if not fitting:
        return NoPlan(_problem(choices, refused), tuple(refused))
    is_bounded = choices.pins.largest_groups is not None

    def score(prediction: Prediction) -> float:
        layout = prediction.layout
        workers = layout.num_groups * claimed(layout.partition_size) if is_bounded else 1.0
        return prediction.step_s * workers

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
    name, notes = described(chosen.layout), _notes(chosen, choices)
    if num_fitting == 1:
        return f"{name} is the only layout that fits: {needs}{notes}."
    if chosen is fastest:
        return f"{name} is the fastest of {num_fitting} layouts that fit: {needs}{notes}."
    return (
        f"{name} is within 3 % of the fastest of {num_fitting} layouts that fit and"
        f" {_advantage(chosen, fastest)}: {needs}{notes}."
    )


def _notes(chosen: Prediction, choices: Choices) -> str:
    """Return the end of the sentence: what a reader might not expect of the plan."""
    notes = reserve_in_words(choices.model)
    precision, groups = choices.workload.precision, chosen.layout.num_groups
    if choices.cluster.lacks(precision):
        notes += (
            f"; workers of {choices.cluster.name} have no matrix units for {precision}, so that it"
            " is as fast as fp32 at best"
        )
    if choices.pins.asks_for_one_group and groups > 1:
        notes += (
            "; as it stands the job asks for one group: set groups.wanted, or groups.maximum to"
            f" scale later, for more, up to {groups}"
        )
    return notes


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
    """Say what is missing where it comes closest: memory last, since it depends on the others.

    Where the batch alone keeps out a size that memory allows, both are named.
    """
    usable = usable_bytes(choices.cluster.memory_bytes, choices.model)
    pinned = choices.pins.partition_size
    value = f"partition_size {pinned!r} on {choices.cluster.name}"
    short = [each for each in refused if each.memory is not None]
    if short:
        closest = min(short, key=lambda each: each.memory.total if each.memory else 0.0)
        assert closest.memory is not None
        needed = -(-closest.memory.total * 100 // usable_percent(choices.model))
        value = f"{value} with {amount(usable)} usable a worker"
        if held_up := held_up_by_batch(choices):
            size, broken = held_up
            remedy = (broken.remedy or "Change the batch to suit it.").removesuffix(".")
            return LayoutProblem(
                value,
                f"memory and cluster allow p = {size}, but {broken.rule}",
                f"{remedy}, or give each worker at least {amount(needed)}.",
            )
        return LayoutProblem(
            value,
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
