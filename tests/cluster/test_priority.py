"""A process that has nothing left to train gives way to others, with all of its threads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have priorities of their own on Linux alone"
)

SCRIPT = """
import json, os, threading
from mics_core.cluster.priority import step_aside

may_end = threading.Event()
others = [threading.Thread(target=may_end.wait) for _ in range(3)]
for thread in others:
    thread.start()
ids = [threading.get_native_id(), *(thread.native_id for thread in others)]
before = [os.getpriority(os.PRIO_PROCESS, each) for each in ids]
step_aside()
after = [os.getpriority(os.PRIO_PROCESS, each) for each in ids]
may_end.set()
print(json.dumps([before, after]))
"""


def test_every_thread_steps_aside() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    before, after = json.loads(done.stdout)
    assert len(before) == 4
    assert set(after) == {19} != set(before)
