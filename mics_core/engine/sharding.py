"""Turns a model on the meta device into shards over the partition group, unit by unit.

A unit is what one all-gather fetches: each block of the model, and the rest as the root. A unit is
given memory, initialised and sharded before the next one is touched, so a worker never holds more
than its shards and one whole unit. Initial weights depend on the seed and the unit alone: every
partition size starts from the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from mics_core.data.order import stream_seed
from mics_core.engine.contract import check_model
from mics_core.engine.gradients import shard_elements
from mics_core.engine.initial_values import draw_initial_values

__all__ = ["ShardedModel", "ShardingOptions", "Unit", "block_names", "shard_model"]


@dataclass(frozen=True, slots=True)
class ShardingOptions:
    """How the model is laid out in memory.

    Args:
        device: Where the shards live.
        precision: `fp32`, `bf16` (bf16 compute, fp32 shards and reduction) or `fp64`.
        activation_checkpointing: Recompute the activations of each block in backward.
        compiles_blocks: Compile each block with `torch.compile`.
        offloads: Keep the shards and the optimizer's state in the host's memory (FSDP2's CPU
            offload): parameters are copied to the device for each gather, and the update runs on
            the host.
        seed: Source of the initial weights.
        initialise: Whether to draw initial weights; without, their memory is left as it comes.
    """

    device: torch.device
    precision: str = "fp32"
    activation_checkpointing: bool = False
    compiles_blocks: bool = False
    offloads: bool = False
    seed: int = 0
    initialise: bool = True

    @property
    def shard_dtype(self) -> torch.dtype:
        """Type of the shards, the gradients and the optimizer's moments."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """FSDP2's precision policy."""
        if self.precision == "bf16":
            return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return MixedPrecisionPolicy()


@dataclass(frozen=True, slots=True)
class Unit:
    """What one all-gather fetches: a block, or what is outside the blocks.

    Args:
        name: The module's name; empty for the root.
        module: The module; FSDP2's when the model is sharded.
        parameters: Its own parameters, those of other units left out.
        num_elements: Trainable numbers of this worker's shard, FSDP2's padding included.
    """

    name: str
    module: nn.Module
    parameters: tuple[nn.Parameter, ...]
    num_elements: int

    @property
    def is_block(self) -> bool:
        """Whether it is a block."""
        return bool(self.name)


@dataclass(frozen=True, slots=True)
class ShardedModel:
    """A model that is ready to train.

    Args:
        module: The model.
        units: Its units in the order of forward, the root first.
        is_whole: Whether FSDP2 is left out: one worker holds everything as it is.
    """

    module: nn.Module
    units: tuple[Unit, ...]
    is_whole: bool


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the model's blocks: the elements of its outermost module lists.

    A list or dictionary of modules among these has no forward of its own; its elements are blocks.
    """
    names: list[str] = []
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(
            name.startswith(f"{outer}.") for outer in lists
        ):
            lists.append(name)
            names += _elements(name, module)
    return names


def _elements(name: str, module: nn.Module) -> Iterator[str]:
    for key, element in module._modules.items():
        if isinstance(element, nn.ModuleList | nn.ModuleDict):
            yield from _elements(f"{name}.{key}", element)
        elif element is not None and next(element.parameters(), None) is not None:
            yield f"{name}.{key}"


def shard_model(
    model: nn.Module, mesh: DeviceMesh | None, options: ShardingOptions
) -> ShardedModel:
    """Materialise, initialise and shard `model` in place.

    All workers of the partition group must call it.

    Args:
        model: A model on the meta device.
        mesh: One-dimensional mesh over the partition group; none leaves the model whole.
        options: Memory layout.

    Raises:
        SpecificationError: The model breaks a rule (`mics_core.engine.contract`), or leaves a
            parameter without an initial value.
    """
    names = block_names(model)
    check_model(model, names)
    blocks = {model.get_submodule(name) for name in names}
    inside_blocks = {module for block in blocks for module in block.modules()}
    # Before blocks are wrapped: what wraps one passes on its `reset_parameters`.
    root = [module for module in _post_order(model) if module not in inside_blocks]
    units: list[Unit] = []
    for index, name in enumerate(names):
        block = model.get_submodule(name)
        _materialise(model, list(_post_order(block)), index, options)
        if options.activation_checkpointing:
            block = checkpoint_wrapper(block)
            parent, _, attribute = name.rpartition(".")
            model.get_submodule(parent).register_module(attribute, block)
        if options.compiles_blocks:
            block.compile()
        units.append(_shard(name, block, list(block.parameters()), mesh, options))
    _materialise(model, root, len(names), options)
    taken = {parameter for unit in units for parameter in unit.parameters}
    own = [parameter for parameter in model.parameters() if parameter not in taken]
    units.insert(0, _shard("", model, own, mesh, options))
    return ShardedModel(model, tuple(units), is_whole=mesh is None)


def _offload_policy(options: ShardingOptions) -> OffloadPolicy:
    if not options.offloads:
        return OffloadPolicy()
    return CPUOffloadPolicy(pin_memory=options.device.type == "cuda")


def _shard(
    name: str,
    module: nn.Module,
    parameters: list[nn.Parameter],
    mesh: DeviceMesh | None,
    options: ShardingOptions,
) -> Unit:
    num_elements = shard_elements(parameters, 1 if mesh is None else mesh.size())
    if mesh is None:
        return Unit(name, module, tuple(parameters), num_elements)
    trained = [parameter.requires_grad for parameter in parameters]
    before = set(module.parameters()) - set(parameters)
    sharded = fully_shard(
        module, mesh=mesh, mp_policy=options.policy, offload_policy=_offload_policy(options)
    )
    assert isinstance(sharded, FSDPModule)
    # Gradients are sums over micro-batches and workers; the division by the global token count
    # comes after the second hop. gloo has no PREMUL_SUM, hence the plain sum.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    # A parameter that takes no part in a micro-batch counts with a zero gradient, so that a unit's
    # gradient has the same layout in every micro-batch.
    sharded.set_reduce_scatter_unused_params(True)
    # `fully_shard` has put new parameters in the places of the old ones.
    own = [parameter for parameter in module.parameters() if parameter not in before]
    assert [parameter.requires_grad for parameter in own] == trained
    return Unit(name, module, tuple(own), num_elements)


def _materialise(
    model: nn.Module, modules: list[nn.Module], unit: int, options: ShardingOptions
) -> None:
    """Give the own parameters and buffers of `modules` memory and their initial values."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    for module in modules:
        # Values are drawn on the host, so that every device starts from the same model.
        module.to_empty(device="cpu", recurse=False)
    for shared in places.values():
        # `to_empty` makes a new parameter at each place; tie those that were one before.
        first = shared[0][0]._parameters[shared[0][1]]
        for module, name in shared[1:]:
            module._parameters[name] = first
    if options.initialise:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(stream_seed(options.seed, unit))
            draw_initial_values(model, modules)
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                dtype = options.shard_dtype if tensor.is_floating_point() else tensor.dtype
                tensor.data = tensor.data.to(device=options.device, dtype=dtype)


def _post_order(module: nn.Module) -> Iterator[nn.Module]:
    seen: set[nn.Module] = set()

    def walk(node: nn.Module) -> Iterator[nn.Module]:
        for child in node.children():
            yield from walk(child)
        if node not in seen:
            seen.add(node)
            yield node

    return walk(module)
