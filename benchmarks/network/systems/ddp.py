"""PyTorch's DistributedDataParallel: a whole replica a worker, one all-reduce a step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness.site import Site
from benchmarks.network.systems.plain import PlainTraining, build_optimizer, build_whole_model
from mics_core.spec import JobSpec

__all__ = ["build"]


def build(name: str, spec: JobSpec, site: Site) -> PlainTraining:
    """Build one worker's part; all workers of the world must call it."""
    assert name == "ddp", name
    model = DistributedDataParallel(build_whole_model(spec), gradient_as_bucket_view=True)
    return _Ddp(model, build_optimizer(model, spec), spec, site)


class _Ddp(PlainTraining):
    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Synchronise gradients after the last micro-batch alone."""
        model = cast("DistributedDataParallel", self.model)
        return nullcontext() if is_last else model.no_sync()
