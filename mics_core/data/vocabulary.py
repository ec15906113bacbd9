"""How many rows the embedding needs, and which ids the data may hold.

These are rules over the tokenizer, the data and the model together, known before any data is read.
"""

from __future__ import annotations

from mics_core.data.tokenizer import Tokenizer, build_tokenizer
from mics_core.errors import DataError
from mics_core.spec.job import FileData, JobSpec, TransformersModel

__all__ = ["check_vocabulary", "id_limit", "vocabulary_size"]


def vocabulary_size(spec: JobSpec) -> int:
    """Return the rows that the embedding needs: the tokenizer's ids, and the mask if it is used.

    Raises:
        DataError: The tokenizer file cannot be read.
    """
    return _vocabulary_size(spec, build_tokenizer(spec.tokenizer))


def check_vocabulary(spec: JobSpec, tokenizer: Tokenizer) -> None:
    """Check that the model's embedding has a row for every id that the tokenizer may give.

    Token files and users' own data may hold fewer ids than the tokenizer knows: theirs are checked
    as they are read, against `id_limit`.

    Raises:
        DataError: `model.vocab_size` is too small.
    """
    rows = _embedding_rows(spec)
    is_tokenised_here = isinstance(spec.data, FileData) and spec.data.kind != "tokens"
    needed = _vocabulary_size(spec, tokenizer) if is_tokenised_here else 0
    if isinstance(spec.data, FileData) and spec.objective == "masked":
        needed = max(needed, tokenizer.mask_id + 1)
    if rows is not None and rows < needed:
        raise DataError(
            f"model.vocab_size {rows} is below the {needed} ids that the data needs.",
            remedy=f"Set model.vocab_size to at least {needed}, or leave it out.",
            field="model.vocab_size",
        )


def id_limit(spec: JobSpec, tokenizer: Tokenizer) -> int | None:
    """Return the bound below which all ids of token files and users' data must lie.

    Returns:
        The rows of the embedding. For masked training on files it is the tokenizer's number of ids
        instead, since larger ones might be taken for the mask. None for a user's own model, whose
        embedding is not known.
    """
    if isinstance(spec.data, FileData) and spec.objective == "masked":
        return tokenizer.num_ids
    if not isinstance(spec.model, TransformersModel):
        return None
    return _embedding_rows(spec) or _vocabulary_size(spec, tokenizer)


def _vocabulary_size(spec: JobSpec, tokenizer: Tokenizer) -> int:
    if spec.objective == "masked":
        return max(tokenizer.num_ids, tokenizer.mask_id + 1)
    return tokenizer.num_ids


def _embedding_rows(spec: JobSpec) -> int | None:
    """Rows of the embedding, where the specification says so."""
    return spec.model.vocab_size if isinstance(spec.model, TransformersModel) else None
