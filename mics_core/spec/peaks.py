"""The peak of a worker in a cluster file: one number, or one for each precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from mics_core.spec.job import SpecModel
from mics_core.spec.rules import RuleError

__all__ = ["PeakOrPeaks", "PeakTflops"]


class PeakTflops(SpecModel):
    """Largest rates of one worker's matrix products in TFLOP/s, by a job's precision."""

    fp32: float | None = Field(default=None, gt=0.0)
    """In fp32, as torch computes it: TF32 is off."""
    bf16: float | None = Field(default=None, gt=0.0)
    """In bf16, with sums in fp32, and without sparsity."""
    fp64: float | None = Field(default=None, gt=0.0)
    """In fp64."""

    @model_validator(mode="after")
    def _has_one(self) -> PeakTflops:
        if self.fp32 is None and self.bf16 is None and self.fp64 is None:
            raise RuleError(
                "it has no rate for any precision.", "Give one for those that jobs train in."
            )
        return self


def _kind_of_peak(value: Any) -> str:
    return "by precision" if isinstance(value, Mapping | PeakTflops) else "number"


PeakOrPeaks = Annotated[
    Annotated[float, Field(gt=0.0), Tag("number")] | Annotated[PeakTflops, Tag("by precision")],
    Discriminator(_kind_of_peak),
]
