"""All groups of a run train on the same data, or a sample would be used twice and another never.

Each group reads the data itself, at the time at which it starts: they may have grown since the run
began. So those who enter a generation compare their numbers, and whoever has other data than the
run fails, with its own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mics_core.errors import DataError, ReplicationError
from mics_core.spec.data_order import DataOrder

__all__ = ["as_doubles", "check_same_data"]


def as_doubles(order: DataOrder) -> list[float]:
    """Return what tells a group's data from others; seed and batch are the job's, and equal."""
    return [float(order.num_samples), float(order.content)]


def check_same_data(
    order: DataOrder, rows: Sequence[Sequence[float]], place: int, source: int
) -> None:
    """Compare the data of all members of a generation.

    Args:
        order: This member's.
        rows: What all members have, by place (`as_doubles`).
        place: This member's place.
        source: The place of one that holds the run's newest states, and so has the run's data.

    Raises:
        DataError: This member has other data than the run.
        ReplicationError: Another one has, and fails.
    """
    of_run = replace(order, num_samples=int(rows[source][0]), content=int(rows[source][1]))
    others = [of_run.how_other_data(int(number), int(content)) for number, content in rows]
    if others[place]:
        raise DataError(
            f"This group cannot join: the run's data {others[place]}.",
            remedy="Give every node the data that the run began with, unchanged; to train on"
            " others, begin anew with an empty checkpoint.directory.",
            field="data",
        )
    for other, how in enumerate(others):
        if how:
            raise ReplicationError(
                f"The group at place {other} of the generation cannot join: the run's data {how}."
            )
