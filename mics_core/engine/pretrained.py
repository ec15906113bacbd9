"""What `from_pretrained` of transformers needs beside the weights, from a job's specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mics_core.data.tokenizer import MASK_TOKENS, build_tokenizer
from mics_core.engine.models import build_meta_model
from mics_core.errors import CheckpointError
from mics_core.spec.job import JobSpec, TokenizerSpec, TransformersModel

__all__ = ["Pretrained", "build_pretrained"]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The model of a job, as transformers knows it.

    Args:
        spec: The job.
        model: The model on the meta device.
        names: The names under which each of its tensors is stored once.
    """

    spec: JobSpec
    model: nn.Module
    names: tuple[str, ...]

    def check(self, forms: Mapping[str, torch.Tensor], path: str) -> None:
        """Compare the model with the tensors of a checkpoint.

        Args:
            forms: Names, shapes and dtypes in the checkpoint.
            path: The checkpoint, for messages.

        Raises:
            CheckpointError: They are of another model.
        """
        state = self.model.state_dict()
        if alone := sorted(forms.keys() ^ state.keys()):
            difference = f"{alone[0]!r} is in one of them alone ({len(alone)} such)."
        else:
            changed = [name for name in state if state[name].shape != forms[name].shape]
            if not changed:
                return
            here, there = (tuple(each[changed[0]].shape) for each in (state, forms))
            difference = f"{changed[0]!r} has shape {there} there and {here} in the job."
        raise CheckpointError(
            f"The checkpoint {path} is of another model: {difference}",
            remedy="Name the job that wrote it.",
        )

    def write(self, folder: Path, dtype: torch.dtype) -> tuple[str, ...]:
        """Write the configuration and the tokenizer.

        Args:
            folder: Where to.
            dtype: Type of the stored weights.

        Returns:
            What the reader should know, in sentences.
        """
        assert isinstance(self.spec.model, TransformersModel)
        config: Any = self.model.config
        config.architectures = [type(self.model).__name__]
        config.dtype = dtype
        # Training has no use for a cache, and turned it off; generating has.
        config.use_cache = self.spec.model.options.get("use_cache", True)
        notes: tuple[str, ...] = ()
        if self.spec.tokenizer.kind == "file":
            length = self.spec.training.sequence_length
            config.eos_token_id = _write_tokenizer(self.spec.tokenizer, length, folder)
        else:
            notes = ("It holds no tokenizer: the job names no tokenizer file.",)
        config.save_pretrained(folder)
        return notes


def build_pretrained(spec: JobSpec) -> Pretrained:
    """Build the model of a job that names one of transformers; costs no memory.

    Raises:
        SpecificationError: The model cannot be built.
        DataError: The tokenizer file cannot be read.
    """
    build_tokenizer(spec.tokenizer)  # first, for the model's error would hide what is missing
    model = build_meta_model(spec)
    # They give a tensor that several modules share its first name alone.
    once = dict([*model.named_parameters(), *model.named_buffers()])
    return Pretrained(spec, model, tuple(name for name in model.state_dict() if name in once))


def _write_tokenizer(spec: TokenizerSpec, length: int, folder: Path) -> int | None:
    """Write the tokenizer as transformers reads it; return the id that ends a document."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=spec.path, eos_token=spec.end_of_document, model_max_length=length
    )
    known = tokenizer.get_vocab()
    if mask := next((token for token in MASK_TOKENS if token in known), None):
        tokenizer.mask_token = mask
    tokenizer.save_pretrained(folder)
    end: int | None = tokenizer.eos_token_id
    return end
