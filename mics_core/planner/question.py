"""What a prediction was made from, as plain values that JSON holds: it can be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mics_core.planner.cost import predict
from mics_core.planner.prediction import Layout, Prediction, Workload
from mics_core.planner.profile import ClusterProfile, Link, Peaks
from mics_core.planner.shape import ModelShape, UnitShape
from mics_core.planner.strategy import Strategy

__all__ = ["Question"]


@dataclass(frozen=True, slots=True)
class Question:
    """A model, a cluster, a layout and what else of the job counts."""

    model: ModelShape
    cluster: ClusterProfile
    layout: Layout
    workload: Workload

    def answer(self) -> Prediction:
        """Predict one step with the cost model as it is now."""
        return predict(self.model, self.cluster, self.layout, self.workload)

    def as_json(self) -> dict[str, Any]:
        """Return mappings, numbers and words alone."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Question:
        """Return the question that `as_json` gave."""
        model, cluster, layout = (dict(value[part]) for part in ("model", "cluster", "layout"))
        for part in ("block", "root"):
            model[part] = UnitShape(**model[part])
        for part in ("intra_node", "inter_node"):
            cluster[part] = Link(**cluster[part])
        if isinstance(peaks := cluster["peak_flops_per_s"], Mapping):
            lacking = tuple(peaks["lacking"])
            cluster["peak_flops_per_s"] = Peaks(**{**peaks, "lacking": lacking})
        layout["strategy"] = Strategy(**layout["strategy"])
        return cls(
            ModelShape(**model),
            ClusterProfile(**cluster),
            Layout(**layout),
            Workload(**value["workload"]),
        )
