"""Counts a model on the meta device: exact for any model, at no memory.

    python -m mics_core.engine.counting job.yaml

prints the counts as JSON, for processes that must not load torch themselves.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

from torch import nn

from mics_core.data.vocabulary import vocabulary_size
from mics_core.engine.activations import count_activations
from mics_core.engine.contract import check_model
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import block_names
from mics_core.errors import MicsError
from mics_core.planner.shape import ModelShape, shape_of_counts, shape_of_transformer
from mics_core.spec import load_job_spec
from mics_core.spec.job import JobSpec, TransformersModel
from mics_core.spec.planning import transformer_sizes

__all__ = ["count_shape", "main"]


def count_shape(spec: JobSpec) -> ModelShape:
    """Build the model of `spec` on the meta device and count.

    Parameters are exact. Operations and activations of a transformer follow its sizes. Of a user's
    module two operations a parameter and token are assumed, and activations are counted in a pass
    over one sample; where it cannot run here they stay unknown.

    Raises:
        SpecificationError: The model cannot be built, or breaks a rule.
    """
    model = build_meta_model(spec)
    total = _count(model)
    names, length = block_names(model), spec.training.sequence_length
    check_model(model, names)  # here, before anything is started
    blocks = tuple(_count(model.get_submodule(name)) for name in names)
    counted = shape_of_counts(blocks, total - sum(blocks), length)
    if not isinstance(spec.model, TransformersModel):
        found = count_activations(model, names, length)
        if found is None:
            return counted
        return replace(
            counted,
            block=replace(counted.block, activations=found.block),
            root=replace(counted.root, activations=found.root),
            block_inputs=found.block_inputs,
            logits=found.logits,
            knows_activations=True,
        )
    formula = shape_of_transformer(transformer_sizes(spec, spec.model, vocabulary_size(spec)))
    return replace(
        formula,
        num_blocks=counted.num_blocks,
        block=replace(formula.block, parameters=counted.block.parameters),
        root=replace(formula.root, parameters=counted.root.parameters),
        largest_block_parameters=counted.largest_block_parameters,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main(arguments: list[str] | None = None) -> int:
    """Print the shape of a job's model as JSON; return the exit status."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    try:
        shape = count_shape(load_job_spec(path))
    except MicsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(shape)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
