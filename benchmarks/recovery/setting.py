"""What all systems of the comparison have in common: the models, the batch and the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.jobs import emulated_model, training_job
from mics_core.spec import JobSpec

__all__ = [
    "COURSES",
    "FAULTS",
    "GLOBAL_BATCH_SIZE",
    "NUM_GROUPS",
    "PARTITION_SIZE",
    "Course",
    "build_model",
    "build_spec",
    "courses_of",
    "groups_before",
]

PARTITION_SIZE = 2
NUM_GROUPS = 3
GLOBAL_BATCH_SIZE = 24
"""Twelve micro-batches of two samples: four for each of three groups, six for each of two."""


@dataclass(frozen=True, slots=True)
class Course:
    """A run of each system, and the faults that are done to it in turn.

    Args:
        name: Its name.
        faults: The faults.
        forward_s: How long a layer's forward takes on the emulated device.
    """

    name: str
    faults: tuple[str, ...]
    forward_s: float


COURSES = (
    Course("losses", ("worker killed", "group killed", "node killed"), 0.01),
    Course("changes", ("node added", "group drained"), 0.075),
)
"""Of a loss a usual step is taken away. Two groups take 1.5 steps for one of three, and with long
steps that would be most of what is measured. A change is told in steps, and costs fixed seconds of
processors, which six workers share here: with short steps these would be most of it."""
FAULTS = tuple(fault for course in COURSES for fault in course.faults)


def courses_of(faults: Sequence[str]) -> list[Course]:
    """Return the courses for some of the faults."""
    chosen = [
        Course(course.name, tuple(f for f in course.faults if f in faults), course.forward_s)
        for course in COURSES
    ]
    return [course for course in chosen if course.faults]


def groups_before(fault: str) -> int:
    """Return how many groups train before a fault; a node is added to a run that lacks one."""
    return NUM_GROUPS - 1 if fault == "node added" else NUM_GROUPS


def build_model(forward_s: float) -> dict[str, Any]:
    """Return the `model` part of the specification.

    Its compute is emulated: with six workers' own, two cores would be all that is measured. It has
    two layers, for with four that take half as long FSDP2's hooks alone keep the cores busy.
    """
    return emulated_model(width=256, num_layers=2, forward_s=forward_s)


def build_spec(
    tokens: Path, forward_s: float, global_batch_size: int = GLOBAL_BATCH_SIZE
) -> JobSpec:
    """Return the training that all systems do.

    Args:
        tokens: The file of tokens.
        forward_s: See `Course`.
        global_batch_size: Samples in a step.
    """
    model = build_model(forward_s)
    return training_job(tokens, model, global_batch_size=global_batch_size, sequence_length=16)
