"""What the cost model knows of a model: parameters, work and activations of each unit.

A unit is what one all-gather fetches: a block, or the root, which is all that lies outside the
blocks. Blocks are taken to be alike; of a user's own model their mean is taken, so that sums over
all blocks stay right.
"""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.planner.memory import activation_numbers_of_block
from mics_core.planner.parameters import TransformerSizes, count_parameters

__all__ = ["ModelShape", "UnitShape", "shape_of_counts", "shape_of_transformer"]


@dataclass(frozen=True, slots=True)
class UnitShape:
    """One unit."""

    parameters: int
    """Parameters of the unit."""
    flops: float
    """Floating-point operations of a forward pass over one sample; a backward takes twice that."""
    activations: int = 0
    """Numbers of one sample that backward needs, unless they are computed again."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model, as far as memory, bytes and time go."""

    num_blocks: int
    """Number of blocks (L)."""
    block: UnitShape
    """One block; the mean where they differ."""
    root: UnitShape
    """What is outside the blocks: embeddings at the bottom, norm and head at the top."""
    sequence_length: int
    """Tokens of a sample."""
    block_inputs: int = 0
    """Numbers of one sample that enter a block: what checkpointing keeps of it."""
    largest_block_parameters: int = 0
    """Parameters of the largest block; 0 for blocks that are alike."""
    knows_activations: bool = True
    """Whether the activations are counted; else they are 0, and memory is kept for them."""
    logits: int = 0
    """Logits of one sample, of which the loss needs copies (`memory.logit_bytes`)."""

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.root.parameters + self.num_blocks * self.block.parameters

    @property
    def largest_block(self) -> int:
        """Parameters of the largest block."""
        if not self.num_blocks:
            return 0
        return max(self.largest_block_parameters, self.block.parameters)

    @property
    def forward_flops(self) -> float:
        """Operations of a forward pass over one sample."""
        return self.root.flops + self.num_blocks * self.block.flops


def shape_of_transformer(sizes: TransformerSizes) -> ModelShape:
    """Return the shape of a transformer, by formula.

    A matrix of n numbers takes 2n operations a token, and attention over s tokens of width h
    another 4·s·h, causal or not (Narayanan et al., "Efficient Large-Scale Language Model Training
    on GPU Clusters Using Megatron-LM", SC 2021, appendix). Norms, biases and look-ups are left out.
    """
    counts = count_parameters(sizes)
    length, hidden, width = sizes.sequence_length, sizes.hidden_size, sizes.intermediate_size
    if sizes.family == "llama":
        key_value_heads = sizes.num_key_value_heads or sizes.num_heads
        key_value_size = key_value_heads * (hidden // sizes.num_heads)
        matrices = 2 * hidden * hidden + 2 * hidden * key_value_size + 3 * hidden * width
    else:
        matrices = 4 * hidden * hidden + 2 * hidden * width
    head = hidden * sizes.vocab_size
    if sizes.family in ("bert", "roberta"):
        head += hidden * hidden
    return ModelShape(
        num_blocks=counts.num_blocks,
        block=UnitShape(
            counts.block,
            2.0 * length * matrices + 4.0 * length * length * hidden,
            length * activation_numbers_of_block(sizes),
        ),
        root=UnitShape(counts.root, 2.0 * length * head),
        sequence_length=length,
        block_inputs=length * hidden,
        logits=length * sizes.vocab_size,
    )


def shape_of_counts(
    blocks: tuple[int, ...], root_parameters: int, sequence_length: int
) -> ModelShape:
    """Return the shape of a model of which only the parameters are known, such as a user's own.

    Every parameter is taken for a number of a matrix, at 2 operations a token. Activations are not
    known before the model runs.

    Args:
        blocks: Parameters of each block.
        root_parameters: Parameters outside the blocks.
        sequence_length: Tokens of a sample.
    """
    mean = -(-sum(blocks) // len(blocks)) if blocks else 0
    return ModelShape(
        num_blocks=len(blocks),
        block=UnitShape(mean, 2.0 * sequence_length * mean),
        root=UnitShape(root_parameters, 2.0 * sequence_length * root_parameters),
        sequence_length=sequence_length,
        largest_block_parameters=max(blocks, default=0),
        knows_activations=False,
    )
