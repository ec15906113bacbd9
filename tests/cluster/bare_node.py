"""A node without Ray: a process in place of its raylet, and calls such as Ray makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mics_core.cluster.template import NODES_OF_FORKS
from mics_core.cluster.warm import python_of_forks
from tests.cluster.running import eventually

PROGRAM = """
import atexit, json, os, sys
from pathlib import Path

names = ("ray.train", "torch", "transformers.models.gpt2.modeling_gpt2")
loaded = [name for name in names if sys.modules.get(name)]

def told():
    import random
    import numpy
    from ray import WorkerID
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "path": sys.path,
        "main": __name__,
        "loaded": loaded,
        "drawn": [random.random(), numpy.random.random(), WorkerID.from_random().hex()],
    }

def write(name, value):
    new = Path(sys.argv[1] + ".new")
    new.write_text(json.dumps(value))
    new.rename(sys.argv[1] + name)

write("", told())
print("said by", sys.argv[1], flush=True)
atexit.register(write, ".end", "at the end")
sys.stdin.read()
"""


@dataclass
class Node:
    """A folder with a raylet's socket would be in, and a process that stands for the raylet."""

    folder: Path
    raylet: subprocess.Popen[bytes]
    calls: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def sockets(self) -> list[Path]:
        return [path for path in self.folder.glob("raylet.*") if path.is_socket()]

    def call(self, name: str, **changes: str) -> subprocess.Popen[str]:
        """Call as Ray does."""
        program = self.folder / "default_worker.py"
        program.write_text(PROGRAM)
        words = [
            str(program),
            str(self.folder / name),
            f"--raylet-name={self.folder}/raylet",
            "--node-id=ab",
        ]
        environment = os.environ | {
            "RAY_RAYLET_PID": str(self.raylet.pid),
            NODES_OF_FORKS: "ab,cd",
        }
        del environment["PYTEST_CURRENT_TEST"]
        called = subprocess.Popen(
            ["bash", "-c", f"exec {python_of_forks(sys.executable)} {' '.join(words)}"],
            cwd=self.folder,
            env=environment | changes,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.calls.append(called)
        return called

    def told(self, name: str) -> dict[str, Any]:
        """Return what a process tells of itself."""
        path = self.folder / name
        eventually(path.exists, f"what {name} tells", 60.0)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """Run a node; nothing of it may be left when its raylet is gone."""
    raylet = subprocess.Popen(["sleep", "600"])
    node = Node(folder, raylet)
    started: list[psutil.Process] = []
    try:
        yield node
        started = [process for call in node.calls for process in family(call.pid)]
    finally:
        raylet.kill()
        raylet.wait()
        for call in node.calls:
            with suppress(BrokenPipeError):
                call.communicate(timeout=30)
    eventually(lambda: not [p for p in started if p.is_running()], "the end of all processes", 30)


def family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
