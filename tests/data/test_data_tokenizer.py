"""Tokenizers, the vocabulary that a job needs, and the ids that its data may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from example_jobs import BuildJob
from tokenizers import models, pre_tokenizers, processors

from mics_core.data.masking import build_masking
from mics_core.data.sources import build_samples, vocabulary_size
from mics_core.data.tokenizer import FileTokenizer
from mics_core.errors import DataError

pytestmark = pytest.mark.pure

WORDS = {"[UNK]": 0, "a": 1, "b": 2, "</s>": 3, "far": 9}
CALLABLE_MODEL = {"callable": "some.module:build"}


def save_tokenizer(folder: Path, words: dict[str, int] = WORDS) -> str:
    """A word tokenizer that also truncates, pads and adds special tokens, as published ones do."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[UNK] $A", None, [("[UNK]", 0)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_a_tokenizer_file_gives_whole_documents_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(save_tokenizer(tmp_path), end_of_document="</s>")
    assert tokenizer.encode(b"a b a b what").tolist() == [1, 2, 1, 2, 0, 3]
    assert tokenizer.encode(b"").tolist() == [3]
    assert tokenizer.encode(b"a \xff").tolist() == [1, 0, 3]
    assert FileTokenizer(save_tokenizer(tmp_path)).encode(b"a").tolist() == [1]


@pytest.mark.parametrize(
    ("words", "num_ids", "mask_id"),
    [(WORDS, 10, 10), ({**WORDS, "[MASK]": 5}, 10, 5), ({**WORDS, "<mask>": 12}, 13, 12)],
)
def test_the_mask_is_the_tokenizers_own_or_one_more_id(
    words: dict[str, int], num_ids: int, mask_id: int, tmp_path: Path, build_job: BuildJob
) -> None:
    spec_of_file = {"kind": "file", "path": save_tokenizer(tmp_path, words)}
    tokenizer = FileTokenizer(spec_of_file["path"])
    assert (tokenizer.num_ids, tokenizer.mask_id) == (num_ids, mask_id)
    causal = build_job(tokenizer=spec_of_file)
    masked = build_job(tokenizer=spec_of_file, objective="masked")
    assert vocabulary_size(causal) == num_ids
    assert vocabulary_size(masked) == max(num_ids, mask_id + 1)
    masking = build_masking(masked)
    assert masking is not None
    assert (masking.num_ids, masking.mask_id) == (num_ids, mask_id)


def test_bytes_need_257_ids_and_one_more_for_the_mask(build_job: BuildJob) -> None:
    assert vocabulary_size(build_job()) == 257
    assert vocabulary_size(build_job(objective="masked")) == 258
    assert build_masking(build_job()) is None


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path, build_job: BuildJob) -> None:
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "missing.json"):
        spec = build_job(tokenizer={"kind": "file", "path": str(tmp_path / name)})
        with pytest.raises(DataError, match=rf"{name}.* cannot be read as a tokenizer file"):
            vocabulary_size(spec)
    with pytest.raises(DataError, match=r"end_of_document '<eos>' is no token of"):
        FileTokenizer(save_tokenizer(tmp_path), end_of_document="<eos>")


@pytest.mark.parametrize(("objective", "needed"), [("causal", 257), ("masked", 258)])
def test_an_embedding_below_the_tokenizers_ids_is_refused(
    objective: str, needed: int, tmp_path: Path, build_job: BuildJob
) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcdefgh")
    with pytest.raises(DataError, match=f"vocab_size {needed - 1} is below the {needed} ids"):
        build_samples(build_job(objective=objective, vocab_size=needed - 1))
    assert len(build_samples(build_job(objective=objective, vocab_size=needed))) == 2


def test_token_files_may_hold_every_id_of_the_embedding(
    tmp_path: Path, build_job: BuildJob
) -> None:
    np.array([0, 1, 2, 999, 5], dtype=np.uint16).tofile(tmp_path / "a.bin")
    assert build_samples(build_job("tokens", vocab_size=1000))[0].input_ids[3] == 999
    assert build_samples(build_job("tokens", model=CALLABLE_MODEL))[0].input_ids[3] == 999
    for job in (
        build_job("tokens", vocab_size=999),
        build_job("tokens"),
        build_job("tokens", vocab_size=1000, objective="masked"),
    ):
        with pytest.raises(DataError, match="token 3 of the data has the id 999"):
            build_samples(job)[0]
