"""How documents become token ids: raw bytes, or a file of the `tokenizers` library.

Documents are bytes. The byte tokenizer takes them as they are; a tokenizer file reads them as UTF-8
with a replacement character for whatever is not.

numpy is loaded where ids are made: the service, which only asks how many there are, goes without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mics_core.errors import DataError
from mics_core.spec.job import TokenizerSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MASK_TOKENS", "ByteTokenizer", "FileTokenizer", "Tokenizer", "build_tokenizer"]

MASK_TOKENS = ("[MASK]", "<mask>")
"""Names of the mask in tokenizer files."""


class Tokenizer(Protocol):
    """Turns documents into token ids."""

    @property
    def num_ids(self) -> int:
        """Ids of documents lie in range(num_ids)."""
        ...

    @property
    def mask_id(self) -> int:
        """Id of the mask token; `num_ids` where the tokenizer has none of its own."""
        ...

    def encode(self, document: bytes) -> NDArray[Any]:
        """Return the ids of a document, with the end-of-document token where there is one.

        Returns:
            Unsigned integers of shape (tokens,), no wider than needed: documents may be large.
        """
        ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes, 256 ends a document, 257 is the mask."""

    num_ids = 257
    mask_id = 257

    def encode(self, document: bytes) -> NDArray[Any]:
        """Return the document's bytes and 256, as uint16."""
        import numpy as np

        ids = np.empty(len(document) + 1, dtype=np.uint16)
        ids[:-1] = np.frombuffer(document, dtype=np.uint8)
        ids[-1] = 256
        return ids


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library, without its truncation, padding and template.

    Args:
        path: The file.
        end_of_document: Token put after every document; none if left out.

    Raises:
        DataError: The file cannot be read, or does not know the token.
    """

    def __init__(self, path: str, end_of_document: str | None = None):
        self._tokenizer = _read_tokenizer(path)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if end_of_document is not None and end_of_document not in vocabulary:
            raise DataError(
                f"tokenizer.end_of_document {end_of_document!r} is no token of {path}.",
                remedy="Name one of its tokens, or leave end_of_document out.",
                field="tokenizer.end_of_document",
            )
        self._ending = [] if end_of_document is None else [vocabulary[end_of_document]]
        # Ids may have gaps, so the largest id counts and not the number of tokens.
        self.num_ids = max(vocabulary.values(), default=-1) + 1
        self.mask_id = next(
            (vocabulary[token] for token in MASK_TOKENS if token in vocabulary), self.num_ids
        )

    def encode(self, document: bytes) -> NDArray[Any]:
        """Return the ids of the document's text and of the end-of-document token, as uint32."""
        import numpy as np

        text = document.decode("utf-8", errors="replace")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([*ids, *self._ending], dtype=np.uint32)


def build_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer that a specification names.

    Raises:
        DataError: The tokenizer file cannot be read, or lacks the end-of-document token.
    """
    if spec.kind == "bytes":
        return ByteTokenizer()
    assert spec.path is not None, "TokenizerSpec demands a path for kind 'file'"
    return FileTokenizer(spec.path, spec.end_of_document)


def _read_tokenizer(path: str) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception for every cause
        raise DataError(
            f"tokenizer.path {path!r} cannot be read as a tokenizer file: {error}.",
            remedy="Name a tokenizer.json as the `tokenizers` library saves it.",
            field="tokenizer.path",
        ) from error
    # A file may bring the limits of the model it was made for; documents must stay whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
