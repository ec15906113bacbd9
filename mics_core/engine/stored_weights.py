"""The model's tensors of a durable checkpoint, read by one process without a process group.

A checkpoint holds three times as much: the optimizer's moments lie in the same files. Only the
tensors that are asked for are read into memory, so the caller decides how much that takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mics_core.engine.checkpoint_state import cause_of
from mics_core.errors import CheckpointError
from mics_core.spec.folders import CheckpointFolder, StoredCheckpoint

__all__ = ["StoredWeights", "find_whole"]


def find_whole(folder: CheckpointFolder, url: str, step: int | None) -> StoredCheckpoint:
    """Return a complete checkpoint whose files are what was written; all of them are read.

    Args:
        folder: The job's checkpoints.
        url: Where they are, for messages.
        step: Its step; without, the newest.

    Raises:
        CheckpointError: There is none, not that one, or it is damaged.
    """
    try:
        steps = [found for found, _ in folder.complete()]
    except Exception as error:  # each file system of fsspec raises what its own library does
        raise CheckpointError(
            f"The checkpoints in {url} cannot be listed: {cause_of(error)}",
            remedy="Check the folder's address and that you may read it.",
        ) from error
    if not steps:
        raise CheckpointError(
            f"No complete checkpoint is in {url}: none of its folders step-… has a mics.json.",
            remedy="Name the folder that holds the job's folders step-…, or wait for the first.",
        )
    if step is not None and step not in steps:
        raise CheckpointError(
            f"{url} holds no complete checkpoint of step {step}, only of {_listed(steps)}.",
            remedy="Name one of these steps, or none for the newest.",
        )
    chosen = steps[-1] if step is None else step
    try:
        stored = folder.read(chosen)
        damage = folder.damage_of(stored, [file for part in stored.parts for file in part.files])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {folder.path_of(chosen)} cannot be read: {cause_of(error)}",
            remedy="Check that you reach its storage and may read it.",
        ) from error
    if damage:
        others = [other for other in steps if other != stored.step]
        raise CheckpointError(
            f"The checkpoint {stored.path} is damaged: {damage}",
            remedy=f"Name another step: {_listed(others)}."
            if others
            else "Restore the folder from a copy.",
        )
    return stored


class StoredWeights:
    """The parameters and buffers of a model in a checkpoint.

    Args:
        folder: The job's checkpoints.
        stored: One of them.

    Raises:
        CheckpointError: Its parts cannot be read.
    """

    def __init__(self, folder: CheckpointFolder, stored: StoredCheckpoint):
        self._stored = stored
        self._places: dict[str, str] = {}
        self.forms: dict[str, torch.Tensor] = {}
        """Shape and dtype of each, as tensors on the meta device, by name."""
        for part in stored.parts:
            path = folder.path_of_part(stored.step, part)
            self._places |= dict.fromkeys(part.parameters, path)
            self.forms |= self._forms_in(path, part.parameters)

    def load(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Read whole tensors into the host's memory.

        Raises:
            CheckpointError: They cannot be read.
        """
        values = {name: torch.empty_like(self.forms[name], device="cpu") for name in names}
        for path in dict.fromkeys(self._places[name] for name in names):
            here = {name: values[name] for name in names if self._places[name] == path}
            try:
                with warnings.catch_warnings():
                    # One process without a process group is what is meant here.
                    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                    load({"model": here}, storage_reader=FsspecReader(path), no_dist=True)
            except (Exception, CheckpointException) as error:  # the latter is no Exception
                raise self._unreadable(error) from error
        return values

    def _forms_in(self, path: str, names: Iterable[str]) -> dict[str, torch.Tensor]:
        forms = {}
        try:
            records = FsspecReader(path).read_metadata().state_dict_metadata
            for name in names:
                record = records[f"model.{name}"]
                assert isinstance(record, TensorStorageMetadata), name
                forms[name] = torch.empty(record.size, dtype=record.properties.dtype, device="meta")
        except Exception as error:
            raise self._unreadable(error) from error
        return forms

    def _unreadable(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self._stored.path} cannot be loaded: {cause_of(error)}",
            remedy="If its job runs, it may have just been deleted: try again for the newest.",
        )


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
