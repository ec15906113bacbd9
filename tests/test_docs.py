"""The documentation says what is there: links, commands, examples, fields and configurations."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from mics_core.spec import load_job_spec, parse_job_spec
from service.settings import _VARIABLES

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = (".venv", ".git", "node_modules", "build", "dist")
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in HIDDEN or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").rglob("[!.]*.yaml")
    if not path.name.startswith("ray_cluster")
)

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load_module(path: Path, name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> Iterator[str]:
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match[1] == language:
            yield match[2]


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
        anchors.add(kept.strip().replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z-]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{target} leads nowhere"
        assert goal.is_relative_to(ROOT), f"{target} leaves the repository"
        if anchor:
            assert anchor in anchors_of(goal), f"{target} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_files_of_the_repository_that_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:mics_core|service|tests|docs|examples)/[\w./-]+)`", page.read_text("utf-8")
    ):
        assert (ROOT / name).exists(), f"{name} does not exist"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_module(ROOT / "docs" / "generate.py", "docs_generate")


def test_the_page_of_the_job_specification_is_up_to_date(generator: ModuleType) -> None:
    written = generator.TARGET.read_text(encoding="utf-8")
    assert written == generator.render(), "run `python docs/generate.py`"


def test_the_page_of_the_api_is_up_to_date(generator: ModuleType) -> None:
    written = generator.API.read_text(encoding="utf-8")
    assert "### POST /api/v1/jobs/{job_id}/scale" in written
    assert written == generator.render_api(), "run `python docs/generate.py`"


def test_the_table_of_exit_codes_is_that_of_the_command_line(generator: ModuleType) -> None:
    written = generator.OPERATIONS.read_text(encoding="utf-8")
    assert "| 130 | interrupted; the job goes on | | |" in written.replace("  ", " ")
    assert written == generator.with_tables(written), "run `python docs/generate.py`"
    # One table, so that no two can differ.
    assert len(re.findall(r"^\| 0 \|", written, re.MULTILINE)) == 1


def test_the_tables_of_the_readme_are_those_of_the_results(generator: ModuleType) -> None:
    written = generator.README.read_text(encoding="utf-8")
    assert "| **mics-elastic, the planner's choice** |" in written
    assert written == generator.with_tables(written), "run `python docs/generate.py`"


def test_every_field_and_every_rule_of_the_specification_has_words(generator: ModuleType) -> None:
    for model in generator.models():
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"
        for validator in generator.validators_of(model):
            assert validator in generator.RULES, f"{validator} has no words in docs/generate.py"


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_every_example_is_a_job(example: Path) -> None:
    load_job_spec(example)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_job_in_the_documentation_is_one(page: Path) -> None:
    for block in blocks(page, "yaml"):
        value = yaml.safe_load(block)
        if isinstance(value, dict) and "training" in value:
            parse_job_spec(value)


def test_the_example_of_an_own_model_brings_what_its_job_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mics_core.data.sources import build_samples
    from mics_core.engine.models import build_meta_model

    folder = ROOT / "examples" / "own-model"
    monkeypatch.setitem(sys.modules, "model", load_module(folder / "model.py", "model"))
    spec = load_job_spec(folder / "job.yaml")
    assert sum(1 for _ in build_meta_model(spec).parameters()) > 0
    assert build_samples(spec)[0].input_ids.shape == (spec.training.sequence_length,)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_in_the_documentation_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(blocks(page, "sh"))
    used = re.findall(r"\bmake ([a-z-]+)\b", shell) + re.findall(r"`make ([a-z-]+)[^`]*`", text)
    assert set(used) <= targets


_END_OF_COMMAND = {"|", ">", ">>", "&&", ";", "&", "…"}


def mics_lines(page: Path) -> list[list[str]]:
    """The words of every call of `mics` on a page, in its blocks and in its text."""
    shell = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\w+=\S+ )*mics (.+)", shell, re.MULTILINE)
    lines += re.findall(r"`mics ([^`]+)`", page.read_text(encoding="utf-8"))
    split = [shlex.split(line, comments=True) for line in lines]
    return [list(takewhile(lambda word: word not in _END_OF_COMMAND, words)) for words in split]


def complaint(command: Any, words: list[str]) -> str:
    """What `mics` says of a call's commands and options; nothing if it knows them all."""
    try:
        with command.make_context("mics", words.copy()) as context:
            # Typer brings a click of its own, in which the first of them has another name.
            first = getattr(context, "_protected_args", None) or context.protected_args
            if not hasattr(command, "commands") or not first:
                return ""
            _, inner, rest = command.resolve_command(context, [*first, *context.args])
            return complaint(inner, rest)
    except SystemExit:  # of --help
        return ""
    except Exception as error:
        said = getattr(error, "message", "") or ""
        # Missing and made-up values are none of the documentation's business.
        return str(said) if "o such" in said or "xtra argument" in said else ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mics_commands_in_the_documentation_are_understood(page: Path) -> None:
    from typer.main import get_command

    from service.cli.main import build_app

    commands: Any = get_command(build_app())
    said = {" ".join(words): complaint(commands, words) for words in mics_lines(page)}
    assert {line: words for line, words in said.items() if words} == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("show ID --json", ""),
        ("token create --name ada --role user", ""),
        ("show ID --jason", "No such option"),
        ("shwo ID", "No such command"),
        ("token create --nmae ada", "No such option"),
        ("show ID another", "extra argument"),
    ],
)
def test_calls_that_are_not_understood_are_found(line: str, words: str) -> None:
    from typer.main import get_command

    from service.cli.main import build_app

    found = complaint(get_command(build_app()), line.split())
    assert bool(found) is bool(words)
    assert words in found


def test_every_setting_of_the_service_is_in_the_table_of_operations() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for variable in _VARIABLES.values():
        assert f"`{variable}`" in text


def test_the_package_brings_every_file_of_the_page_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    packed = {path for pattern in patterns for path in (ROOT / "service").glob(pattern)}
    files = {path for path in (ROOT / "service" / "static").rglob("*") if path.is_file()}
    assert files <= packed
    names = {path.name for path in files}
    assert {"index.html", "docs.html", "swagger-ui-bundle.js", "swagger-ui.css"} <= names
    for vendored in (ROOT / "service" / "static" / "vendor").iterdir():
        assert (vendored / "LICENSE").is_file(), f"{vendored.name} comes without its license"


@pytest.mark.parametrize("image", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=name_of)
def test_images_say_what_they_show_and_suit_dark_pages(image: Path) -> None:
    root = ElementTree.parse(image).getroot()
    names = {element.tag.rpartition("}")[2] for element in root}
    assert {"title", "desc"} <= names
    assert "prefers-color-scheme: dark" in image.read_text(encoding="utf-8")
