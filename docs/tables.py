"""Makes the tables of `docs/scaling.md`, `README.md` and `docs/operations.md`.

They come from the planner, from the results of benchmarks and from the command line, for
`docs/generate.py`.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from mics_core.planner.candidates import Choices
from mics_core.planner.clusters import named_cluster
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Layout, Prediction, Workload
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.published import fit_constants, other_assumptions, published_rows
from mics_core.planner.recorded import num_beyond, recorded, worst
from mics_core.planner.scaling import scale, worker_counts
from mics_core.planner.shape import shape_of_transformer
from mics_core.spec.presets import MODEL_PRESETS
from service.cli.exit_codes import MEANINGS, ExitCode

__all__ = ["with_tables"]

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SYSTEMS = {
    "fsdp2 full": "FSDP2, full sharding",
    "fsdp2 2d": "FSDP2, 2-D mesh",
    "fsdp2 2d deferred": "FSDP2, 2-D mesh, all-reduce on the last micro-batch",
    "fsdp2 2d deferred kept": "FSDP2, the same, and gathered parameters kept until then",
    "ddp": "DDP",
    "deepspeed zero3": "DeepSpeed 0.19.8, ZeRO-3",
    "deepspeed mics": "DeepSpeed 0.19.2, MiCS, p = workers of a node",
    "deepspeed mics p=8": "DeepSpeed 0.19.2, MiCS, p = 8 over all nodes",
    "mics p={k}": "**mics-elastic, p = workers of a node**",
    "mics p=8": "**mics-elastic, p = 8 over all nodes**",
    "mics auto": "**mics-elastic, the planner's choice**",
}
HELD_AT = ("4x2", 200)
"""Nodes × workers and Mbit/s at which p = k is held against FSDP2."""
GOAL_OVER_FULL, GOAL_OVER_DEFERRED = 5.0, 1.1
"""The same as in `benchmarks/network/goals.py`; a test compares them."""
GOAL_OF_ERROR = 0.20
"""How far a prediction may be from what was measured."""
CHANGES = ("node added", "group drained")
"""Faults that nothing is lost by, which are told in steps too."""
RECOVERED = {
    "mics-elastic": "**mics-elastic**",
    "torchft tuned": "torchft 0.2.0, heartbeats of 1 s",
    "torchft": "torchft 0.2.0, as it comes",
    "ray train": "Ray Train, elastic `TorchTrainer`",
}


def with_tables(page: str) -> str:
    """Return a page with those of these tables that it has made anew."""
    tables = {
        "network": network_table,
        "recovery": recovery_table,
        "published": published_table,
        "assumptions": assumptions_table,
        "measured": measured_table,
        "scale": scale_table,
        "exit codes": exit_code_table,
    }
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        content = "\n".join([begin, "", *table(), "", end])
        page = place.sub(lambda _match, content=content: content, page, count=1)
    return page


def exit_code_table() -> list[str]:
    """Return how `mics`, the driver and the entry point of `torchrun` end, as lines of Markdown."""
    others = {
        ExitCode.FINE: ("finished or cancelled", "finished"),
        ExitCode.FAILED: ("failed", "failed"),
        ExitCode.REFUSED: ("refused: specification, files or layout", "refused"),
    }
    lines = ["| | `mics` | driver | `torchrun` entry point |", "| --- | --- | --- | --- |"]
    for code, meaning in MEANINGS.items():
        driver, entry = others.get(code, ("", ""))
        lines.append(f"| {code.value} | {meaning} | {driver} | {entry} |")
    return lines


def network_table() -> list[str]:
    """Return the step times of the network benchmark, as lines of Markdown."""
    rows = json.loads((RESULTS / "network.json").read_text(encoding="utf-8"))
    places = list(dict.fromkeys((row["layout"], row["link_mbit"]) for row in rows))
    heads = [
        f"{layout.replace('x', ' × ')}, {'unshaped' if link is None else f'{link:g}'}"
        for layout, link in places
    ]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(places)}"]
    found = {(row["system"], row["layout"], row["link_mbit"]): row for row in rows}
    for system, words in SYSTEMS.items():
        names = [(system.format(k=layout.split("x")[1]), layout, link) for layout, link in places]
        cells = [_step_time(found[name]) if name in found else "–" for name in names]
        if {*cells} != {"–"}:  # else a system that this run did not have yet
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return [*lines, "", *_ratios({key[0]: row for key, row in found.items() if key[1:] == HELD_AT})]


def _ratios(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Say what p = k is held against, and what it is not: the strongest of FSDP2's meshes."""

    def times(peer: str) -> str:
        ours, theirs = (rows.get(name, {}).get("step_s_median") for name in ("mics p=2", peer))
        return "not measured" if ours is None or theirs is None else f"{theirs / ours:.2f}"

    return _paragraph(
        "Throughput of p = workers of a node on 4 × 2 at 200 Mbit/s, over FSDP2's full sharding:"
        f" {times('fsdp2 full')} (goal {GOAL_OVER_FULL:g}); over its 2-D mesh with one all-reduce,"
        f" as it comes: {times('fsdp2 2d deferred')} (goal {GOAL_OVER_DEFERRED:g}); over that mesh"
        " made to keep what it gathers, the most that FSDP2 can be made to do here:"
        f" {times('fsdp2 2d deferred kept')}, which no goal is held against."
    )


def _paragraph(text: str) -> list[str]:
    return textwrap.fill(text, width=105).splitlines()


def _step_time(row: dict[str, Any]) -> str:
    if "error" in row:
        return "failed"
    time = f"{row['step_s_median']:.1f}"
    if row["system"] != "mics auto":
        return time
    sizes = {question["layout"]["partition_size"] for question in row["predicted_from"]}
    return f"{time} (p = {' or '.join(str(size) for size in sorted(sizes))})"


def recovery_table() -> list[str]:
    """Return what the recovery benchmark's faults cost, as lines of Markdown."""
    rows = json.loads((RESULTS / "recovery.json").read_text(encoding="utf-8"))
    faults = list(dict.fromkeys(row["fault"] for row in rows if "fault" in row))
    lines = [f"| | {' | '.join(faults)} |", f"| --- |{' --- |' * len(faults)}"]
    most = max(row.get("repetitions", 0) for row in rows)
    for system, words in RECOVERED.items():
        of = {row["fault"]: row for row in rows if row["system"] == system and "fault" in row}
        fewest = min((row["repetitions"] for row in of.values()), default=most)
        if fewest < most:
            words += f" ({fewest} each)"
        lines.append(f"| {words} | {' | '.join(_stall(of.get(fault)) for fault in faults)} |")
    return lines


def _stall(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if "error" in row:
        return "failed"
    seconds = f"{row['stall_s_median']:.2f} ({row['stall_s_max']:.2f})"
    if row["steps_redone"] or row["fault"] not in CHANGES:
        return seconds
    return f"{seconds}, {100 * row['extra_step_ratio_median']:.0f} %"


def published_table() -> list[str]:
    """Return the cost model beside the published figures, as lines of Markdown."""
    smaller, larger = _cluster("p4d.24xlarge"), _cluster("p4de.24xlarge")
    efficiency, latency_s = fit_constants(smaller)
    lines = ["| | Unit | Published | Model | Error | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in published_rows(smaller, larger):
        digits = 2 if row.published < 10 else 1
        role = "fitted" if row.is_fitted else "predicted"
        lines.append(
            f"| {row.what} | {row.unit} | {row.published:.{digits}f} | {row.predicted:.{digits}f} |"
            f" {100 * row.error:+.1f} % | {role} |"
        )
    fitted = f"The fit gives {100 * efficiency:.1f} % and {1e6 * latency_s:.0f} µs,"
    used = f"{100 * smaller.efficiency:.0f} % and {1e6 * smaller.inter_node.latency_s:.0f} µs"
    return [*lines, "", f"{fitted} of which {used} are used."]


def assumptions_table() -> list[str]:
    """Return what other assumptions make of the published figures, as lines of Markdown."""
    lines = [
        "| Samples of a micro-batch | ZeRO-3 hides its communication |"
        " ZeRO-3's weak scaling, 72.0 % published | MiCS' figure |",
        "| --- | --- | --- | --- |",
    ]
    for other in other_assumptions(_cluster("p4d.24xlarge")):
        hides = "yes" if other.zero_hides else "no"
        reached = "reached" if other.reaches_mics else "not reached at any efficiency"
        lines.append(
            f"| {other.micro_batch_size} | {hides} | {other.zero_weak_scaling:.0f} % | {reached} |"
        )
    return lines


def measured_rows() -> list[dict[str, Any]]:
    """Return what the network benchmark measured, and its run over many layouts, if any."""
    files = (RESULTS / "network.json", RESULTS / "predicted.json")
    return [
        row
        for file in files
        if file.exists()
        for row in json.loads(file.read_text(encoding="utf-8"))
    ]


def measured_table() -> list[str]:
    """Return the cost model beside the network benchmark's measurements, as lines of Markdown.

    The predictions are made anew from the probes that are kept with the measurements, and stand
    beside those that the planner made then.
    """
    results = recorded(measured_rows())
    lines = [
        "| Nodes × workers | Mbit/s | p | Reshard | Added in | Collectives | Measured s |"
        " Model s | Error | Predicted then s | Error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        layout, strategy = result.layout, result.layout.strategy
        routes = (
            {strategy.gather_block, strategy.scatter_block} if layout.partition_size > 1 else {"–"}
        )
        link = "unshaped" if result.link_mbit is None else f"{result.link_mbit:g}"
        own = "" if result.is_own else " †"
        lines.append(
            f"| {result.nodes.replace('x', ' × ')} | {link} | {_size_of(layout)} |"
            f" {strategy.reshard} | {strategy.accumulation} | {', '.join(sorted(routes))} |"
            f" {result.measured_s:.2f}{own} | {result.model_s:.2f} | {_per_cent(result.error)} |"
            f" {result.told_s:.2f}{own} | {_per_cent(result.told_error)} |"
        )
    if not all(result.is_own for result in results):
        words = "† Of all turns, in which the planner took different routes: that run kept no steps"
        lines += ["", f"{words} by turn."]
    for who, errors in (
        ("Today's model", [result.error for result in results]),
        ("The predictions of that time", [result.told_error for result in results]),
    ):
        beyond = f"{num_beyond(errors, GOAL_OF_ERROR)} of {len(errors)} rows"
        lines += [
            "",
            f"**{who}:** worst error {_per_cent(worst(errors))};"
            f" {beyond} beyond {100 * GOAL_OF_ERROR:.0f} %.",
        ]
    return lines


def _size_of(layout: Layout) -> str:
    size = str(layout.partition_size)
    if layout.micro_batch_size > 1:
        size += f", micro-batches of {layout.micro_batch_size}"
    return f"{size}, checkpointed" if layout.is_checkpointed else size


def _per_cent(share: float) -> str:
    return f"{100 * share:+.0f} %"


def scale_table() -> list[str]:
    """Return the weak scaling of the paper's BERT of 10 billion, as lines of Markdown."""
    cluster, preset = _cluster("p4d.24xlarge"), MODEL_PRESETS["bert-10b"]
    hidden, layers = preset["hidden_size"], preset["num_layers"]
    sizes = TransformerSizes(
        "bert", hidden, layers, preset["num_heads"], 4 * hidden, preset["vocab_size"], 512
    )
    choices = Choices(shape_of_transformer(sizes), Workload(8 * 64), cluster)
    lines = [
        "| Workers | MiCS: p × groups | Samples/s | Efficiency | Full sharding: samples/s |"
        " Efficiency |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    first: list[float] = []
    for point in scale(choices, worker_counts(64, 4096), is_weak=True):
        if not (isinstance(point.mics, Prediction) and isinstance(point.full, Prediction)):
            raise ValueError(f"{point} cannot be; choose another batch for the table.")
        speeds = [each.samples_per_s / point.num_workers for each in (point.mics, point.full)]
        first = first or speeds
        shares = [f"{100 * now / then:.1f} %" for now, then in zip(speeds, first, strict=True)]
        layout = point.mics.layout
        lines.append(
            f"| {point.num_workers} | {layout.partition_size} × {layout.num_groups} |"
            f" {point.mics.samples_per_s:.0f} | {shares[0]} | {point.full.samples_per_s:.0f} |"
            f" {shares[1]} |"
        )
    return lines


def _cluster(name: str) -> ClusterProfile:
    found = named_cluster(name)
    if found is None:
        raise ValueError(f"{name} is no known cluster.")
    return found
