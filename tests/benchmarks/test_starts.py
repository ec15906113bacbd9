"""Processes that start at the lowest priority and get the usual one later."""

from __future__ import annotations

import os
import subprocess

import pytest

from benchmarks.harness.niceness import LOWEST
from benchmarks.recovery.starts import given_way, take_part

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to raise a priority again needs root")


def test_what_starts_in_it_gives_way_until_it_takes_part() -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with given_way():
        process = subprocess.Popen(["sleep", "60"])
    try:
        assert os.getpriority(os.PRIO_PROCESS, 0) == usual
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == LOWEST
        take_part([process.pid])
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == usual
    finally:
        process.kill()
        process.wait()
    take_part([process.pid])  # it is gone
