"""Builds the model of a job on the meta device: structure and shapes, no memory.

Weights come later, unit by unit (`mics_core.engine.sharding`), so that no worker ever holds the
whole model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mics_core.data.vocabulary import vocabulary_size
from mics_core.errors import Problem, SpecificationError
from mics_core.spec.job import CallableModel, JobSpec, TransformersModel

__all__ = ["build_meta_model"]


def build_meta_model(spec: JobSpec) -> nn.Module:
    """Build the model of `spec` on the meta device.

    A user's `module:callable` is called with its arguments and must return an `nn.Module` whose
    `forward(input_ids, attention_mask=None)` takes int64 tensors of shape (micro_batch, sequence)
    and returns logits of shape (micro_batch, sequence, vocabulary), or an object with `.logits`.
    What else is asked of it is in `docs/job-specification.md`, at `model`: your own.

    Raises:
        SpecificationError: The model cannot be imported or built; names the field and the cause.
    """
    try:
        with torch.device("meta"):
            if isinstance(spec.model, CallableModel):
                model = _build_users_model(spec.model)
            else:
                model = _build_transformers_model(spec.model, spec)
    except SpecificationError:
        raise
    except Exception as error:
        raise SpecificationError(
            [
                Problem(
                    "model",
                    f"{type(error).__name__}: {error}",
                    "the model could not be built.",
                    "Correct the sizes, the options or the builder.",
                )
            ]
        ) from error
    return model.train()


def _build_users_model(spec: CallableModel) -> nn.Module:
    model = import_callable(spec.callable, "model.callable")(**spec.arguments)
    if not isinstance(model, nn.Module):
        raise SpecificationError(
            [
                Problem(
                    "model.callable",
                    spec.callable,
                    f"it returned a {type(model).__name__}, no torch.nn.Module.",
                    "Return the module.",
                )
            ]
        )
    return model


def import_callable(path: str, field: str) -> Callable[..., Any]:
    """Import `package.module:name`.

    Raises:
        SpecificationError: Names `field` and what is missing.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SpecificationError(
            [
                Problem(
                    field,
                    path,
                    f"it cannot be imported ({error}).",
                    "Install the module on every node, or send it along as the working directory.",
                )
            ]
        ) from None
    return found  # type: ignore[no-any-return]


def _build_transformers_model(model: TransformersModel, spec: JobSpec) -> nn.Module:
    # Imported here: transformers takes seconds to load, and users' models may not need it.
    import transformers

    length = spec.training.sequence_length
    common = {
        "vocab_size": model.vocab_size or vocabulary_size(spec),
        "tie_word_embeddings": model.tie_embeddings,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    width = model.intermediate_size or 4 * model.hidden_size
    if model.family == "gpt2":
        config = transformers.GPT2Config(
            **common
            | {
                "n_embd": model.hidden_size,
                "n_layer": model.num_layers,
                "n_head": model.num_heads,
                "n_inner": width,
                "n_positions": length,
                "resid_pdrop": model.dropout,
                "embd_pdrop": model.dropout,
                "attn_pdrop": model.dropout,
            }
            | model.options
        )
        return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]
    sizes: dict[str, Any] = common | {
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": width,
    }
    if model.family == "llama":
        sizes |= {"max_position_embeddings": length, "attention_dropout": model.dropout}
        config = transformers.LlamaConfig(**sizes | model.options)
        return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]
    sizes |= {
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "is_decoder": spec.objective == "causal",
    }
    if model.family == "bert":
        config = transformers.BertConfig(
            **sizes | {"max_position_embeddings": length} | model.options
        )
        bert = transformers.BertLMHeadModel if config.is_decoder else transformers.BertForMaskedLM
        return bert(config)  # type: ignore[no-any-return]
    # RoBERTa counts positions from padding_idx + 1, so its table has two rows more.
    config = transformers.RobertaConfig(
        **sizes | {"max_position_embeddings": length + 2} | model.options
    )
    roberta = (
        transformers.RobertaForCausalLM if config.is_decoder else transformers.RobertaForMaskedLM
    )
    return roberta(config)  # type: ignore[no-any-return]
