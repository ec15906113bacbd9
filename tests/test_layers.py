"""The layers of the project: who may import what, read from the source without importing it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("mics_core", "service")
TORCH = ("torch", "transformers")
WEB = ("fastapi", "starlette", "uvicorn", "sse_starlette")
CLOCK_AND_CHANCE = ("time", "random", "datetime", "secrets")


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target."""

    name: str
    line: int
    is_at_top: bool
    """Whether importing the module runs it: not inside a function, not for type checkers alone."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules that match `who` import nothing that `is_forbidden`."""

    who: str
    words: str
    is_forbidden: Callable[[str], bool]
    but: str = ""
    """Modules that the rule leaves out."""


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbids(*packages: str) -> Callable[[str], bool]:
    return lambda name: within(name, *packages)


def allows_standard_library_and(*packages: str) -> Callable[[str], bool]:
    def is_forbidden(name: str) -> bool:
        return not (name.partition(".")[0] in sys.stdlib_module_names or within(name, *packages))

    return is_forbidden


PURE = ("mics_core.planner", "mics_core.elastic", "mics_core.data.order")
ERRORS = "mics_core.errors"
RULES = [
    Rule(ERRORS, "standard library only", allows_standard_library_and()),
    *(
        Rule(
            who,
            "standard library and other pure modules only",
            allows_standard_library_and(*PURE, ERRORS),
        )
        for who in PURE
    ),
    *(Rule(who, "no clock, no randomness", forbids(*CLOCK_AND_CHANCE)) for who in PURE),
    Rule("mics_core.data", "no torch", forbids(*TORCH)),
    Rule("mics_core.spec", "neither torch nor ray", forbids(*TORCH, "ray")),
    Rule("mics_core", "only mics_core.cluster imports ray", forbids("ray"), "mics_core.cluster"),
    Rule("service", "only mics_core.cluster imports ray", forbids("ray")),
    Rule("mics_core", "only service imports the web framework", forbids(*WEB)),
    Rule("mics_core", "mics_core never imports service", forbids("service")),
    Rule("mics_core.engine", "no cluster", forbids("mics_core.cluster")),
    Rule("mics_core.comm", "no cluster", forbids("mics_core.cluster")),
    Rule("service", "no torch", forbids(*TORCH)),
    # A command that runs and ends may load the engine inside a function; the service never does.
    Rule(
        "service",
        "no torch, which the engine loads",
        forbids("mics_core.engine", "mics_core.comm"),
        "service.cli.export",
    ),
]


@cache
def imports_of(source: str, module: str, is_package: bool = False) -> tuple[Import, ...]:
    """All imports of a module, also those inside functions; relative names are resolved.

    `from a import b` gives `a.b`, since `b` may be a module.
    """
    package = module if is_package else module.rpartition(".")[0]
    return tuple(_imports_below(ast.parse(source), package, is_at_top=True))


def _imports_below(node: ast.AST, package: str, *, is_at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, is_at_top)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, is_at_top)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _imports_below(ast.Module([part], []), package, is_at_top=False)
            for part in child.orelse:
                yield from _imports_below(ast.Module([part], []), package, is_at_top=is_at_top)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports_below(child, package, is_at_top=is_at_top and not is_function)


@cache
def project_sources() -> dict[str, tuple[str, bool]]:
    """Source of every module of the project, by dotted name, and whether it is a package."""
    sources = {}
    for package in PROJECT:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            sources[name] = (path.read_text(encoding="utf-8"), is_package)
    return sources


def broken_rules(module: str, source: str, is_package: bool = False) -> list[str]:
    """One sentence for each import of a module that breaks a rule."""
    rules = [
        rule
        for rule in RULES
        if within(module, rule.who) and not (rule.but and within(module, rule.but))
    ]
    return [
        f"{module}, line {found.line}: imports {found.name}, but {rule.words}"
        for found in imports_of(source, module, is_package)
        for rule in rules
        if rule.is_forbidden(found.name)
    ]


def paths_to(
    starts: list[str], sources: Mapping[str, tuple[str, bool]], forbidden: tuple[str, ...]
) -> list[str]:
    """Chains of top-level imports from `starts` to anything forbidden, one for each start."""
    found = []
    for start in starts:
        came_from: dict[str, str] = {start: ""}
        waiting = [start]
        while waiting:
            module = waiting.pop()
            source, is_package = sources[module]
            for entry in imports_of(source, module, is_package):
                if not entry.is_at_top:
                    continue
                if within(entry.name, *forbidden):
                    found.append(f"{_chain(module, came_from)} → {entry.name}")
                    waiting.clear()
                    break
                for reached in _modules_run_by(entry.name, sources):
                    if reached not in came_from:
                        came_from[reached] = module
                        waiting.append(reached)
    return found


def _chain(module: str, came_from: Mapping[str, str]) -> str:
    chain = [module]
    while came_from[chain[0]]:
        chain.insert(0, came_from[chain[0]])
    return " → ".join(chain)


def _modules_run_by(name: str, sources: Mapping[str, tuple[str, bool]]) -> list[str]:
    """Modules of the project that `import name` runs: the module and all packages above it."""
    parts = name.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return [module for module in above if module in sources]


@pytest.mark.parametrize("module", project_sources())
def test_a_module_imports_nothing_from_a_layer_it_must_not_know(module: str) -> None:
    assert broken_rules(module, *project_sources()[module]) == []


def test_importing_the_service_imports_neither_torch_nor_the_engine() -> None:
    sources = project_sources()
    starts = [module for module in sources if within(module, "service")]
    assert paths_to(starts, sources, (*TORCH, "mics_core.engine", "mics_core.comm")) == []


def test_importing_the_engine_imports_neither_ray_nor_the_web_framework() -> None:
    sources = project_sources()
    starts = [module for module in sources if within(module, "mics_core.engine", "mics_core.comm")]
    assert paths_to(starts, sources, ("ray", *WEB)) == []


def test_importing_a_pure_module_imports_only_pure_modules() -> None:
    sources = project_sources()
    starts = [module for module in sources if within(module, *PURE, ERRORS)]
    assert paths_to(starts, sources, (*TORCH, *WEB, "ray", "numpy", "pydantic", "yaml")) == []


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("mics_core.planner.x", "import numpy", "imports numpy, but standard library"),
        ("mics_core.planner.x", "from mics_core.spec import JobSpec", "mics_core.spec.JobSpec"),
        ("mics_core.planner.x", "from ..spec import job", "imports mics_core.spec.job"),
        ("mics_core.planner.x", "import time", "no clock"),
        ("mics_core.elastic.x", "def f():\n    from random import random", "line 2.*no randomness"),
        ("mics_core.elastic.x", "from datetime import datetime", "no clock"),
        ("mics_core.data.order", "import numpy as np", "standard library"),
        ("mics_core.data.order", "import random", "no randomness"),
        ("mics_core.errors", "from mics_core.planner import layout", "standard library only"),
        ("mics_core.data.x", "import torch.nn", "no torch"),
        (
            "mics_core.data.x",
            "if True:\n  try:\n    import torch\n  except E:\n    pass",
            "no torch",
        ),
        ("mics_core.engine.x", "from ray import train", "only mics_core.cluster imports ray"),
        ("mics_core.comm.x", "import fastapi", "only service"),
        ("mics_core.engine.x", "from ..cluster import names", "no cluster"),
        ("mics_core.cluster.x", "import uvicorn", "only service"),
        ("mics_core.cluster.x", "import service.app", "mics_core never imports service"),
        ("service.x", "import ray", "only mics_core.cluster imports ray"),
        ("service.x", "class A:\n    def f(self):\n        import torch", "line 3.*no torch"),
        ("service.x", "from mics_core import engine", "no torch"),
    ],
)
def test_a_broken_layer_is_caught(module: str, source: str, words: str) -> None:
    broken = broken_rules(module, source)
    assert any(re.search(words, sentence) for sentence in broken), broken


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mics_core.planner.x", "import math\nfrom mics_core.errors import Problem"),
        ("mics_core.elastic.x", "from mics_core.data.order import sample_index"),
        ("mics_core.elastic.x", "from .events import Event"),
        ("mics_core.cluster.x", "import ray, torch, time"),
        ("mics_core.engine.x", "import torch, time"),
        ("mics_core.comm.x", "import rayon"),
        ("service.x", "import fastapi\nfrom mics_core.spec import JobSpec"),
    ],
)
def test_a_layer_that_holds_is_left_alone(module: str, source: str) -> None:
    assert broken_rules(module, source) == []


def test_a_chain_of_imports_is_caught_unless_a_function_breaks_it() -> None:
    sources = {
        "service.a": ("from mics_core.b import c", False),
        "mics_core.b": ("", True),
        "mics_core.b.c": ("from . import d", False),
        "mics_core.b.d": ("import torch", False),
    }
    chain = "service.a → mics_core.b.c → mics_core.b.d → torch"
    assert paths_to(["service.a"], sources, TORCH) == [chain]
    sources["mics_core.b.d"] = ("def f():\n    import torch", False)
    assert paths_to(["service.a"], sources, TORCH) == []
    sources["mics_core.b.d"] = ("if TYPE_CHECKING:\n    import torch", False)
    assert paths_to(["service.a"], sources, TORCH) == []
    sources["mics_core.b"] = ("import torch", True)
    assert paths_to(["service.a"], sources, TORCH) == ["service.a → mics_core.b → torch"]
