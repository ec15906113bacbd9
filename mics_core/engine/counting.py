"""Counts what a model needs, on the meta device: exact for any model, at no memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mics_core.data.vocabulary import vocabulary_size
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import block_names
from mics_core.planner.memory import (
    activation_bytes,
    compute_bytes_per_number,
    model_state_bytes_per_parameter,
)
from mics_core.planner.parameters import TransformerSizes
from mics_core.spec.job import JobSpec, TransformersModel

__all__ = ["ModelNeeds", "count_needs"]


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """What training a model takes.

    Args:
        num_parameters: Parameters of the model; tied ones count once.
        model_state_bytes: Parameters, gradients and optimizer states of the whole model.
        largest_unit_bytes: The largest unit, gathered, and its gradient before it is reduced.
        activation_bytes: Activations of one micro-batch on one worker; 0 for users' models, whose
            activations cannot be known before they run.
    """

    num_parameters: int
    model_state_bytes: int
    largest_unit_bytes: int
    activation_bytes: int


def count_needs(spec: JobSpec) -> ModelNeeds:
    """Build the model of `spec` on the meta device and count.

    Raises:
        SpecificationError: The model cannot be built.
    """
    model = build_meta_model(spec)
    training, optimizer = spec.training, spec.training.optimizer
    blocks = [model.get_submodule(name) for name in block_names(model)]
    total = _count(model)
    in_blocks = [_count(block) for block in blocks]
    largest = max([total - sum(in_blocks), *in_blocks])
    per_parameter = model_state_bytes_per_parameter(
        training.precision, optimizer.kind, has_momentum=optimizer.momentum > 0
    )
    return ModelNeeds(
        num_parameters=total,
        model_state_bytes=total * per_parameter,
        largest_unit_bytes=2 * largest * compute_bytes_per_number(training.precision),
        activation_bytes=_activations(spec),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _activations(spec: JobSpec) -> int:
    model = spec.model
    if not isinstance(model, TransformersModel):
        return 0
    sizes = TransformerSizes(
        family=model.family,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        intermediate_size=model.intermediate_size or 4 * model.hidden_size,
        vocab_size=model.vocab_size or vocabulary_size(spec),
        sequence_length=spec.training.sequence_length,
        tie_embeddings=model.tie_embeddings,
    )
    return activation_bytes(
        sizes,
        micro_batch_size=spec.training.micro_batch_size,
        precision=spec.training.precision,
        is_checkpointed=spec.training.activation_checkpointing,
    )
