"""Files of each kind become exactly the tokens that are in them, in an order that never changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_jobs import BuildJob

from mics_core.data.samples import Samples
from mics_core.data.sources import build_samples
from mics_core.data.stream import TokenStream, pack_documents
from mics_core.data.tokenizer import ByteTokenizer
from mics_core.errors import DataError

pytestmark = pytest.mark.pure


def tokens_of(samples: Samples) -> list[int]:
    """The stream behind causal samples: all inputs, and the last label."""
    ids = [int(token) for sample in map(samples.__getitem__, range(len(samples)))
           for token in sample.input_ids]  # fmt: skip
    return [*ids, int(samples[len(samples) - 1].labels[-1])]


def write_parquet(path: Path, values: list[object], column: str = "text") -> None:
    pq.write_table(pa.table({"other": [0] * len(values), column: values}), path)


def test_text_files_are_packed_in_sorted_order(tmp_path: Path, build_job: BuildJob) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xff\x00")
    (tmp_path / "a.txt").write_bytes(b"abc")
    samples = build_samples(build_job(length=2))
    assert len(samples) == 3
    assert tokens_of(samples) == [97, 98, 99, 256, 255, 0, 256]


def test_causal_labels_are_the_inputs_one_token_later(tmp_path: Path, build_job: BuildJob) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(50)))
    samples = build_samples(build_job(length=7))
    assert len(samples) == 7
    for index in range(7):
        sample = samples[index]
        assert sample.input_ids.dtype == sample.labels.dtype == np.int64
        assert sample.input_ids.tolist() == list(range(7 * index, 7 * index + 7))
        assert sample.labels.tolist() == [*range(7 * index + 1, 7 * index + 7), (7 * index + 7)]


@pytest.mark.parametrize(("objective", "num_samples"), [("causal", 1), ("masked", 2)])
def test_only_the_causal_objective_needs_one_more_token(
    objective: str, num_samples: int, tmp_path: Path, build_job: BuildJob
) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcdefg")
    assert len(build_samples(build_job(length=4, objective=objective))) == num_samples


def test_a_sample_outside_the_collection_does_not_exist(
    tmp_path: Path, build_job: BuildJob
) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcdefg")
    samples = build_samples(build_job())
    for index in (-1, 1):
        with pytest.raises(IndexError):
            samples[index]


def test_jsonl_and_parquet_rows_are_documents_of_one_column(
    tmp_path: Path, build_job: BuildJob
) -> None:
    texts = ["ab", "é", "", "\ud800"]
    rows = [json.dumps({"body": text, "x": 1}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows) + "\n")
    write_parquet(tmp_path / "a.parquet", ["ab", "é", "", "?"], "body")
    expected = [97, 98, 256, 0xC3, 0xA9, 256, 256, ord("?"), 256]
    for kind in ("jsonl", "parquet"):
        samples = build_samples(build_job(kind, f"*.{kind}", length=2, column="body"))
        assert tokens_of(samples) == expected


def test_parquet_columns_may_be_binary_or_dictionaries(tmp_path: Path, build_job: BuildJob) -> None:
    write_parquet(tmp_path / "a.parquet", [b"\xff\x01"])
    pq.write_table(
        pa.table({"text": pa.array(["xy", "xy"]).dictionary_encode()}), tmp_path / "b.parquet"
    )
    samples = build_samples(build_job("parquet", length=8))
    assert tokens_of(samples) == [255, 1, 256, 120, 121, 256, 120, 121, 256]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64"])
def test_token_files_are_read_as_they_are(dtype: str, tmp_path: Path, build_job: BuildJob) -> None:
    np.arange(5, dtype=dtype).tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", np.arange(5, 9, dtype=np.uint8))
    (tmp_path / "c.bin").write_bytes(b"")
    samples = build_samples(build_job("tokens", length=4, token_dtype=dtype))
    assert tokens_of(samples) == list(range(9))


def test_files_named_twice_are_read_once(tmp_path: Path, build_job: BuildJob) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcde")
    paths = [str(tmp_path / name) for name in ("a.txt", "*.txt", "**/a*")]
    samples = build_samples(build_job(data={"kind": "text", "paths": paths}))
    assert tokens_of(samples) == [97, 98, 99, 100, 101]


def test_a_stream_reads_across_its_parts_like_one_array() -> None:
    parts = [np.arange(3), np.arange(0), np.arange(3, 4), np.arange(4, 10)]
    stream = TokenStream(parts)
    for start in range(11):
        for stop in range(start, 11):
            assert stream.read(start, stop).tolist() == list(range(start, stop))


def test_no_documents_make_an_empty_stream() -> None:
    assert len(pack_documents([], ByteTokenizer())) == 0


def test_a_packed_stream_takes_two_bytes_a_token() -> None:
    stream = pack_documents([b"ab", b"c"], ByteTokenizer())
    assert [part.dtype for part in stream._parts] == [np.uint16]
    assert stream.read(0, 5).tolist() == [97, 98, 256, 99, 256]


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("text", b"abc", r"holds 4 tokens, .*sequence_length 4 needs 5.* Give more data"),
        ("jsonl", b'{"text": "a"}\n{', r"line 2: this is no JSON"),
        ("jsonl", b"\xff", r"line 1: this is no JSON"),
        ("jsonl", b'{"body": "a"}', r"line 1: the row has no field 'text'.*data\.column"),
        ("jsonl", b"[1]", r"line 1: the row has no field"),
        ("jsonl", b'{"text": null}', r"line 1: 'text' holds NoneType where a text is needed"),
        ("parquet", b"nonsense", r"cannot be read as Parquet"),
        ("tokens", b"abc", r"cannot be read as token ids of uint16"),
        ("tokens", b"", r"holds 0 tokens"),
        ("tokens", b"\xff\xff" * 9, r"token 0 of the data has the id 65535, .* below 257"),
    ],
)
def test_data_that_cannot_be_used_is_named_with_rule_and_remedy(
    kind: str, content: bytes, words: str, tmp_path: Path, build_job: BuildJob
) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        build_samples(build_job(kind))[0]
    assert caught.value.remedy
    assert caught.value.field


def test_a_parquet_column_that_is_missing_or_empty_is_named(
    tmp_path: Path, build_job: BuildJob
) -> None:
    write_parquet(tmp_path / "a.parquet", ["a", None])
    with pytest.raises(DataError, match="no column 'body', only other, text"):
        build_samples(build_job("parquet", column="body"))
    with pytest.raises(DataError, match="row 2: 'text' holds NoneType"):
        build_samples(build_job("parquet"))


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int64), np.zeros(9), np.array(["a"])])
def test_token_arrays_of_another_form_are_refused(
    array: np.ndarray, tmp_path: Path, build_job: BuildJob
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"token ids are integers of shape \(tokens,\)"):
        build_samples(build_job("tokens"))


def test_missing_files_are_named(build_job: BuildJob) -> None:
    with pytest.raises(DataError, match=r"no file matches .*nothing.* every node"):
        build_samples(build_job(files="nothing*"))
