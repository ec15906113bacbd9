"""The public name of `MicsTrainer`, for a user's own Ray script.

from mics_core.trainer import MicsTrainer

result = MicsTrainer("job.yaml").fit()
"""

from __future__ import annotations

from mics_core.cluster.trainer import MicsTrainer, Result

__all__ = ["MicsTrainer", "Result"]
