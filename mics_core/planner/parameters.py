"""Parameter counts of the transformer families, by formula.

The planner must know a model's size before anything is built, in processes without torch. The
formulas follow the classes of `transformers` (`GPT2LMHeadModel`, `LlamaForCausalLM`,
`BertForMaskedLM`, `RobertaForMaskedLM`) and are tested against them parameter by parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Family", "ParameterCounts", "TransformerSizes", "count_parameters"]

Family = Literal["gpt2", "llama", "bert", "roberta"]

_NUM_TOKEN_TYPES = 2
_ROBERTA_POSITION_OFFSET = 2  # RoBERTa numbers positions from padding_idx + 1 = 2


@dataclass(frozen=True, slots=True)
class TransformerSizes:
    """The sizes that determine how many parameters a model has."""

    family: Family
    """Architecture family."""
    hidden_size: int
    """Width of the residual stream (h)."""
    num_layers: int
    """Number of blocks."""
    num_heads: int
    """Attention heads of each block."""
    intermediate_size: int
    """Width of the feed-forward layer (i)."""
    vocab_size: int
    """Rows of the embedding (V)."""
    sequence_length: int
    """Tokens of a sample: the learned positions of all families but llama."""
    tie_embeddings: bool = True
    """Whether the output projection is the input embedding."""
    num_key_value_heads: int | None = None
    """For llama: heads of keys and values; none for `num_heads`."""


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters by unit: what is outside the blocks at the bottom and at the top, and a block."""

    embeddings: int
    """Token, position and type embeddings and their norm."""
    block: int
    """One transformer block; all are alike."""
    num_blocks: int
    """Number of blocks."""
    head: int
    """Final norm, prediction head, and the output projection unless it is tied."""

    @property
    def root(self) -> int:
        """Parameters outside the blocks: FSDP gathers them as one unit."""
        return self.embeddings + self.head

    @property
    def total(self) -> int:
        """Parameters of the model; tied ones count once."""
        return self.root + self.num_blocks * self.block

    @property
    def largest_unit(self) -> int:
        """Parameters of the largest unit that is gathered at once."""
        return max(self.root, self.block if self.num_blocks else 0)


def count_parameters(sizes: TransformerSizes) -> ParameterCounts:
    """Count the parameters of a model from its sizes.

    Args:
        sizes: Sizes of the model, as its `transformers` configuration has them.

    Returns:
        The counts by unit.
    """
    count = {"gpt2": _gpt2, "llama": _llama, "bert": _bert, "roberta": _bert}[sizes.family]
    return count(sizes)


def _gpt2(sizes: TransformerSizes) -> ParameterCounts:
    hidden, vocab = sizes.hidden_size, sizes.vocab_size
    attention = _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    return ParameterCounts(
        embeddings=vocab * hidden + sizes.sequence_length * hidden,
        block=2 * _layer_norm(hidden) + attention + _feed_forward(sizes),
        num_blocks=sizes.num_layers,
        head=_layer_norm(hidden) + _output_weight(sizes),
    )


def _llama(sizes: TransformerSizes) -> ParameterCounts:
    """No biases, RMS norms with a weight alone, rotary positions, gated feed-forward."""
    hidden, vocab = sizes.hidden_size, sizes.vocab_size
    head_size = hidden // sizes.num_heads
    key_value_size = (sizes.num_key_value_heads or sizes.num_heads) * head_size
    attention = 2 * hidden * hidden + 2 * hidden * key_value_size
    return ParameterCounts(
        embeddings=vocab * hidden,
        block=2 * hidden + attention + 3 * hidden * sizes.intermediate_size,
        num_blocks=sizes.num_layers,
        head=hidden + _output_weight(sizes),
    )


def _bert(sizes: TransformerSizes) -> ParameterCounts:
    hidden, vocab = sizes.hidden_size, sizes.vocab_size
    is_roberta = sizes.family == "roberta"
    positions = sizes.sequence_length + (_ROBERTA_POSITION_OFFSET if is_roberta else 0)
    # Untied, the head keeps its own bias and the projection brings a second one.
    output_bias = vocab if sizes.tie_embeddings else 2 * vocab
    return ParameterCounts(
        embeddings=(vocab + positions + _NUM_TOKEN_TYPES) * hidden + _layer_norm(hidden),
        block=4 * _linear(hidden, hidden) + _feed_forward(sizes) + 2 * _layer_norm(hidden),
        num_blocks=sizes.num_layers,
        head=_linear(hidden, hidden) + _layer_norm(hidden) + _output_weight(sizes) + output_bias,
    )


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _layer_norm(size: int) -> int:
    return 2 * size


def _feed_forward(sizes: TransformerSizes) -> int:
    up = _linear(sizes.hidden_size, sizes.intermediate_size)
    return up + _linear(sizes.intermediate_size, sizes.hidden_size)


def _output_weight(sizes: TransformerSizes) -> int:
    return 0 if sizes.tie_embeddings else sizes.vocab_size * sizes.hidden_size
