"""The weights that training starts from: a checkpoint of transformers in safetensors.

`torch.distributed.checkpoint` reads from the files what lies in each worker's shards and nothing
else, so no worker ever holds the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint_state import cause_of
from mics_core.errors import CheckpointError

__all__ = ["load_starting_weights"]

logger = logging.getLogger(__name__)


def load_starting_weights(
    folder: str, model: nn.Module, whole: nn.Module, partition: PartitionGroup
) -> None:
    """Load the weights of a checkpoint of transformers into a sharded model.

    All workers of the partition group must call it.

    Args:
        folder: Holds one or several files of safetensors.
        model: The sharded model.
        whole: The same model on the meta device, which tells shared parameters.
        partition: The worker's partition group.

    Raises:
        CheckpointError: The files cannot be read, or are of another model.
    """
    state = get_model_state_dict(model)
    try:
        reader = HuggingFaceStorageReader(folder)
        found = reader.read_metadata().state_dict_metadata
        _check(folder, found, whole)
        chosen = {name: value for name, value in state.items() if name in found}
        load(chosen, storage_reader=reader, process_group=partition.control)
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(
            f"The weights in {folder} cannot be loaded: {cause_of(error)}",
            field="model.weights",
            remedy="Name a folder with the safetensors files of `save_pretrained`, seen by all"
            " nodes.",
        ) from error
    unused = sorted(found.keys() - state.keys())
    if unused:
        logger.warning("%s holds %d tensors without a place: %s", folder, len(unused), unused[:3])


def _check(folder: str, found: Mapping[str, object], whole: nn.Module) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    aliases: dict[int, list[str]] = {}
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        shapes[name] = tuple(parameter.shape)
        aliases.setdefault(id(parameter), []).append(name)
    # Of the names of a shared tensor the files hold one.
    missing = [names for names in aliases.values() if not any(name in found for name in names)]
    if missing:
        raise _of_another_model(folder, f"{_first(missing)!r} is not there ({len(missing)} such)")
    for name, shape in shapes.items():
        stored = found.get(name)
        if isinstance(stored, TensorStorageMetadata) and tuple(stored.size) != shape:
            raise _of_another_model(
                folder, f"{name!r} has shape {tuple(stored.size)} there and {shape} in the job"
            )


def _first(missing: Iterable[list[str]]) -> str:
    return min(names[0] for names in missing)


def _of_another_model(folder: str, difference: str) -> CheckpointError:
    return CheckpointError(
        f"The weights in {folder} are of another model: {difference}.",
        field="model.weights",
        remedy="Give `model` the family and sizes of its config.json; `options` takes further keys"
        " of it, such as n_positions.",
    )
