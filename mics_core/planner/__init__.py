"""The planner: how many parameters, how much memory, which layouts fit, and which one to take.

Everything here is pure arithmetic on plain numbers: standard library only, no torch, no Ray, no
clock. Every decision carries one sentence of reason.
"""

from mics_core.planner.cost import predict
from mics_core.planner.plan import plan_layout
from mics_core.planner.prediction import Layout, Prediction, Workload
from mics_core.planner.profile import ClusterProfile, Link
from mics_core.planner.shape import ModelShape, UnitShape
from mics_core.planner.strategy import Strategy

__all__ = [
    "ClusterProfile",
    "Layout",
    "Link",
    "ModelShape",
    "Prediction",
    "Strategy",
    "UnitShape",
    "Workload",
    "plan_layout",
    "predict",
]
