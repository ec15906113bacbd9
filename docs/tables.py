"""Makes the tables of `docs/scaling.md`, `README.md` and `docs/operations.md`.

They come from the planner, from the results of benchmarks and from the command line, for
`docs/generate.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

from mics_core.planner.candidates import Choices
from mics_core.planner.clusters import named_cluster
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Prediction, Workload
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.published import fit_constants, published_rows
from mics_core.planner.question import Question
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
    "ddp": "DDP",
    "deepspeed zero3": "DeepSpeed 0.19.8, ZeRO-3",
    "deepspeed mics": "DeepSpeed 0.19.2, MiCS",
    "mics p={k}": "**mics-elastic, p = workers of a node**",
    "mics p=8": "**mics-elastic, p = 8 over all nodes**",
    "mics auto": "**mics-elastic, the planner's choice**",
}
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
    for system, words in SYSTEMS.items():
        cells = []
        for layout, link in places:
            size = layout.split("x")[1]
            wanted = (system.format(k=size), layout, link)
            keys = ("system", "layout", "link_mbit")
            found = [row for row in rows if tuple(row[key] for key in keys) == wanted]
            cells.append(_step_time(found[0]) if found else "–")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


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
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    lines = [f"| | {' | '.join(faults)} |", f"| --- |{' --- |' * len(faults)}"]
    for system, words in RECOVERED.items():
        of = {row["fault"]: row for row in rows if row["system"] == system}
        lines.append(f"| {words} | {' | '.join(_stall(of.get(fault)) for fault in faults)} |")
    return lines


def _stall(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if "error" in row:
        return "failed"
    return f"{row['stall_s_median']:.2f} ({row['stall_s_max']:.2f})"


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

    The predictions are made anew from the probes that are kept with the measurements.
    """
    lines = [
        "| Nodes × workers | Mbit/s | p | Reshard | Added in | Collectives | Measured s | Model s |"
        " Error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured_rows():
        questions = [Question.from_json(value) for value in row.get("predicted_from", [])]
        for layout in dict.fromkeys(question.layout for question in questions):
            model_s = median(q.answer().step_s for q in questions if q.layout == layout)
            measured_s, strategy = row["step_s_median"], layout.strategy
            routes = (
                {strategy.gather_block, strategy.scatter_block}
                if layout.partition_size > 1
                else {"–"}
            )
            link = "unshaped" if row["link_mbit"] is None else f"{row['link_mbit']:g}"
            lines.append(
                f"| {row['layout'].replace('x', ' × ')} | {link} | {layout.partition_size} |"
                f" {strategy.reshard} | {strategy.accumulation} | {', '.join(sorted(routes))} |"
                f" {measured_s:.2f} | {model_s:.2f} | {100 * (model_s / measured_s - 1):+.0f} % |"
            )
    return lines


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
