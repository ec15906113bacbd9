"""Processes as forks of a node's template, with a process in place of the raylet; without Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import psutil
import pytest

from mics_core.cluster import runner, warm
from mics_core.cluster.warm import LOADED_FOR_FORKS, NODES_OF_FORKS, python_of_forks
from mics_core.spec.job import TransformersModel
from tests.cluster.jobs import recorded_job
from tests.cluster.running import eventually
from tests.engine.jobs import small_job

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux can watch a raylet as a file"),
]

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

NOBODY = 65534
"""An id of a user who is not this one."""

MODEL = {LOADED_FOR_FORKS: "transformers.models.gpt2.modeling_gpt2"}


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


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node on which three calls were made, two of them at once."""
    with running_node(tmp_path_factory.mktemp("node")) as node:
        node.call("first", **MODEL)
        node.call("second", **MODEL)
        node.told("first")
        node.told("second")
        node.call("third", **MODEL, **{NODES_OF_FORKS: "ab"}).wait(30)
        yield node


@pytest.fixture(scope="module")
def forks(node: Node) -> list[dict[str, Any]]:
    return [node.told(name) for name in ("first", "second", "third")]


def test_all_are_forks_of_one_process_that_has_loaded_what_they_need(
    node: Node, forks: list[dict[str, Any]]
) -> None:
    [template] = {fork["parent"] for fork in forks}
    assert template in [call.pid for call in node.calls[:2]]
    assert [fork["loaded"] for fork in forks] == [["ray.train", "torch", *MODEL.values()]] * 3
    assert psutil.Process(template).cmdline()[0] == "mics-elastic: template of workers"


def test_a_fork_is_as_ray_would_have_started_it(node: Node, forks: list[dict[str, Any]]) -> None:
    third = forks[2]
    assert third["arguments"][1] == str(node.folder / "third")
    assert (third["folder"], third["path"][0]) == (str(node.folder), str(node.folder))
    assert third["main"] == "__main__"
    threads = "OPENBLAS_NUM_THREADS"  # which the template sets for itself
    assert third["environment"].get(threads) == os.environ.get(threads)


def test_a_fork_has_the_streams_of_its_call_and_ends_as_programs_do(node: Node) -> None:
    call = node.call("ending", **MODEL)
    pid = node.told("ending")["pid"]
    said, errors = call.communicate("", timeout=30)
    assert (said, errors) == (f"said by {node.folder}/ending\n", "")
    eventually((node.folder / "ending.end").exists, "what it does at its end")
    eventually(lambda: not psutil.pid_exists(pid), "the end of the fork")


def test_every_fork_leads_its_own_group_of_processes(forks: list[dict[str, Any]]) -> None:
    # Ray ends the whole group of a worker that ends.
    assert [fork["group"] for fork in forks] == [fork["pid"] for fork in forks]


def test_forks_draw_different_numbers_and_ids(forks: list[dict[str, Any]]) -> None:
    for of_one_kind in zip(*(fork["drawn"] for fork in forks), strict=True):
        assert len(set(of_one_kind)) == 3, of_one_kind


def test_nobody_else_may_call(node: Node) -> None:
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in node.sockets] == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as somebody else")
def test_nothing_is_told_to_somebody_else_who_listens_there(tmp_path: Path) -> None:
    place = str(tmp_path / "raylet.ab")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(place)
        os.seteuid(NOBODY)
        try:
            stranger.listen()
        finally:
            os.seteuid(0)
        assert warm._ask(place, warm._Call([], str(tmp_path), {"SECRET": "1"})) == warm._PLAINLY
        called, _ = stranger.accept()
        with called:
            assert called.recv(1) == b"", "it was told something"


def test_a_call_with_another_environment_has_another_template(
    node: Node, forks: list[dict[str, Any]]
) -> None:
    node.call("other", RAY_JOB_ID="02000000")
    other = node.told("other")
    assert other["environment"]["RAY_JOB_ID"] == "02000000"
    assert other["parent"] != forks[0]["parent"]
    assert len(node.sockets) == 2


def test_a_template_ends_with_its_raylet_and_not_with_its_forks(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.call("one")
        template, fork = node.told("one")["parent"], node.told("one")["pid"]
        node.call("two")
        os.kill(node.told("two")["pid"], signal.SIGKILL)
        node.call("three")
        assert node.told("three")["parent"] == template
        node.raylet.kill()
        node.raylet.wait()
        eventually(lambda: not alive(template), "the end of the template")
        assert psutil.pid_exists(fork)
        assert node.sockets == []


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_calls_outlive_a_template_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        first = node.call("first")
        eventually(lambda: node.sockets, "the template")
        second = node.call("second")
        first.kill()
        assert node.told("second")["parent"] == second.pid
        assert not (tmp_path / "first").exists()


def test_calls_outlive_a_template_that_is_killed_while_its_forks_live(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.call("first")
        first = node.told("first")
        os.kill(first["parent"], signal.SIGKILL)
        second = node.call("second")
        assert node.told("second")["parent"] == second.pid, "another template"
        assert alive(first["pid"])


def test_a_caller_that_says_nothing_holds_nobody_up_and_leaves_nothing_open(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.call("first")
        template = psutil.Process(node.told("first")["parent"])
        [place] = node.sockets
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as broken:
            broken.connect(str(place))
            socket.send_fds(broken, [(100).to_bytes(4)], [0, 1, 2])
            silent.connect(str(place))
            broken.close()
            before = template.num_fds()
            node.call("second")
            assert node.told("second")["parent"] == template.pid
            eventually(lambda: template.num_fds() <= before, "the streams of the broken call")


def a_driver(folder: Path) -> str:
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text("int cuInit(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-o", str(library), str(source)], check=True)
    return f"import ctypes; ctypes.CDLL({str(library)!r})"


A_THREAD = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
THREADS_OF_A_LIBRARY = "import os; os.environ['OPENBLAS_NUM_THREADS'] = '2'; import numpy"
AN_ID = "import ray; ray.WorkerID.from_random()"


@pytest.mark.parametrize(
    ("done", "may_be_forked"),
    [
        ("", True),
        (A_THREAD, False),
        (THREADS_OF_A_LIBRARY, False),
        (a_driver, False),
        (AN_ID, False),
    ],
    ids=["nothing", "a thread", "threads of a library", "a driver", "an id was drawn"],
)
def test_imports_that_do_such_things_forbid_forks(
    tmp_path: Path, done: str | Callable[[Path], str], may_be_forked: bool
) -> None:
    code = done if isinstance(done, str) else done(tmp_path)
    looked = "from mics_core.cluster.warm import _may_be_forked; print(_may_be_forked())"
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}\n{looked}"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"{may_be_forked}\n"


def test_what_is_on_another_node_than_its_group_is_started_plainly(node: Node) -> None:
    call = node.call("elsewhere", **{NODES_OF_FORKS: "cd,ef"})
    told = node.told("elsewhere")
    assert told["pid"] == call.pid
    assert told["loaded"] == []


def test_what_may_not_be_forked_is_started_plainly(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    # Python loads this one at its start.
    (modules / "sitecustomize.py").write_text("import sys; sys.modules['ray.train'] = None")
    with running_node(tmp_path) as node:
        path = os.pathsep.join([str(modules), *filter(None, [os.environ.get("PYTHONPATH")])])
        node.call("first", PYTHONPATH=path)
        node.told("first")
        second = node.call("second", PYTHONPATH=path)
        told = node.told("second")
        assert told["pid"] == second.pid
        assert told["loaded"] == []
        assert told["main"] == "__main__"


@pytest.mark.parametrize(
    ("switch", "brought", "forks"),
    [
        (None, {}, True),
        ("1", {"env_vars": {"A": "b"}}, True),
        ("0", {}, False),
        (None, {"pip": ["emoji"]}, False),
        (None, {"py_executable": "/opt/python"}, False),
    ],
)
def test_a_runner_asks_for_forks_unless_it_is_told_not_to_or_the_job_brings_a_python(
    monkeypatch: pytest.MonkeyPatch, switch: str | None, brought: dict[str, object], forks: bool
) -> None:
    context = SimpleNamespace(runtime_env=brought)
    monkeypatch.setattr(runner.ray, "get_runtime_context", lambda: context)
    monkeypatch.delenv("MICS_WARM_STARTS", raising=False)
    if switch is not None:
        monkeypatch.setenv("MICS_WARM_STARTS", switch)
    environment = runner._environment(("ab", "ab", "cd"), recorded_job(None, 10))
    assert ("py_executable" in environment) is forks
    assert environment["env_vars"].get(NODES_OF_FORKS) == ("ab,cd" if forks else None)
    assert environment["env_vars"]["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


def test_what_a_model_of_transformers_needs_is_loaded_for_the_forks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = SimpleNamespace(runtime_env={})
    monkeypatch.setattr(runner.ray, "get_runtime_context", lambda: context)
    for family in get_args(TransformersModel.model_fields["family"].annotation):
        environment = runner._environment(("ab",), small_job("x.txt", model__family=family))
        assert importlib.util.find_spec(environment["env_vars"][LOADED_FOR_FORKS]) is not None
    own = runner._environment(("ab",), recorded_job(None, 10))
    assert LOADED_FOR_FORKS not in own["env_vars"]
