"""Writes what the documentation takes from the code, so that the two cannot differ.

That is `docs/job-specification.md`, from the specification, `docs/api.md`, from the service's
OpenAPI document (`docs/api_page.py`), and tables in `docs/scaling.md`, `README.md` and
`docs/operations.md`, from the planner, the results of benchmarks and the command line
(`docs/tables.py`). `python docs/generate.py` writes all;
with `--check` it ends with status 1 if one is out of date, as `tests/test_docs.py` and
`tests/planner/test_planner_published.py` find too.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mics_core.spec.job import JobSpec
from mics_core.spec.presets import MODEL_PRESETS

TARGET = Path(__file__).parent / "job-specification.md"
API = Path(__file__).parent / "api.md"
SCALING = Path(__file__).parent / "scaling.md"
README = Path(__file__).parents[1] / "README.md"
OPERATIONS = Path(__file__).parent / "operations.md"

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
`mics plan job.yaml --cluster …` shows what the planner would choose, and why. It chooses by
predicted speed where `resources.cluster` says what the cluster can do. Without that `auto` is the
paper's way: `reshard: always`, `accumulation: group`, and both stages where a partition group spans
nodes of several workers.""",
    "CheckpointSpec": """\
What is written, and when, is in [operations](operations.md#checkpoints).""",
    "JobSpec": "`model` and `data` have two forms each; `callable` in them chooses the second.",
    "CallableModel": """\
The builder runs on the meta device. The module's `forward(input_ids, attention_mask=None)` takes
int64 tensors of shape (micro-batch, sequence) and returns logits of shape (micro-batch, sequence,
vocabulary), or an object with `.logits`. `attention_mask` is passed only if a sample brings one.
The module must be importable on every node. An example is
[examples/own-model](../examples/own-model/model.py).

- **Initial values** are drawn in memory after the builder has run, so what a constructor writes is
  lost. Every submodule that holds parameters or buffers itself needs `reset_parameters()`, or the
  model an `_init_weights(module)` as in transformers; what that leaves unset `reset_parameters()`
  sets. A floating-point parameter or buffer that neither sets is refused by name; integers cannot
  be checked.
- **Units.** Elements of the outermost `nn.ModuleList`s become the units of sharding; of a list or
  dictionary of modules among them its elements do. All else is one more unit. A unit is gathered
  when its module is called, so call it, and not a method of its own or a part of it.
- **Repeated calls.** A unit may be called any number of times in a forward, also none. One that is
  called more than once sends its gradient to the other groups at the end of backward.
- **Ties.** A parameter that several modules share must lie in one unit, as an embedding and an
  output outside the lists do. One that is in two units is refused, and so is a module that a list
  holds twice: list it once and call it again. Modules with buffers alone may be shared.
- **Frozen parameters** (`requires_grad=False`) may be anywhere, also whole units; they are sharded
  and gathered like the others, and never change. At least one parameter must be trained.
- **A parameter without a gradient** in a step counts with a zero gradient, unlike in plain
  PyTorch: weight decay and momentum still move it. Freeze what should stay.
- **A parameter has a dimension**, along which it is sharded: `(1,)` in the place of a scalar.
- **Buffers** stay with each worker and are not averaged. The running statistics of `BatchNorm` are
  those of the worker's own micro-batches; a checkpoint holds one worker's, which all start from.
  What normalises over samples also makes the loss depend on the micro-batch size, so prefer
  `LayerNorm`.""",
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
    """Return a page with those of the tables of `docs/tables.py` that it has made anew."""
    tables = runpy.run_path(str(Path(__file__).with_name("tables.py")))
    text: str = tables["with_tables"](page)
    return text


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    pages = {TARGET: render(), API: render_api()}
    with_some = (README, SCALING, OPERATIONS)
    pages |= {page: with_tables(page.read_text(encoding="utf-8")) for page in with_some}
    if parser.parse_args().check:
        return int(any(page.read_text(encoding="utf-8") != text for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
