"""The pause at a step's boundary in which members wait for the copy of one that is behind.

It keeps the gradients of the steps that it cannot apply yet, as many as its host has memory for.
See [Note: joining without holding anyone up] in `mics_core.engine.copying`.
"""

from __future__ import annotations

from collections.abc import Callable

from mics_core.comm.replication import ReplicationGroup
from mics_core.engine.trainer import Trainer
from mics_core.errors import ReplicationError

__all__ = ["MOST_ROUNDS", "wait_for_copy"]

_ROUND_S = 0.25
MOST_ROUNDS = 240
"""A minute of them: a run of which nothing is heard for some minutes is taken for dead."""


def wait_for_copy(
    trainer: Trainer, replication: ReplicationGroup, superseded: Callable[[], bool]
) -> None:
    """Wait until those that may keep no more gradients have their copy.

    All workers of all groups of the generation must call it after the same step; its summary says
    so. They ask each other again and again, so that none waits longer for the others than in a
    step. After a while they train a step all the same, by which the supervisor sees that they live.
    So they do if a member is lost or a generation is announced: a step deals with either.

    Args:
        trainer: The worker's trainer.
        replication: Its replication group.
        superseded: Whether a newer generation has been announced.
    """
    for _ in range(MOST_ROUNDS):
        must_wait = trainer.must_wait_for_copy(_ROUND_S)
        try:
            rows = replication.gather_doubles([must_wait, superseded()])
        except ReplicationError:
            rows = [[0.0, 1.0]]
        waiting, ending = (float(any(answers)) for answers in zip(*rows, strict=True))
        # The workers of this group have heard of other copies, and perhaps of a loss.
        heard = trainer.partition.gather_doubles([waiting, ending])
        if any(ends for _, ends in heard) or not any(waits for waits, _ in heard):
            return
