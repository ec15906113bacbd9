"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# Helpers that check say what was wrong as tests do.
pytest.register_assert_rewrite("tests.engine.writers", "tests.faults.runs")

# How long an example takes is no property of the code: a machine may be busy.
settings.register_profile("mics", deadline=None)
settings.load_profile("mics")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Fail what is skipped where `MICS_TESTS_SKIP_NOTHING` says that everything is installed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    is_skipped = report.skipped and not hasattr(report, "wasxfail")
    if is_skipped and os.environ.get("MICS_TESTS_SKIP_NOTHING") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped here, and this was: {report.longrepr}"
