"""The network benchmark's goals name what misses, for every layout of ours that is planned."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.harness.world import Step
from benchmarks.network.goals import Goal, evaluate
from benchmarks.network.layouts import (
    default_systems,
    full_sharding,
    parse_layout,
    predicted_systems,
)
from benchmarks.network.measure import Measured
from benchmarks.network.systems.mics import _changed, settings_of
from mics_core.spec import parse_job_spec


def measured(system: str, step_s: float, sent: int, link_mbit: float | None) -> Measured:
    step = Step(step_s, 1.0, sent, 1)
    return Measured(system, "4x2", link_mbit, turns=[[step]])


def goals_of(link_mbit: float | None, **changes: tuple[float, int]) -> dict[str, Goal]:
    layout = parse_layout("4x2")
    systems = dict.fromkeys([*default_systems(layout), full_sharding(8)], (1.0, 100))
    systems |= {name.replace("_", " "): value for name, value in changes.items()}
    found = evaluate([measured(name, *value, link_mbit) for name, value in systems.items()])
    place = "4x2, unshaped: " if link_mbit is None else f"4x2, {link_mbit:g} Mbit/s: "
    return {goal.name.removeprefix(place): goal for goal in found}


@pytest.mark.parametrize("link_mbit", [200.0, 1000.0, None])
def test_a_planned_layout_that_sends_more_than_the_deferred_mesh_misses(
    link_mbit: float | None,
) -> None:
    found = goals_of(link_mbit, **{"mics_p=8": (1.0, 108)})
    reached = {name: goal.is_reached for name, goal in found.items() if name.startswith("bytes of")}
    assert reached == {
        "bytes of mics p=2 to fsdp2 2d deferred": True,
        "bytes of mics p=8 to fsdp2 2d deferred": False,
        "bytes of mics auto to fsdp2 2d deferred": True,
    }


def test_unshaped_the_same_resharding_is_compared() -> None:
    found = goals_of(None, fsdp2_2d_deferred_kept=(0.9, 100), fsdp2_full=(0.9, 100))
    assert found["speed of mics p=2 to fsdp2 2d deferred"].is_reached
    assert not found["speed of mics p=2 to fsdp2 2d deferred kept"].is_reached
    assert not found[f"speed of {full_sharding(8)} to fsdp2 full"].is_reached


def test_on_shaped_links_every_deepspeed_variant_is_compared_with_its_like() -> None:
    found = goals_of(1000.0, **{"deepspeed_mics_p=8": (0.5, 100)})
    assert not found["speed of mics p=8 to deepspeed mics p=8"].is_reached
    assert not found["speed of mics auto to deepspeed mics p=8"].is_reached
    assert found["speed of mics p=2 to deepspeed mics"].is_reached


@pytest.mark.parametrize("name", ["4x2", "2x4"])
def test_predictions_are_held_against_at_least_eight_layouts(name: str) -> None:
    spec = parse_job_spec(
        {
            "name": "benchmark",
            "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 1},
            "data": {"kind": "tokens", "paths": [__file__]},
            "tokenizer": {"kind": "bytes"},
            "partition_size": 1,
            "training": {
                "sequence_length": 4,
                "global_batch_size": 32,
                "micro_batch_size": 1,
                "steps": 1,
                "optimizer": {"learning_rate": 1e-3},
            },
        }
    )
    layouts = set()
    for system in predicted_systems(parse_layout(name)):
        if not system.startswith("mics") or system == "mics auto":
            continue
        settings = settings_of(system)
        size = int(settings.pop("p"))
        job = _changed(spec, size, settings)
        training = job.training
        layouts.add(
            (
                size,
                job.engine.reshard,
                job.engine.accumulation,
                job.engine.hierarchical,
                training.micro_batch_size,
                training.activation_checkpointing,
            )
        )
    assert len(layouts) >= 8
    assert {each[1] for each in layouts} == {"auto", "always", "node"}
    assert {each[4] for each in layouts} == {1, 2}
    assert {each[5] for each in layouts} == {False, True}
