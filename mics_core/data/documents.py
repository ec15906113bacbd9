"""Reads documents from text, JSONL and Parquet files, in an order that is always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mics_core.errors import DataError
from mics_core.spec.job import FileData
from mics_core.spec.matching import files_matching

__all__ = ["data_files", "read_documents"]


def data_files(data: FileData) -> list[Path]:
    """Return all files that `data` names, each once, sorted by path.

    Raises:
        DataError: A path or glob names no file.
    """
    found: set[str] = set()
    for pattern in data.paths:
        files = files_matching(pattern)
        if not files:
            raise DataError(
                f"data.paths: no file matches {pattern!r} on this machine.",
                remedy="Check the path; it must exist on every node of the cluster.",
                field="data.paths",
            )
        found.update(files)
    return [Path(name) for name in sorted(found)]


def read_documents(data: FileData) -> Iterator[bytes]:
    """Read the documents one after the other: files in sorted order, rows in the file's order.

    Args:
        data: Files of kind text, jsonl or parquet.

    Returns:
        An iterator over the documents' UTF-8 bytes; text files are given as they are.

    Raises:
        DataError: Names the file, and the row if there is one, that cannot be read, and the remedy.
    """
    read = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[data.kind]
    for path in data_files(data):
        try:
            yield from read(path, data.column)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror or error}.",
                remedy="Check that the file is whole and that the workers may read it.",
                field="data.paths",
            ) from error


def _read_text(path: Path, _column: str) -> Iterator[bytes]:
    yield path.read_bytes()


def _read_jsonl(path: Path, column: str) -> Iterator[bytes]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{where}: this is no JSON ({error}).",
                    remedy="Each line must be one JSON object in UTF-8.",
                    field="data.paths",
                ) from error
            if not isinstance(row, dict) or column not in row:
                raise DataError(
                    f"{where}: the row has no field {column!r}.",
                    remedy="Name the field that holds the text in data.column.",
                    field="data.column",
                )
            yield _as_document(row[column], where, column)


def _read_parquet(path: Path, column: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if column not in columns:
                raise DataError(
                    f"{path}: there is no column {column!r}, only {', '.join(columns)}.",
                    remedy="Name the column that holds the text in data.column.",
                    field="data.column",
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    yield _as_document(value.as_py(), f"{path}, row {number}", column)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {error}.",
            remedy="Name Parquet files, or set data.kind to what the files are.",
            field="data.paths",
        ) from error


def _as_document(value: Any, where: str, column: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        # JSON may hold half of a surrogate pair, which UTF-8 cannot.
        return value.encode("utf-8", errors="replace")
    raise DataError(
        f"{where}: {column!r} holds {type(value).__name__} where a text is needed.",
        remedy="Remove the row, or name another field in data.column.",
        field="data.column",
    )
