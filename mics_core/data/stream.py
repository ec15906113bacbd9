"""The token stream: all documents end to end, cut into windows of one sequence length.

Packing wastes no token on padding, and a sample is a pure function of its index. Text is held in
memory at 2 or 4 bytes a token; token files stay on disk and are mapped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mics_core.data.samples import Int64Array, Sample
from mics_core.data.tokenizer import Tokenizer
from mics_core.errors import DataError

__all__ = ["StreamSamples", "TokenStream", "map_token_file", "pack_documents"]

_NUM_LOOKED_AT = 16
"""Samples that stand for all: reading every one of a mapped file would take as long as an epoch."""


class TokenStream:
    """One sequence of token ids over one or several arrays.

    Args:
        parts: Arrays of integers, each of shape (tokens,), in the order of the stream.
        id_limit: Bound below which all ids must lie, checked as they are read; none for no bound.
    """

    def __init__(self, parts: Sequence[NDArray[Any]], id_limit: int | None = None):
        self._parts = tuple(parts)
        self._ends = tuple(accumulate(len(part) for part in self._parts))
        self._id_limit = id_limit

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> Int64Array:
        """Return the tokens from `start` up to `stop`, an own copy of shape (stop - start,).

        Raises:
            DataError: An id is negative or not below the limit.
        """
        tokens = self.read_unchecked(start, stop)
        self._check(tokens, start)
        return tokens

    def read_unchecked(self, start: int, stop: int) -> Int64Array:
        """Return tokens whatever their ids are."""
        tokens = np.empty(stop - start, dtype=np.int64)
        number, position = bisect_right(self._ends, start), start
        while position < stop:
            part, end = self._parts[number], min(stop, self._ends[number])
            offset = self._ends[number] - len(part)
            tokens[position - start : end - start] = part[position - offset : end - offset]
            number, position = number + 1, end
        return tokens

    def _check(self, tokens: Int64Array, start: int) -> None:
        too_large = tokens >= self._id_limit if self._id_limit is not None else False
        wrong = np.flatnonzero((tokens < 0) | too_large)
        if wrong.size:
            limit = "" if self._id_limit is None else f" and below {self._id_limit}"
            raise DataError(
                f"token {start + int(wrong[0])} of the data has the id {tokens[wrong[0]]}, but ids"
                f" must be at least 0{limit}.",
                remedy="Check data.token_dtype, set model.vocab_size, or name the tokenizer file.",
                field="data.paths",
            )


class StreamSamples:
    """Windows of one sequence length over a token stream.

    Causal: sample i reads tokens i·L to i·L + L; its labels are the same window one token later.
    Masked: sample i is the window i·L to i·L + L, its labels are the tokens themselves, and masking
    happens where the batch is built, since it depends on the position in the run.

    Args:
        stream: The tokens.
        sequence_length: L, the tokens of one sample.
        objective: Language-modelling loss.

    Raises:
        DataError: The stream is too short for one sample.
    """

    def __init__(
        self, stream: TokenStream, sequence_length: int, objective: Literal["causal", "masked"]
    ):
        self._stream = stream
        self._sequence_length = sequence_length
        self._lookahead = 1 if objective == "causal" else 0
        needed = sequence_length + self._lookahead
        if len(stream) < needed:
            raise DataError(
                f"the data holds {len(stream)} tokens, but one sample of"
                f" training.sequence_length {sequence_length} needs {needed}.",
                remedy="Give more data, or a shorter training.sequence_length.",
                field="data.paths",
            )

    def __len__(self) -> int:
        return (len(self._stream) - self._lookahead) // self._sequence_length

    @property
    def content(self) -> int:
        """A number of 52 bits that tells the data from others, by samples all over it."""
        digest, last = blake2b(digest_size=8), len(self) - 1
        for part in range(_NUM_LOOKED_AT):
            start = last * part // (_NUM_LOOKED_AT - 1) * self._sequence_length
            digest.update(self._stream.read_unchecked(start, start + self._sequence_length).data)
        return int.from_bytes(digest.digest(), "big") >> 12

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} does not exist")
        start = index * self._sequence_length
        tokens = self._stream.read(start, start + self._sequence_length + self._lookahead)
        labels = tokens[self._lookahead :]
        return Sample(input_ids=tokens[: self._sequence_length], labels=labels)


def pack_documents(documents: Iterable[bytes], tokenizer: Tokenizer) -> TokenStream:
    """Return the documents' tokens end to end, as uint16 where all ids fit, else as uint32."""
    dtype = np.dtype(np.uint16 if tokenizer.num_ids <= 1 << 16 else np.uint32)
    # array grows in place, so the peak is little more than the stream itself.
    tokens = array("H" if dtype.itemsize == 2 else "I")
    assert tokens.itemsize == dtype.itemsize, (
        "C's short and int have 2 and 4 bytes where torch runs"
    )
    for document in documents:
        ids = tokenizer.encode(document).astype(dtype, copy=False)
        tokens.frombytes(ids.view(np.uint8).data)
    return TokenStream([np.frombuffer(tokens, dtype=dtype)])


def map_token_file(path: Path, token_dtype: str) -> NDArray[Any]:
    """Map a file of token ids into memory.

    Args:
        path: A `.npy` file, or a raw file in the machine's byte order.
        token_dtype: Type of the ids in a raw file; `.npy` files bring their own.

    Returns:
        An array of integers of shape (tokens,), read-only and left on disk.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".npy":
            tokens: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.stat().st_size == 0:
            tokens = np.empty(0, dtype=token_dtype)  # an empty file cannot be mapped
        else:
            tokens = np.memmap(path, dtype=token_dtype, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as token ids of {token_dtype}: {error}.",
            remedy="Check data.token_dtype and that the file is whole.",
            field="data.paths",
        ) from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(
            f"{path} holds {tokens.dtype} of shape {tokens.shape}, but token ids are integers of"
            " shape (tokens,).",
            remedy="Save the ids as one flat array of integers.",
            field="data.paths",
        )
    return tokens
