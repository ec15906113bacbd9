"""Exports: what transformers loads is what was trained, to the bit, whoever wrote the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import models, pre_tokenizers

from mics_core.engine.export import Exported, export_checkpoint
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.errors import CheckpointError, DataError, SpecificationError
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups
from tests.engine.test_checkpoint import damage
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 8

OWN_MODEL = {
    "callable": "tests.cluster.user_model:build",
    "arguments": {"folder": None, "vocabulary": 257, "sequence_length": 16},
}


def job(text: str, folder: Path | str, partition_size: int, **changes: Any) -> JobSpec:
    return small_job(
        text,
        partition_size=partition_size,
        training__steps=2,
        checkpoint={"directory": str(folder), "interval_steps": 2, "keep": 2},
        **changes,
    )


def train(pool: WorkerPool, spec: JobSpec, groups: int) -> dict[str, torch.Tensor]:
    """Return the whole parameters of the job, which has left a checkpoint of its last step."""
    assert isinstance(spec.partition_size, int)
    trained: dict[str, torch.Tensor] = pool.run(
        train_over_groups, spec, groups, spec.partition_size
    )[0]["parameters"]
    return trained


def export(spec: JobSpec, output: Path, **changes: Any) -> Exported:
    assert spec.checkpoint.directory is not None
    return export_checkpoint(spec, spec.checkpoint.directory, output, **changes)


def loaded(kind: Any, folder: Path) -> Any:
    """Load as a user does; whatever is missing, too much or of another shape is an error."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def check_same(model: Any, trained: dict[str, torch.Tensor], spec: JobSpec) -> None:
    """Compare with the trained parameters, and the logits with those of the job's own model."""
    found = dict(model.named_parameters())
    assert found.keys() == trained.keys()
    assert [name for name in found if not torch.equal(found[name], trained[name])] == []
    assert all(found[name].dtype == trained[name].dtype for name in found)
    gold = whole_model(spec, trained)
    tokens = torch.arange(3 * 16).view(3, 16) % 257
    assert torch.equal(model(input_ids=tokens).logits, gold(input_ids=tokens).logits)


def whole_model(spec: JobSpec, trained: dict[str, torch.Tensor]) -> Any:
    options = ShardingOptions(torch.device("cpu"), spec.training.precision)
    model = shard_model(build_meta_model(spec), None, options).module.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trained[name])
    return model


@pytest.mark.parametrize(
    ("family", "changes", "layout"),
    [
        ("gpt2", {"model__tie_embeddings": True}, (3, 2)),
        ("gpt2", {"model__tie_embeddings": False}, (2, 4)),
        ("gpt2", {"training__precision": "fp64"}, (2, 1)),
        ("llama", {"model__num_heads": 11, "model__tie_embeddings": False}, (2, 3)),
        ("llama", {"model__num_heads": 11, "training__precision": "bf16"}, (1, 2)),
        ("bert", {"model__tie_embeddings": True}, (2, 2)),
        ("bert", {"model__tie_embeddings": False}, (3, 1)),
        ("bert", {"training__objective": "causal"}, (1, 4)),
        ("roberta", {"training__activation_checkpointing": True}, (2, 2)),
    ],
)
def test_transformers_loads_what_was_trained_to_the_bit(
    pool: WorkerPool,
    text: str,
    tmp_path: Path,
    family: str,
    changes: dict[str, Any],
    layout: tuple[int, int],
) -> None:
    groups, size = layout
    spec = job(text, tmp_path / "checkpoints", size, model__family=family, **changes)
    trained = train(pool, spec, groups)
    found = export(spec, tmp_path / "model")
    kind: Any = transformers.AutoModelForMaskedLM
    if spec.objective == "causal":
        kind = transformers.AutoModelForCausalLM
    model = loaded(kind, tmp_path / "model")
    check_same(model, trained, spec)
    assert found.step == 2
    assert found.dtype == ("float64" if spec.training.precision == "fp64" else "float32")
    assert found.num_parameters == sum(value.numel() for value in trained.values())
    assert names_in(tmp_path / "model" / "model.safetensors") == names_saved_by(model, tmp_path)


def names_in(file: Path) -> set[str]:
    with safetensors.safe_open(file, "pt") as stored:
        return set(stored.keys())


def names_saved_by(model: Any, folder: Path) -> set[str]:
    """The gold standard of what is stored once: transformers' own way of saving."""
    model.save_pretrained(folder / "gold")
    return names_in(folder / "gold" / "model.safetensors")


def test_a_large_model_is_exported_in_several_files_with_their_index(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path / "checkpoints", 2)
    trained = train(pool, spec, 3)
    found = export(spec, tmp_path / "model", file_bytes=100_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3
    assert found.files == tuple(sorted(path.name for path in (tmp_path / "model").iterdir()))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"]} == {name for file in files for name in names_in(file)}
    check_same(loaded(transformers.AutoModelForCausalLM, tmp_path / "model"), trained, spec)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_type_is_the_trained_value_rounded(
    pool: WorkerPool, text: str, tmp_path: Path, dtype: Any
) -> None:
    spec = job(text, tmp_path / "checkpoints", 2, training__precision="fp64")
    trained = train(pool, spec, 1)
    assert export(spec, tmp_path / "model", dtype=dtype).dtype == dtype
    model = loaded(transformers.AutoModelForCausalLM, tmp_path / "model")
    for name, value in model.named_parameters():
        assert torch.equal(value, trained[name].to(getattr(torch, dtype))), name


def test_a_value_that_the_type_cannot_hold_is_refused_and_nothing_is_left(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    # One such step throws the output projection's bias far beyond 65504.
    spec = job(
        text,
        tmp_path / "checkpoints",
        2,
        model=OWN_MODEL,
        training__gradient_clipping=None,
        training__optimizer={"kind": "sgd", "learning_rate": 1e8},
    )
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 1})})
    train(pool, spec, 1)
    with pytest.raises(CheckpointError, match=r"float16 ends at 65504.*bfloat16"):
        export(spec, tmp_path / "model", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_the_jobs_tokenizer_is_exported_with_its_ends_and_its_mask(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    words = {"[UNK]": 0, "import": 1, "self": 2, "</s>": 3, "[MASK]": 4}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    spec = job(
        text,
        tmp_path / "checkpoints",
        2,
        tokenizer={"kind": "file", "path": str(path), "end_of_document": "</s>"},
    )
    train(pool, spec, 1)
    assert export(spec, tmp_path / "model").notes == ()
    found: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert found("import self </s> [MASK] other")["input_ids"] == [1, 2, 3, 4, 0]
    assert (found.eos_token_id, found.mask_token_id, found.model_max_length) == (3, 4, 16)
    model = loaded(transformers.AutoModelForCausalLM, tmp_path / "model")
    assert model.config.eos_token_id == 3
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, pad_token_id=3).shape[0] == 1
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        export(spec, tmp_path / "again")


def test_an_own_model_is_exported_as_weights_alone_and_says_so(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path / "checkpoints", 2, model=OWN_MODEL)
    trained = train(pool, spec, 2)
    found = export(spec, tmp_path / "model")
    assert found.files == ("model.safetensors",)
    assert "the weights alone" in found.notes[0]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    build_meta_model(spec).load_state_dict(weights, assign=True)
    assert all(torch.equal(weights[name], trained[name]) for name in trained)


def test_the_newest_checkpoint_or_the_named_one_is_exported_from_any_url(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    folder = f"file://{tmp_path}/checkpoints"
    before = job(text, folder, 2)
    trained = train(pool, before, 2)
    after = before.model_copy(update={"training": before.training.model_copy(update={"steps": 3})})
    train(pool, after, 1)
    assert export(after, tmp_path / "newest").step == 3
    found = export(after, tmp_path / "named", step=2)
    assert found.checkpoint == f"{folder}/step-00000002"
    check_same(loaded(transformers.AutoModelForCausalLM, tmp_path / "named"), trained, before)
    with pytest.raises(CheckpointError, match=r"of step 7, only of 2, 3\. Name one of these"):
        export(after, tmp_path / "model", step=7)
    damage(tmp_path / "checkpoints" / "step-00000003")
    with pytest.raises(CheckpointError, match=r"(?s)damaged: .*with hash.*Name another step: 2\."):
        export(after, tmp_path / "model")
    damage(tmp_path / "checkpoints" / "step-00000002")
    (tmp_path / "checkpoints" / "step-00000003" / "mics.json").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: .*Restore the folder from a copy"):
        export(after, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_complete_checkpoint_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"No complete checkpoint is in .* Name the"):
            export(job(text, folder, 2), tmp_path / "model")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        export(job(text, "nowhere://bucket", 2), tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model__hidden_size": 99}, r"'transformer.wte.weight' has shape \(257, 66\) there"),
        ({"model__num_layers": 3}, r"'transformer.h.2.\S+' is in one of them alone \(12 such\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    pool: WorkerPool, text: str, tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    train(pool, job(text, tmp_path / "checkpoints", 2), 1)
    other = job(text, tmp_path / "checkpoints", 2, **changes)
    with pytest.raises(CheckpointError, match=f"{difference}.*Name the job that wrote it"):
        export(other, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_a_new_or_an_empty_folder_is_written(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path / "checkpoints", 2)
    train(pool, spec, 1)
    output = tmp_path / "model"
    output.mkdir()
    (output / "kept").write_text("by somebody")
    for folder, rule in (
        (output, "is not empty"),
        (output / "kept", "a file of that name"),
        (tmp_path / "no" / "model", "in no existing folder"),
    ):
        with pytest.raises(SpecificationError, match=f"{rule}.* (Name|Make) "):
            export(spec, folder)
    assert [path.name for path in output.iterdir()] == ["kept"]
    (output / "kept").unlink()
    export(spec, output)
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors"}
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "model"}


def test_an_export_that_cannot_be_written_leaves_nothing(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    spec = job(text, tmp_path / "checkpoints", 2)
    train(pool, spec, 1)
    with pytest.raises(CheckpointError, match=r"cannot be written: OSError: .*too long.* Name a"):
        export(spec, tmp_path / ("x" * 250))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
