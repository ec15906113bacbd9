"""Training starts from the weights of a checkpoint that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mics_core.errors import SpecificationError
from mics_core.spec import JobSpec, check_files
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=257,
        n_positions=16,
        n_embd=66,
        n_layer=2,
        n_head=3,
        bos_token_id=256,
        eos_token_id=256,
    )
    # Several files, as large models have them.
    GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def job(text: str, weights: Path, **changes: object) -> JobSpec:
    # A rate that moves no weight: what comes out is what went in.
    return small_job(
        text,
        model__weights=str(weights),
        training__steps=1,
        training__optimizer={"kind": "sgd", "learning_rate": 1e-30},
        **changes,
    )


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (2, 2), (1, 4)])
def test_every_layout_starts_from_the_weights_that_transformers_loads(
    pool: WorkerPool, text: str, weights: Path, groups: int, size: int
) -> None:
    spec = job(text, weights, partition_size=size, groups={"wanted": groups})
    trained = pool.run(train_over_groups, spec, groups, size)[0]["parameters"]
    model = GPT2LMHeadModel.from_pretrained(weights)
    wanted = dict(model.named_parameters())
    assert wanted.keys() <= trained.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(trained[name], value.data, rtol=0, atol=1e-25)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__options": {"n_positions": 32}}, "'transformer.wpe.weight' has shape"),
        ({"model__num_layers": 3}, "is not there"),
    ],
)
def test_weights_of_another_model_are_refused(
    pool: WorkerPool, text: str, weights: Path, change: dict[str, object], words: str
) -> None:
    spec = job(text, weights, partition_size=2, **change)
    with pytest.raises(AssertionError, match=f"CheckpointError.*{words}"):
        pool.run(train_over_groups, spec, 1, 2)


def test_a_folder_without_weights_is_refused_before_anything_starts(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecificationError) as caught:
        check_files(job(text, tmp_path))
    assert [problem.field for problem in caught.value.problems] == ["model.weights"]
