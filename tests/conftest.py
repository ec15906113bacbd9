"""What holds for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from mics_core.ending import end_at_once

# Helpers that check say what was wrong as tests do.
pytest.register_assert_rewrite(
    "tests.cluster.outcomes", "tests.engine.writers", "tests.faults.runs"
)

# How long an example takes is no property of the code: a machine may be busy.
settings.register_profile("mics", deadline=None)
settings.load_profile("mics")

SESSION = pytest.StashKey[pytest.Session]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process that has used Ray with the status of its tests, whatever Ray's threads do.

    Ray's threads of native code, and calls that tests have left to themselves, outlive the tests.
    Python's end destroys what they use, and now and then that is the end by a signal.
    """
    session = config.stash.get(SESSION, None)
    if session is not None and "ray" in sys.modules and not hasattr(config, "workerinput"):
        config.get_terminal_writer().flush()
        end_at_once(int(session.exitstatus))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Fail what is skipped where `MICS_TESTS_SKIP_NOTHING` says that everything is installed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    is_skipped = report.skipped and not hasattr(report, "wasxfail")
    if is_skipped and os.environ.get("MICS_TESTS_SKIP_NOTHING") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped here, and this was: {report.longrepr}"
