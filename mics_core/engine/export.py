"""Exports a checkpoint as safetensors, in the form that `from_pretrained` of transformers loads.

One process without a process group does it, one output file after the other. So the host's memory
holds the tensors of one file as trained (`FILE_BYTES`, or the largest tensor if that is more; twice
that where the export halves their size), and the shard of a tensor that is being read. The
checkpoint's files are compared with their hashes before anything is written.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from mics_core.engine.checkpoint_state import cause_of
from mics_core.engine.pretrained import build_pretrained
from mics_core.engine.stored_weights import StoredWeights, find_whole
from mics_core.errors import CheckpointError, Problem, SpecificationError
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.job import JobSpec, TransformersModel

__all__ = ["FILE_BYTES", "Exported", "export_checkpoint"]

FILE_BYTES = 5_000_000_000
"""Largest file of weights; one tensor may be larger. The usual size on the Hugging Face Hub."""

_OWN_MODEL = (
    "It holds the weights alone: the job's own model has no configuration of transformers. Load"
    " them with safetensors.torch.load_file and load_state_dict."
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Args:
        folder: Where it lies.
        checkpoint: The checkpoint that it is of.
        step: Steps committed in it.
        dtype: Types of the weights, such as `float32`.
        num_parameters: Numbers stored.
        num_bytes: Size of all files.
        files: Their names.
        notes: What the reader should know, in sentences.
    """

    folder: str
    checkpoint: str
    step: int
    dtype: str
    num_parameters: int
    num_bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export_checkpoint(
    spec: JobSpec,
    checkpoints: str,
    output: Path,
    *,
    step: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    file_bytes: int = FILE_BYTES,
) -> Exported:
    """Write the weights of a checkpoint, and for models of transformers their configuration.

    Args:
        spec: The job that wrote the checkpoint.
        checkpoints: The folder of its checkpoints, a path or any URL that fsspec opens.
        output: The folder to make; it appears when it is whole. An empty one is replaced.
        step: Step of the checkpoint; without, the newest complete one.
        dtype: Type of the stored weights; without, that of training.
        file_bytes: Largest file of weights.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged or of another model, or the
            output cannot be written.
        SpecificationError: The output is in use, or the model cannot be built.
        DataError: The tokenizer file cannot be read.
    """
    output = output.absolute()
    _check_output(output)
    pretrained = build_pretrained(spec) if isinstance(spec.model, TransformersModel) else None
    folder = CheckpointFolder(checkpoints)
    stored = find_whole(folder, checkpoints, step)
    weights = StoredWeights(folder, stored)
    names: Sequence[str] = sorted(weights.forms)
    notes: tuple[str, ...] = (_OWN_MODEL,)
    if pretrained is not None:
        pretrained.check(weights.forms, stored.path)
        names = pretrained.names
    wanted = getattr(torch, dtype) if dtype is not None else None
    goal = {name: _in_type(weights.forms[name], wanted) for name in names}
    with _appearing_at(output) as partial:
        _write_weights(weights, goal, partial, file_bytes)
        if pretrained is not None:
            notes = pretrained.write(partial, next(iter(goal.values())).dtype)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    types = {str(form.dtype).removeprefix("torch.") for form in goal.values()}
    return Exported(
        str(output),
        stored.path,
        stored.step,
        ", ".join(sorted(types)),
        sum(form.numel() for form in goal.values()),
        sum(sizes.values()),
        tuple(sizes),
        notes,
    )


def _check_output(output: Path) -> None:
    if not output.parent.is_dir():
        rule, remedy = "it is in no existing folder.", f"Make {output.parent} first."
    elif output.exists() and not output.is_dir():
        rule, remedy = "a file of that name exists.", "Name a folder that does not exist."
    elif output.is_dir() and next(output.iterdir(), None) is not None:
        rule = "the folder is not empty, and an export replaces no files."
        remedy = "Name a folder that does not exist, or empty this one."
    else:
        return
    raise SpecificationError([Problem("output", str(output), rule, remedy)])


@contextmanager
def _appearing_at(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that takes its place at the end, or leaves nothing behind."""
    partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        yield partial
        partial.replace(output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The export to {output} cannot be written: {cause_of(error)}",
            remedy="Name a folder on a disk with enough room that you may write to.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
    weights: StoredWeights, goal: dict[str, torch.Tensor], folder: Path, file_bytes: int
) -> None:
    """Write the files of weights, one in memory at a time, and their index if there are several.

    Args:
        weights: Where they come from.
        goal: Shapes and dtypes to store, on the meta device, by name.
        folder: Where to.
        file_bytes: Largest file.
    """
    split = split_torch_state_dict_into_shards(goal, max_shard_size=file_bytes)
    for file, names in split.filename_to_tensors.items():
        _write_file(weights, {name: goal[name].dtype for name in names}, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_file(weights: StoredWeights, dtypes: dict[str, torch.dtype], path: Path) -> None:
    values = weights.load(list(dtypes))
    for name, dtype in dtypes.items():
        values[name] = _converted(name, values[name], dtype)
    path.touch()
    mode = path.stat().st_mode
    save_file(values, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets its author alone read a file, whatever the umask says


def _in_type(form: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return form if dtype is None or not form.is_floating_point() else form.to(dtype)


def _converted(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    result = value.to(dtype)
    if dtype == torch.float16 and not torch.equal(result.isfinite(), value.isfinite()):
        raise CheckpointError(
            f"{name} holds {value.abs().max():.4g}, and float16 ends at 65504.",
            remedy="Export as bfloat16, or as trained.",
        )
    return result
