"""How much memory training takes: model states exactly, activations as an estimate.

Model states are what is sharded inside a partition group: parameters, gradients and the optimizer's
moments (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
SC 2020, section 3.1). Activations are not sharded. They are counted as the tensors that backward
needs of each layer (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
Models", MLSys 2023, section 4), without the attention matrix, which fused attention does not keep.
"""

from __future__ import annotations

from typing import Literal

from mics_core.planner.parameters import TransformerSizes

__all__ = [
    "STAGING_SLOT_BYTES",
    "Optimizer",
    "Precision",
    "activation_bytes",
    "activation_numbers_of_block",
    "checkpointed_bytes_per_parameter",
    "compute_bytes_per_number",
    "logit_bytes",
    "model_state_bytes_per_parameter",
    "reduce_bytes_per_number",
]

STAGING_SLOT_BYTES = 8 << 20
"""What a worker on the host shows the others of its node at a time (`mics_core.comm.staging`)."""

Precision = Literal["fp32", "bf16", "fp64"]
Optimizer = Literal["adamw", "sgd"]

_COPIES_OF_LOGITS = 3
"""Log-probabilities, the loss' gradient by them, and its gradient by the logits: what is alive
while `log_softmax` is differentiated. Forward holds less: the logits and the log-probabilities."""


def compute_bytes_per_number(precision: Precision) -> int:
    """Return the bytes of one gathered parameter, or of one activation."""
    return {"bf16": 2, "fp32": 4, "fp64": 8}[precision]


def model_state_bytes_per_parameter(
    precision: Precision, optimizer: Optimizer = "adamw", *, has_momentum: bool = False
) -> int:
    """Return the bytes of all model states of one parameter.

    Parameter, gradient and the optimizer's moments (two for AdamW, one for SGD with momentum), 4
    bytes each, 8 in fp64. With bf16 they are kept in fp32: FSDP2 casts a shard each time that it
    gathers a unit, and holds nothing in bf16 beside it.

    Args:
        precision: Precision of the training.
        optimizer: The update rule.
        has_momentum: For SGD: whether it keeps a momentum.
    """
    kept = checkpointed_bytes_per_parameter(precision, optimizer, has_momentum=has_momentum)
    return kept + reduce_bytes_per_number(precision)


def checkpointed_bytes_per_parameter(
    precision: Precision, optimizer: Optimizer = "adamw", *, has_momentum: bool = False
) -> int:
    """Return the bytes of one parameter in a checkpoint: of all model states but the gradient.

    Args:
        precision: Precision of the training.
        optimizer: The update rule.
        has_momentum: For SGD: whether it keeps a momentum.
    """
    num_moments = 2 if optimizer == "adamw" else int(has_momentum)
    return (1 + num_moments) * reduce_bytes_per_number(precision)


def logit_bytes(precision: Precision) -> int:
    """Return the bytes of one logit while the loss is differentiated.

    Three numbers of 4 bytes, of 8 in fp64. In bf16 it is no less, for the trainer takes the loss in
    fp32; the logits in bf16 are gone by then.
    """
    return _COPIES_OF_LOGITS * reduce_bytes_per_number(precision)


def activation_bytes(
    sizes: TransformerSizes,
    *,
    micro_batch_size: int,
    precision: Precision,
    is_checkpointed: bool = False,
) -> int:
    """Estimate the activations that one worker holds at most within a micro-batch.

    Args:
        sizes: Sizes of the model.
        micro_batch_size: Samples that the worker takes at a time.
        precision: Precision of the activations.
        is_checkpointed: Whether each block keeps its input alone and is computed again in backward.

    Returns:
        Bytes; an estimate, which dropout and unfused operations exceed by a few per cent.
    """
    compute = compute_bytes_per_number(precision)
    block = activation_numbers_of_block(sizes) * compute
    logits = sizes.vocab_size * logit_bytes(precision)
    if is_checkpointed:
        # Nothing is computed again before the loss has been differentiated.
        per_token = sizes.num_layers * sizes.hidden_size * compute + max(block, logits)
    else:
        per_token = sizes.num_layers * block + logits
    return micro_batch_size * sizes.sequence_length * per_token


def activation_numbers_of_block(sizes: TransformerSizes) -> int:
    """Return the numbers of one token that backward needs of one block.

    Of width h: the inputs of two norms, of the projections to queries, keys and values, these
    three, the input of the output projection, and that of the feed-forward; in Llama also what its
    two norms multiply their weights with. Of width i: both sides of the activation function, twice
    where it is gated; GPT-2's `gelu_new` is no operation of its own, and keeps three steps between.
    """
    num_narrow = 10 if sizes.family == "llama" else 8
    num_wide = {"llama": 4, "gpt2": 5}.get(sizes.family, 2)
    return num_narrow * sizes.hidden_size + num_wide * sizes.intermediate_size


def reduce_bytes_per_number(precision: Precision) -> int:
    """Return the bytes of one gradient on its way to other workers."""
    return 8 if precision == "fp64" else 4
