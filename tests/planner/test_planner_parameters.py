"""Parameter counts against the real models of `transformers`, built on torch's meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mics_core.planner.parameters import (
    Family,
    ParameterCounts,
    TransformerSizes,
    count_parameters,
)

# hidden_size, num_layers, num_heads, intermediate_size, vocab_size, sequence_length
SHAPES = [(8, 1, 2, 24, 50, 16), (12, 3, 3, 7, 31, 5), (64, 2, 4, 256, 257, 128)]


def build_model(sizes: TransformerSizes) -> Any:
    # Imported here, so that the pure tests of this file do not wait for it.
    import torch
    import transformers

    common: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "tie_word_embeddings": sizes.tie_embeddings,
    }
    common |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    like_bert = {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": sizes.sequence_length,
    }
    with torch.device("meta"):
        if sizes.family == "gpt2":
            return transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    n_embd=sizes.hidden_size,
                    n_layer=sizes.num_layers,
                    n_head=sizes.num_heads,
                    n_inner=sizes.intermediate_size,
                    n_positions=sizes.sequence_length,
                    **common,
                )
            )
        if sizes.family == "llama":
            heads = sizes.num_key_value_heads or sizes.num_heads
            return transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**common, **like_bert, num_key_value_heads=heads)
            )
        if sizes.family == "bert":
            return transformers.BertForMaskedLM(transformers.BertConfig(**common, **like_bert))
        like_bert["max_position_embeddings"] += 2
        common["pad_token_id"] = 1
        return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**common, **like_bert))


def unit_of(name: str) -> str:
    """The unit a parameter belongs to: a block by its number, what is before, what is after."""
    parts = name.split(".")
    for holder in ("h", "layers", "layer"):
        if holder in parts[:-1] and parts[parts.index(holder) + 1].isdigit():
            return f"block {parts[parts.index(holder) + 1]}"
    is_embedding = any(part in ("embeddings", "embed_tokens", "wte", "wpe") for part in parts)
    return "embeddings" if is_embedding else "head"


def all_sizes() -> Iterator[TransformerSizes]:
    families: tuple[Family, ...] = ("gpt2", "llama", "bert", "roberta")
    for family in families:
        for shape in SHAPES:
            for tie_embeddings in (True, False):
                yield TransformerSizes(family, *shape, tie_embeddings=tie_embeddings)
    yield TransformerSizes("llama", *SHAPES[2], num_key_value_heads=2)


@pytest.mark.parametrize("sizes", list(all_sizes()), ids=lambda sizes: "-".join(map(str, [
    sizes.family, sizes.hidden_size, "tied" if sizes.tie_embeddings else "untied"])))  # fmt: skip
def test_every_unit_has_as_many_parameters_as_the_real_model(sizes: TransformerSizes) -> None:
    measured: Counter[str] = Counter()
    for name, parameter in build_model(sizes).named_parameters():
        measured[unit_of(name)] += parameter.numel()
    counts = count_parameters(sizes)
    assert counts.total == sum(measured.values())
    assert counts.embeddings == measured["embeddings"]
    assert counts.head == measured["head"]
    assert counts.num_blocks == sizes.num_layers
    assert {measured[f"block {i}"] for i in range(sizes.num_layers)} == {counts.block}


@pytest.mark.pure
def test_published_models_have_their_known_sizes() -> None:
    # GPT-2 small, Llama 2 7B and BERT base, as their papers and model cards give them.
    gpt2 = TransformerSizes("gpt2", 768, 12, 12, 3072, 50257, 1024)
    llama = TransformerSizes("llama", 4096, 32, 32, 11008, 32000, 4096, tie_embeddings=False)
    bert = TransformerSizes("bert", 768, 12, 12, 3072, 30522, 512)
    assert count_parameters(gpt2).total == 124_439_808
    assert count_parameters(llama).total == 6_738_415_616
    assert count_parameters(bert).total == 109_514_298


@pytest.mark.pure
def test_the_largest_unit_is_a_block_or_all_that_is_outside_the_blocks() -> None:
    assert ParameterCounts(embeddings=3, block=6, num_blocks=2, head=2).largest_unit == 6
    assert ParameterCounts(embeddings=3, block=4, num_blocks=2, head=2).largest_unit == 5
    assert ParameterCounts(embeddings=3, block=6, num_blocks=2, head=2).total == 17
