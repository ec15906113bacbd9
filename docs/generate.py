"""Writes what the documentation takes from the code, so that the two cannot differ.

That is `docs/job-specification.md`, from the specification, `docs/api.md`, from the service's
OpenAPI document (`docs/api_page.py`), and the tables of `docs/scaling.md` and
`README.md`, from the planner and the results of benchmarks. `python docs/generate.py` writes all;
with `--check` it ends with status 1 if one is out of date, as `tests/test_docs.py` and
`tests/planner/test_planner_published.py` find too.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel

from mics_core.planner.candidates import Choices
from mics_core.planner.clusters import named_cluster
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Prediction, Workload
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.published import fit_constants, published_rows
from mics_core.planner.question import Question
from mics_core.planner.scaling import scale, worker_counts
from mics_core.planner.shape import shape_of_transformer
from mics_core.spec.job import JobSpec
from mics_core.spec.presets import MODEL_PRESETS

TARGET = Path(__file__).parent / "job-specification.md"
API = Path(__file__).parent / "api.md"
SCALING = Path(__file__).parent / "scaling.md"
README = Path(__file__).parents[1] / "README.md"
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
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "network.json"

_INTRODUCTION = """\
<!-- Written by docs/generate.py from mics_core/spec/job.py. Change that, then run the script. -->

# Job specification

One specification describes a job, whoever starts it: a YAML file for `mics submit`, `ray job
submit` and `torchrun`, the body of `POST /api/v1/jobs` (JSON or YAML), or a `JobSpec` in Python.

- A field that is not listed here is an error, with a hint at the field that may be meant.
- Every broken rule is reported at once, with the field, its value, the rule and the remedy.
- In a YAML file relative paths count from the file's own folder, and `~` is the home folder. REST
  bodies need absolute paths for data and tokenizer.
- Data and tokenizer files must exist under the same path on every node.
- `mics validate --local job.yaml` checks a file without a service.

Annotated files are in [examples](../examples/README.md).
"""

_HEADINGS = {
    "JobSpec": "The job",
    "TransformersModel": "`model`: a transformers model",
    "CallableModel": "`model`: your own",
    "FileData": "`data`: files",
    "CallableData": "`data`: your own",
    "TokenizerSpec": "`tokenizer`",
    "TrainingSpec": "`training`",
    "OptimizerSpec": "`training.optimizer`",
    "ScheduleSpec": "`training.schedule`",
    "GroupsSpec": "`groups`",
    "ResourcesSpec": "`resources`",
    "EngineSpec": "`engine`",
    "CheckpointSpec": "`checkpoint`",
}

_NOTES = {
    "TransformersModel": f"""\
`family`, `hidden_size`, `num_layers` and `num_heads` may be left out with a `preset`:
{", ".join(f"`{name}`" for name in MODEL_PRESETS)}.
The tiny ones take the tokenizer's vocabulary. The BERT models of 10 to 50 billion parameters are
those of the MiCS paper, which trained them on samples of 512 tokens.""",
    "TrainingSpec": """\
What is `auto` is settled before anything is started, and workers only ever see the numbers. With
`resources.cluster` it is what makes the step shortest by prediction; without, activations are kept
if they fit, and the micro-batch is the largest power of two up to 32 that fits.""",
    "EngineSpec": """\
`mics plan job.yaml --cluster …` shows what the planner would choose, and why.""",
    "CheckpointSpec": """\
What is written, and when, is in [operations](operations.md#checkpoints).""",
    "JobSpec": "`model` and `data` have two forms each; `callable` in them chooses the second.",
    "CallableModel": """\
The builder runs on the meta device. The module's `forward(input_ids, attention_mask=None)` takes
int64 tensors of shape (micro-batch, sequence) and returns logits of shape (micro-batch, sequence,
vocabulary), or an object with `.logits`. `attention_mask` is passed only if a sample brings one.
Every submodule that holds parameters or buffers itself needs `reset_parameters()`. Elements of the
outermost `nn.ModuleList`s become the units of sharding. The module must be importable on every
node. An example is [examples/own-model](../examples/own-model/model.py).""",
    "CallableData": """\
The builder returns a collection with `__len__` and `__getitem__`, the same in every process. An
item is a mapping with `input_ids`, `labels` and perhaps `attention_mask`, integers of shape
(sequence_length,). Labels are already shifted; -100 stands where there is no loss. Each sample is
checked as it is read.

An item must be the same whenever and wherever it is asked for: any worker may ask for any item
again, after a loss, in a new process or from a checkpoint on. So a collection keeps no position and
no generator of its own, and what is random in an item comes from a seed and its index. Then every
sample is used once in effect whatever comes and goes, and no state of it is saved.""",
    "ResourcesSpec": """\
With `gpus: 1` and `partition_size: auto`, `memory_gib` is required: Ray does not tell the memory of
a GPU.""",
}

RULES = {
    "_preset_is_expanded": "`preset` names a known model.",
    "_heads_divide_width": "`num_heads` divides `hidden_size`.",
    "_path_where_needed": "`kind: file` needs `path`; `kind: bytes` takes neither `path` nor"
    " `end_of_document`.",
    "_betas_below_one": "Both `betas` are in [0, 1).",
    "_micro_batches_divide_the_batch": "`micro_batch_size` divides `global_batch_size`;"
    " `schedule.warmup_steps` is at most `steps`.",
    "_node_needs_stages": "`node` in `reshard` or `accumulation` excludes `hierarchical: never`.",
    "_ordered": "`minimum` ≤ `wanted` ≤ `maximum`.",
    "_batch_holds_the_groups": "`training.global_batch_size` is a multiple of `partition_size` ×"
    " `micro_batch_size`, and makes at least `groups.maximum` micro-batches of that size. With"
    " `auto`, only sizes that keep this rule are considered.",
}
"""Rules over several fields, by the validator that enforces each; a test finds missing ones."""


def render() -> str:
    """Return the text of the file."""
    parts = [_INTRODUCTION, *(_section(model) for model in models())]
    return "\n".join(parts)


def render_api() -> str:
    """Return the text of the page about the REST API."""
    page = runpy.run_path(str(Path(__file__).with_name("api_page.py")))
    text: str = page["render"]()
    return text


def models() -> list[type[BaseModel]]:
    """Return all parts of the specification, in the order in which a job names them."""
    found = [JobSpec, *_inner(JobSpec)]
    return list(dict.fromkeys(found))


def _inner(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for part in _models_in(field.annotation):
            yield part
            yield from _inner(part)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def validators_of(model: type[BaseModel]) -> list[str]:
    """Return the names of a model's validators over several fields."""
    return list(model.__pydantic_decorators__.model_validators)


def _section(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    lines = [f"## {_HEADINGS[model.__name__]}", "", _first_paragraph(model), ""]
    if note := _NOTES.get(model.__name__):
        lines += [note, ""]
    lines += ["| Field | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        form, default = _type(model, name, schema["properties"][name]), _default(field)
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {form} | {default} | {_cell(meaning)} |")
    lines.append("")
    for name in validators_of(model):
        lines += [f"Rule: {RULES[name]}", ""]
    return "\n".join(lines)


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _type(model: type[BaseModel], name: str, schema: dict[str, Any]) -> str:
    inner = list(dict.fromkeys(_models_in(model.model_fields[name].annotation)))
    if inner:
        return " or ".join(f"[{part.__name__}](#{_anchor(part)})" for part in inner)
    return _cell(_form(schema))


def _anchor(model: type[BaseModel]) -> str:
    kept = [c for c in _HEADINGS[model.__name__].lower() if c.isalnum() or c in " -_"]
    return "".join(kept).replace(" ", "-")


def _form(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in schema:
        forms = [_form(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(forms)
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "string":
            if "pattern" in schema:
                return "`module:callable`"
            length = schema.get("maxLength")
            return f"text, at most {length} characters" if length else "text"
        case "integer":
            return "whole number" + _bounds(schema)
        case "number":
            return "number" + _bounds(schema)
        case "boolean":
            return "`true` or `false`"
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])} numbers"
        case "array":
            return f"list of {_form(schema['items'])}"
        case "object" if schema.get("additionalProperties") not in (None, True):
            return f"mapping of names to {_form(schema['additionalProperties'])}s"
        case "object":
            return "mapping"
    raise ValueError(f"{schema} has no words yet; add them to docs/generate.py.")


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "> {}",
        "minimum": "≥ {}",
        "exclusiveMaximum": "< {}",
        "maximum": "≤ {}",
    }
    found = [words[key].format(_number(schema[key])) for key in words if key in schema]
    return f" {' and '.join(found)}" if found else ""


def _number(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_tables(page: str) -> str:
    """Return a page with those of these tables that it has made anew."""
    tables = {
        "network": network_table,
        "published": published_table,
        "measured": measured_table,
        "scale": scale_table,
    }
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        content = "\n".join([begin, "", *table(), "", end])
        page = place.sub(lambda _match, content=content: content, page, count=1)
    return page


def network_table() -> list[str]:
    """Return the step times of the network benchmark, as lines of Markdown."""
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))
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


def measured_table() -> list[str]:
    """Return the cost model beside the network benchmark's measurements, as lines of Markdown.

    The predictions are made anew from the probes that are kept with the measurements.
    """
    lines = [
        "| Nodes × workers | Mbit/s | p | Reshard | Added in | Collectives | Measured s | Model s |"
        " Error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in json.loads(MEASURED.read_text(encoding="utf-8")):
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


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    pages = {TARGET: render(), API: render_api()}
    pages |= {page: with_tables(page.read_text(encoding="utf-8")) for page in (README, SCALING)}
    if parser.parse_args().check:
        return int(any(page.read_text(encoding="utf-8") != text for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
