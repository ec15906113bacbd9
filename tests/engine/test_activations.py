"""What the planner takes for activations, against the tensors that autograd saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mics_core.engine.activations import count_activations
from mics_core.engine.counting import count_shape
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import block_names
from mics_core.planner.parameters import Family, TransformerSizes
from mics_core.planner.plan import Plan, plan_layout
from mics_core.planner.shape import shape_of_transformer
from mics_core.spec import parse_job_spec
from mics_core.spec.job import JobSpec
from mics_core.spec.planning import choices_of, find_cluster

LENGTH, WIDTH, VOCABULARY = 32, 64, 1024


def job(model: dict[str, Any]) -> JobSpec:
    return parse_job_spec(
        {
            "name": "counted",
            "model": model,
            "data": {"kind": "tokens", "paths": [str(Path(__file__))]},
            "training": {
                "sequence_length": LENGTH,
                "global_batch_size": 8,
                "micro_batch_size": 1,
                "steps": 1,
                "optimizer": {"learning_rate": 1e-3},
            },
            "partition_size": "auto",
        }
    )


class Block(nn.Module):
    """Has backward need its input, for the matrix, and its output, for the activation function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(hidden))


class Own(nn.Module):
    def __init__(self, *, reads: bool = False, devices: tuple[str, ...] = ("cpu", "meta")) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.reads, self.devices = reads, devices

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        if input_ids.device.type not in self.devices:
            raise ValueError("not on this device")
        if self.reads and int(input_ids.sum()) < 0:
            raise ValueError("negative ids")
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def build(**options: Any) -> nn.Module:
    return Own(**options)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta"])
def test_the_formula_is_what_autograd_saves_of_a_block(family: Family) -> None:
    sizes: Any = {
        "family": family,
        "hidden_size": WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": VOCABULARY,
    }
    built = build_meta_model(job(sizes))
    saved = count_activations(built, block_names(built), LENGTH)
    assert saved is not None
    known = shape_of_transformer(
        TransformerSizes(**sizes, intermediate_size=4 * WIDTH, sequence_length=LENGTH)
    )
    assert known.block.activations == pytest.approx(saved.block, rel=0.03)
    # A head's own layers are a few widths a token, which the formula leaves out.
    assert 0 <= saved.root - known.root.activations < 6 * WIDTH * LENGTH
    assert saved.logits == known.logits == LENGTH * VOCABULARY
    assert saved.block_inputs == known.block_inputs


@pytest.mark.parametrize(
    "options", [{}, {"reads": True}, {"devices": ("meta",)}], ids=["both", "cpu", "meta"]
)
def test_a_users_module_is_run_to_count_what_backward_needs(options: dict[str, Any]) -> None:
    found = count_shape(job({"callable": f"{__name__}:build", "arguments": options}))
    assert found.knows_activations
    # What a block returns is the next one's input and counts once; the first has the embedding's.
    assert found.block.activations == -(-4 * LENGTH * WIDTH // 3)
    assert found.root.activations < 2 * LENGTH * WIDTH
    assert found.logits == LENGTH * VOCABULARY
    assert found.block_inputs == LENGTH * WIDTH


def test_memory_is_kept_for_activations_that_nothing_tells() -> None:
    own = {"callable": f"{__name__}:build", "arguments": {"devices": ()}}
    spec = job(own)
    shape = count_shape(spec)
    assert not shape.knows_activations
    assert shape.block.activations == 0
    plan = plan_layout(choices_of(spec, shape, find_cluster("p4d.24xlarge", "nccl")))
    assert isinstance(plan, Plan)
    reason = "activations are unknown, so 40 % of the memory is kept for them"
    assert f"of 20 GiB a worker; {reason}; " in plan.choice.reason
