"""Models that would not train as one process trains them are refused before anything is sharded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mics_core.engine.contract import check_model
from mics_core.engine.counting import count_shape
from mics_core.engine.gradients import lay_out_units
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import block_names
from mics_core.errors import Problem, SpecificationError
from tests.engine.jobs import small_job


class Block(nn.Module):
    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.shared = shared


class Model(nn.Module):
    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(4, 5, bias=False)


def with_a_block_tied_to_the_embedding() -> nn.Module:
    model = Model([Block(), Block(nn.Linear(4, 5, bias=False))])
    model.blocks[1].shared.weight = model.embedding.weight
    return model


def with_blocks_tied() -> nn.Module:
    shared = nn.Linear(4, 4)
    return Model([Block(shared), Block(), Block(shared)])


def with_a_block_listed_twice() -> nn.Module:
    block = Block()
    return Model([block, Block(), block])


def with_a_scalar() -> nn.Module:
    model = Model([Block()])
    model.blocks[0].linear.temperature = nn.Parameter(torch.tensor(1.0))
    return model


def with_nothing_trainable() -> nn.Module:
    return Model([Block()]).requires_grad_(False)


def problems_of(model: nn.Module) -> tuple[Problem, ...]:
    with pytest.raises(SpecificationError) as caught:
        check_model(model, block_names(model))
    assert all(problem.field == "model" for problem in caught.value.problems)
    assert all(problem.remedy for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (
            with_a_block_tied_to_the_embedding,
            "blocks.1.shared.weight and embedding.weight",
        ),
        (with_blocks_tied, "blocks.0.shared.weight and blocks.2.shared.weight"),
        (with_a_block_listed_twice, "blocks.0.linear.weight and blocks.2.linear.weight"),
    ],
)
def test_a_parameter_in_two_units_is_refused_by_both_names(build: Any, names: str) -> None:
    (problem,) = problems_of(build())
    assert problem.value == names
    assert "several units of sharding" in problem.rule
    assert "Hold it in one unit" in problem.remedy


def test_a_scalar_parameter_is_refused() -> None:
    (problem,) = problems_of(with_a_scalar())
    assert problem.value == "blocks.0.linear.temperature"
    assert problem.remedy == "Give it the shape (1,)."


def test_a_model_without_a_trainable_parameter_is_refused() -> None:
    (problem,) = problems_of(with_nothing_trainable())
    assert problem.rule == "none of its parameters requires a gradient."


def test_every_broken_rule_is_told_at_once() -> None:
    model = with_blocks_tied()
    model.scale = nn.Parameter(torch.tensor(1.0))
    values = [problem.value for problem in problems_of(model)]
    assert values == [
        "(root) (Model)",  # no reset_parameters() for the scale
        "scale",
        "blocks.0.shared.weight and blocks.2.shared.weight",
    ]


def test_the_driver_refuses_a_model_before_anything_is_started() -> None:
    builder = f"{__name__}:with_a_block_listed_twice"
    with pytest.raises(SpecificationError, match="several units of sharding"):
        count_shape(small_job("text", model={"callable": builder}))


def test_ties_within_a_unit_and_aliases_of_a_list_are_taken() -> None:
    model = Model([Block(), Block()])
    model.output.weight = model.embedding.weight
    model.blocks[0].shared = nn.Linear(4, 4)
    model.blocks[0].shared.weight = model.blocks[0].linear.weight
    model.again = model.blocks
    check_model(model, block_names(model))


def test_a_module_of_buffers_may_be_shared_by_blocks() -> None:
    rope = nn.BatchNorm1d(4, affine=False)
    model = Model([Block(rope), Block(rope)])
    check_model(model, block_names(model))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta"])
def test_tied_embeddings_of_the_families_are_taken(family: str) -> None:
    job = small_job("text", model__family=family, model__num_heads=11, model__tie_embeddings=True)
    model = build_meta_model(job)
    assert len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
    check_model(model, block_names(model))


def test_lists_and_dictionaries_among_the_elements_of_a_list_give_their_elements_as_blocks() -> (
    None
):
    model = Model(
        [
            Block(),
            nn.ModuleList([Block(), nn.ModuleList([Block(), nn.Dropout()])]),
            nn.ModuleDict({"mix": nn.Linear(4, 4), "feed": nn.Linear(4, 4)}),
            Block(nn.ModuleList([nn.Linear(4, 4)])),  # inside a block: no unit of its own
        ]
    )
    assert block_names(model) == [
        "blocks.0",
        "blocks.1.0",
        "blocks.1.1.0",
        "blocks.2.mix",
        "blocks.2.feed",
        "blocks.3",
    ]


def test_units_without_trainable_numbers_get_no_bucket_of_their_own() -> None:
    units = [("a", 10), ("b", 0), ("c", 20), ("d", 0), ("", 0)]
    layouts, buckets = lay_out_units(units, 1)
    assert [bucket.units for bucket in buckets] == [range(1), range(1, 5)]
    assert [layout.bucket for layout in layouts] == [0, 1, 1, 1, 1]
    assert all(bucket.num_elements for bucket in buckets)
