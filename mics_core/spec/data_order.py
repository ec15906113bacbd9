"""What the order of the data depends on: a checkpoint may only be continued where it is the same.

The place in the data follows from the step (`mics_core.data.order`). So with another seed, another
global batch or other data the steps after a checkpoint would use samples again that the steps
before it have used, and leave others out.
"""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.errors import BrokenRule

__all__ = ["DataOrder"]


@dataclass(frozen=True, slots=True)
class DataOrder:
    """What decides which sample stands at which place of a run.

    Args:
        seed: Source of the order.
        global_batch_size: Samples in a step.
        sequence_length: Tokens of a sample.
        num_samples: Samples in the data.
        content: A number that tells the data from others, of 52 bits so that a double holds it; 0
            where nothing is known of what the samples hold.
    """

    seed: int
    global_batch_size: int
    sequence_length: int
    num_samples: int
    content: int = 0

    def why_not(self, now: DataOrder) -> tuple[str, BrokenRule] | None:
        """Return the field of the job that keeps `now` from continuing this, and what to do."""
        for name in ("seed", "global_batch_size", "sequence_length"):
            was, new, field = getattr(self, name), getattr(now, name), f"training.{name}"
            if was != new:
                return field, BrokenRule(
                    f"it was trained with {field} {was}, and now that is {new}",
                    f"Set {field} to {was}",
                )
        what = self.how_other_data(now.num_samples, now.content)
        if not what:
            return None
        return "data", BrokenRule(
            f"its data {what}", "Name the data in `data` that it was trained on"
        )

    def how_other_data(self, num_samples: int, content: int) -> str:
        """Return in which way data are not these, or nothing if they may be."""
        if self.num_samples != num_samples:
            return f"held {self.num_samples} samples, and now there are {num_samples}"
        if self.content != content and self.content and content:
            return f"held {num_samples} samples as now, but not the same ones"
        return ""
