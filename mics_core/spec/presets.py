"""Models that are known by name: `model: {preset: bert-10b}`, with any field set on top.

The BERT models of 10 to 50 billion parameters are those that MiCS was published with (Zhang et al.,
"MiCS: Near-linear Scaling for Training Gigantic Model on Public Cloud", VLDB 2023, section 5). The
sizes of the well-known ones are those of their `transformers` configurations. The tiny ones are to
try things out; their vocabulary is the tokenizer's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mics_core.spec.rules import RuleError

__all__ = ["MODEL_PRESETS", "ask_for_sizes_or_preset", "expand_preset"]


def _sizes(
    family: str,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    *,
    vocab_size: int | None = None,
    **others: Any,
) -> Mapping[str, Any]:
    sizes = {
        "family": family,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        **others,
    }
    return sizes if vocab_size is None else sizes | {"vocab_size": vocab_size}


_PAPER_VOCABULARY = 32008

MODEL_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "bert-tiny": _sizes("bert", 128, 4, 4),
    "gpt2-tiny": _sizes("gpt2", 128, 4, 4),
    "llama-tiny": _sizes("llama", 128, 4, 4, intermediate_size=352),
    "roberta-tiny": _sizes("roberta", 128, 4, 4),
    "bert-base": _sizes("bert", 768, 12, 12, vocab_size=30522),
    "bert-large": _sizes("bert", 1024, 24, 16, vocab_size=30522),
    "roberta-base": _sizes("roberta", 768, 12, 12, vocab_size=50265),
    "gpt2-small": _sizes("gpt2", 768, 12, 12, vocab_size=50257),
    "gpt2-medium": _sizes("gpt2", 1024, 24, 16, vocab_size=50257),
    "gpt2-large": _sizes("gpt2", 1280, 36, 20, vocab_size=50257),
    "gpt2-xl": _sizes("gpt2", 1600, 48, 25, vocab_size=50257),
    "llama-160m": _sizes(
        "llama", 768, 12, 12, intermediate_size=3072, vocab_size=32000, tie_embeddings=False
    ),
    "llama-1b": _sizes(
        "llama",
        2048,
        16,
        32,
        intermediate_size=8192,
        vocab_size=128256,
        options={"num_key_value_heads": 8},
    ),
    "bert-10b": _sizes("bert", 2560, 127, 40, vocab_size=_PAPER_VOCABULARY),
    "bert-15b": _sizes("bert", 2560, 190, 40, vocab_size=_PAPER_VOCABULARY),
    "bert-20b": _sizes("bert", 5120, 64, 40, vocab_size=_PAPER_VOCABULARY),
    # With 64 heads of 128: 40 heads, as the smaller ones have, do not divide 8192.
    "bert-50b": _sizes("bert", 8192, 62, 64, vocab_size=_PAPER_VOCABULARY),
}
"""Fields of `model` by preset."""


def expand_preset(value: Any) -> Any:
    """Return `value` with the fields of its preset, over which its own go; others as they are.

    The preset's name is kept, so that a reader still sees it.

    Raises:
        RuleError: There is no such preset; names close ones.
    """
    if not isinstance(value, Mapping) or value.get("preset") is None:
        return value
    name = value["preset"]
    fields = MODEL_PRESETS.get(name) if isinstance(name, str) else None
    if fields is None:
        close = difflib.get_close_matches(str(name)[:40], MODEL_PRESETS, n=3, cutoff=0.5)
        hint = f"Did you mean {_listed(close)}?" if close else f"Known: {_listed(MODEL_PRESETS)}."
        raise RuleError("preset must be a known model.", hint)
    return {**fields, **value}


def ask_for_sizes_or_preset(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that a preset stands for the sizes."""
    sizes = schema.pop("required", [])
    schema["anyOf"] = [{"required": ["preset"]}, {"required": sizes}]
    schema["properties"]["preset"]["examples"] = list(MODEL_PRESETS)


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
