"""A user's own data: a collection built by their `module:callable`, with every sample checked.

The checks turn mistakes that would surface as a failed kernel on one GPU of one node into a
sentence that names the sample and the rule.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from mics_core.data.samples import IGNORED_LABEL, Int64Array, Sample
from mics_core.errors import DataError
from mics_core.spec.job import CallableData

__all__ = ["UserSamples", "build_user_samples"]

_FIELD = "data.callable"


class UserSamples:
    """A user's collection, whose items become checked samples.

    Args:
        items: Sized and indexable; each item is a mapping with `input_ids`, `labels` and perhaps
            `attention_mask`, sequences of integers, arrays or CPU tensors, of shape (L,). Labels
            are already shifted; -100 stands where there is no loss.
        name: How messages name the collection.
        sequence_length: L.
        id_limit: Bound below which ids and labels must lie; none for no bound.

    Raises:
        DataError: The collection has no length, no indexing, or no item.
    """

    def __init__(self, items: Any, name: str, sequence_length: int, id_limit: int | None = None):
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise DataError(
                f"{name} returned {type(items).__name__}, which has no length or no indexing.",
                remedy="Return a collection with __len__ and __getitem__, such as a list.",
                field=_FIELD,
            )
        if len(items) == 0:
            raise DataError(
                f"{name} returned a collection of 0 samples, but training needs at least one.",
                remedy="Check data.arguments and the data behind them.",
                field=_FIELD,
            )
        self._items = items
        self._name = name
        self._sequence_length = sequence_length
        self._id_limit = id_limit

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} does not exist")
        try:
            item = self._items[index]
        except Exception as error:  # whatever the user's code raises, the sample is named
            raise self._refusal(
                index, f"reading it raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(item, Mapping):
            raise self._refusal(index, f"it is {type(item).__name__}, but must be a mapping")
        input_ids = self._integers(index, item, "input_ids")
        labels = self._integers(index, item, "labels")
        self._check_ids(index, "input_ids", input_ids)
        self._check_ids(index, "labels", labels[labels != IGNORED_LABEL])
        if item.get("attention_mask") is None:
            return Sample(input_ids, labels)
        attention_mask = self._integers(index, item, "attention_mask")
        if not np.isin(attention_mask, (0, 1)).all():
            raise self._refusal(index, "attention_mask must hold nothing but 0 and 1")
        return Sample(input_ids, labels, attention_mask)

    def _integers(self, index: int, item: Mapping[str, Any], key: str) -> Int64Array:
        if key not in item:
            raise self._refusal(index, f"it has no {key}, only {', '.join(map(str, item))}")
        try:
            values = np.asarray(item[key])
        except Exception as error:  # ragged lists, tensors on a GPU: each library has its own error
            raise self._refusal(index, f"{key} is no array of integers ({error})") from error
        is_mask = key == "attention_mask" and values.dtype == np.bool_
        if not (np.issubdtype(values.dtype, np.integer) or is_mask):
            raise self._refusal(index, f"{key} must be integers, but is {values.dtype}")
        if values.shape != (self._sequence_length,):
            raise self._refusal(
                index,
                f"{key} must have the shape ({self._sequence_length},) of"
                f" training.sequence_length, but has {values.shape}",
            )
        return values.astype(np.int64)

    def _check_ids(self, index: int, key: str, ids: Int64Array) -> None:
        too_large = ids >= self._id_limit if self._id_limit is not None else False
        wrong = ids[(ids < 0) | too_large]
        if wrong.size:
            limit = "" if self._id_limit is None else f" and below {self._id_limit}"
            raise self._refusal(
                index, f"{key} holds the id {wrong[0]}, but ids must be at least 0{limit}"
            )

    def _refusal(self, index: int, rule: str) -> DataError:
        return DataError(
            f"sample {index} of {self._name} is refused: {rule}.",
            remedy="Correct the collection that data.callable returns.",
            field=_FIELD,
        )


def build_user_samples(
    data: CallableData, sequence_length: int, id_limit: int | None = None
) -> UserSamples:
    """Import the user's callable and return the collection that it builds.

    Raises:
        DataError: It cannot be imported or called, or returns no collection.
    """
    module_name, _, attribute_path = data.callable.partition(":")
    try:
        module = importlib.import_module(module_name)
        build = reduce(getattr, attribute_path.split("."), module)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise DataError(
            f"data.callable {data.callable!r} cannot be imported: {type(error).__name__}: {error}.",
            remedy="Install the module on every node, or put its folder on PYTHONPATH.",
            field=_FIELD,
        ) from error
    if not callable(build):
        raise DataError(
            f"data.callable {data.callable!r} is {type(build).__name__}, which cannot be called.",
            remedy="Name a function that returns the collection of samples.",
            field=_FIELD,
        )
    try:
        items = build(**data.arguments)
    except Exception as error:  # a user's function may raise anything
        raise DataError(
            f"data.callable {data.callable!r} with the arguments {data.arguments} raised"
            f" {type(error).__name__}: {error}.",
            remedy="Correct data.arguments or the function.",
            field=_FIELD,
        ) from error
    return UserSamples(items, f"data.callable {data.callable!r}", sequence_length, id_limit)
