"""What the benchmark and its workers say to each other, over a pipe beside the emulated network.

So neither the start of a step nor its figures cost a byte on the links that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mics_core.planner.question import Question
from mics_core.spec import JobSpec

__all__ = [
    "Block",
    "Build",
    "Built",
    "Count",
    "Counted",
    "Drop",
    "Failure",
    "Run",
    "RunBlock",
    "Stepped",
    "System",
    "SystemInBlocks",
]


class System(Protocol):
    """A way of training, as the workers drive it."""

    description: str
    """What it decided by itself, in a sentence; empty if nothing."""
    question: Question | None
    """What it would predict a step's time from; none without a model."""

    def step(self, index: int) -> float:
        """Train one whole step; all workers call it.

        Returns:
            This worker's part of the step's mean loss: the parts of all workers add up to it.
        """
        ...


class SystemInBlocks(Protocol):
    """A way of training whose steps follow each other without a word from the benchmark."""

    description: str
    """As that of `System`."""
    question: Question | None
    """As that of `System`."""

    def block(self, num_steps: int) -> Block:
        """Train so many steps; all workers call it."""
        ...


@dataclass(frozen=True, slots=True)
class Build:
    """Build a system; the first one also connects the world."""

    system: str
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Built:
    """The system is there; memory counts from the request on."""

    description: str
    question: Question | None
    baseline_rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run one step."""

    index: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step has been run; times are of the machine's monotonic clock."""

    begin_s: float
    end_s: float
    loss: float
    peak_rss_bytes: int
    """Peak since the system was built."""


@dataclass(frozen=True, slots=True)
class RunBlock:
    """Run so many steps, one after the other."""

    num_steps: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block of steps has been run.

    Args:
        times_s: When each was committed, of the machine's monotonic clock.
        losses: The mean loss of each.
        processor_s: Processor time from the block's begin to its end, of all threads.
    """

    times_s: list[float]
    losses: list[float]
    processor_s: float


@dataclass(frozen=True, slots=True)
class Count:
    """Read the counter of the node's link."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What the node has sent so far."""

    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the system and give its memory back."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed."""

    error: str
    has_ended: bool = False
    """Whether the worker is gone."""
