"""How a process of tests ends: with their status, whatever threads were left to themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HANDLER = "the handlers of an exit ran"
TEST = f"""
import atexit
{{imports}}

def test_passes():
    atexit.register(print, {HANDLER!r})

def test_result():
    assert {{result}}
"""


def ended(folder: Path, *, imports: str, result: bool) -> subprocess.CompletedProcess[str]:
    """Run a test file as a process of its own, with the hooks of these tests."""
    (folder / "test_it.py").write_text(TEST.format(imports=imports, result=result))
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("result", [True, False])
def test_tests_that_have_used_ray_end_at_once_with_their_status(
    tmp_path: Path, result: bool
) -> None:
    process = ended(tmp_path, imports="import ray", result=result)
    assert process.returncode == (0 if result else 1), process.stderr
    assert ("2 passed" if result else "1 failed, 1 passed") in process.stdout
    assert HANDLER not in process.stdout


def test_others_end_as_any_process(tmp_path: Path) -> None:
    process = ended(tmp_path, imports="", result=True)
    assert process.returncode == 0, process.stderr
    assert HANDLER in process.stdout
