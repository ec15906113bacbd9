"""Every parameter gets an initial value, or the model is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.errors import SpecificationError
from tests.engine.jobs import small_job

OPTIONS = ShardingOptions(torch.device("cpu"))


class OwnNorm(nn.Module):
    """Its constructor sets it, and nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("scale", torch.ones(2))


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm = norm() if norm is OwnNorm else norm(4)
        self.linear = nn.Linear(4, 4)


class Like(nn.Module):
    """Initialises itself like nanoGPT: linear layers and embeddings, and nothing of the rest."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(Block(norm) for _ in range(2))
        self.norm = nn.LayerNorm(4)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)  # the bias stays as torch has it
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm1d):
            module.weight.data.mul_(3.0)  # of what was there before


def on_meta(build: Any, *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = build(*arguments)
    return model


@pytest.fixture(autouse=True)
def _dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nothing sets would otherwise often be zero by chance."""
    to_empty = nn.Module.to_empty

    def dirty(module: nn.Module, **options: Any) -> nn.Module:
        to_empty(module, **options)
        with torch.no_grad():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    tensor.fill_(77)
        return module

    monkeypatch.setattr(nn.Module, "to_empty", dirty)


def test_what_init_weights_leaves_is_as_reset_parameters_has_it() -> None:
    state = shard_model(on_meta(Like), None, OPTIONS).module.state_dict()
    for name in ("norm", "blocks.0.norm", "blocks.1.norm"):
        assert torch.equal(state[f"{name}.weight"], torch.ones(4))
        assert torch.equal(state[f"{name}.bias"], torch.zeros(4))
    assert state["embedding.weight"].std() < 0.1
    # The model has the last word where it sets a part of a module.
    assert torch.equal(state["blocks.0.linear.weight"], torch.full((4, 4), 0.5))
    assert 0 < state["blocks.0.linear.bias"].abs().max() <= 0.5


def test_init_weights_may_change_what_reset_parameters_has_set() -> None:
    state = shard_model(on_meta(Like, nn.BatchNorm1d), None, OPTIONS).module.state_dict()
    assert torch.equal(state["blocks.1.norm.weight"], torch.full((4,), 3.0))
    assert torch.equal(state["blocks.1.norm.running_var"], torch.ones(4))


def test_what_nothing_sets_is_refused_by_name() -> None:
    with pytest.raises(SpecificationError) as caught:
        shard_model(on_meta(Like, OwnNorm), None, OPTIONS)
    (problem,) = caught.value.problems
    assert problem.field == "model"
    assert problem.value == "blocks.0.norm (OwnNorm)"
    assert problem.rule.startswith("nothing sets the initial values of weight, scale:")
    assert "reset_parameters()" in problem.remedy


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 2))
        self.bias = nn.Parameter(torch.empty(3))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        self.bias.data[:2] = 0  # and not the last


def test_reset_parameters_that_leaves_numbers_is_refused() -> None:
    with pytest.raises(SpecificationError, match=r"\(root\) \(Forgetful\).*initial values of bias"):
        shard_model(on_meta(Forgetful), None, OPTIONS)


def test_who_copies_its_states_from_peers_needs_no_values() -> None:
    options = ShardingOptions(torch.device("cpu"), initialise=False)
    assert shard_model(on_meta(Like, OwnNorm), None, options).units


class Stack(nn.Module):
    """Its blocks have a `reset_parameters` of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 5)


def test_checkpointed_blocks_have_the_values_of_others() -> None:
    plain, wrapped = (
        shard_model(on_meta(Stack), None, replace(OPTIONS, activation_checkpointing=wraps)).units
        for wraps in (False, True)
    )
    for unit, other in zip(plain, wrapped, strict=True):
        for parameter, same in zip(unit.parameters, other.parameters, strict=True):
            assert torch.equal(parameter, same)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta"])
def test_a_family_draws_the_numbers_of_its_own_init_weights_and_no_others(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_meta_model(small_job("text", model__family=family, model__num_heads=11))
    for module in (nn.Linear, nn.LayerNorm, nn.Embedding):
        monkeypatch.delattr(module, "reset_parameters")  # nothing calls it
    state = shard_model(model, None, OPTIONS).module.state_dict()
    assert not any(math.isnan(tensor.double().sum()) for tensor in state.values())
