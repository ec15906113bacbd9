"""Processes as forks of a node's template, with a process in place of the raylet; without Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import psutil
import pytest

from mics_core.cluster import runner, warm
from mics_core.cluster.template import (
    JOB,
    LOADED_FOR_FORKS,
    NODE,
    NODES_OF_FORKS,
    PLAINLY,
    Call,
)
from mics_core.spec.job import TransformersModel
from tests.cluster.bare_node import Node, alive, running_node
from tests.cluster.jobs import recorded_job
from tests.cluster.running import eventually
from tests.engine.jobs import small_job

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux can watch a raylet as a file"),
]

NOBODY = 65534
"""An id of a user who is not this one."""

MODEL = {LOADED_FOR_FORKS: "transformers.models.gpt2.modeling_gpt2"}


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
    assert psutil.Process(template).ppid() in [call.pid for call in node.calls[:2]]
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
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in node.sockets] == [0, 0]


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
        assert warm._ask(place, Call([], str(tmp_path), {"SECRET": "1"})) == PLAINLY
        called, _ = stranger.accept()
        with called:
            assert called.recv(1) == b"", "it was told something"


def test_another_job_has_another_template_of_the_same_node(
    node: Node, forks: list[dict[str, Any]]
) -> None:
    before = len(node.sockets)
    node.call("other-job", **MODEL, RAY_JOB_ID="02000000")
    other = node.told("other-job")
    assert other["environment"]["RAY_JOB_ID"] == "02000000"
    assert other["loaded"] == forks[0]["loaded"]
    ours, theirs = (psutil.Process(told["parent"]) for told in (forks[0], other))
    assert ours != theirs
    assert ours.ppid() == theirs.ppid()
    assert len(node.sockets) == before + 1


def test_ray_is_loaded_for_one_job_alone(forks: list[dict[str, Any]]) -> None:
    """It reads the id of the job once in the life of a process."""
    of_job = psutil.Process(forks[0]["parent"])
    of_node = of_job.parent()
    assert of_node is not None
    assert [has_loaded(process, "torch") for process in (of_node, of_job)] == [True, True]
    assert [has_loaded(process, "_raylet") for process in (of_node, of_job)] == [False, True]


def has_loaded(process: psutil.Process, library: str) -> bool:
    return any(library in part.path for part in process.memory_maps())


def test_a_call_with_another_environment_has_another_template(
    node: Node, forks: list[dict[str, Any]]
) -> None:
    before = len(node.sockets)
    call = node.call("other", **MODEL, OMP_NUM_THREADS="3")
    other = node.told("other")
    assert other["environment"]["OMP_NUM_THREADS"] == "3"
    assert psutil.Process(other["parent"]).ppid() == call.pid
    assert len(node.sockets) == before + 2


def test_templates_end_with_their_raylet_and_not_with_their_forks(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.call("one")
        template, fork = node.told("one")["parent"], node.told("one")["pid"]
        of_node = psutil.Process(template).ppid()
        node.call("two")
        os.kill(node.told("two")["pid"], signal.SIGKILL)
        node.call("three")
        assert node.told("three")["parent"] == template
        node.raylet.kill()
        node.raylet.wait()
        eventually(lambda: not alive(template), "the end of the job's template")
        eventually(lambda: not alive(of_node), "the end of the node's template")
        assert psutil.pid_exists(fork)
        assert node.sockets == []


def test_calls_outlive_a_node_s_template_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        first = node.call("first")
        eventually(lambda: node.sockets, "the node's template")
        second = node.call("second")
        first.kill()
        assert psutil.Process(node.told("second")["parent"]).ppid() == second.pid
        assert not (tmp_path / "first").exists()


def test_calls_outlive_a_job_s_template_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        first = node.call("first")
        eventually(lambda: len(node.sockets) == 2, "the job's template")
        [of_job] = psutil.Process(first.pid).children()
        second = node.call("second")
        of_job.kill()
        told = node.told("second")
        assert psutil.Process(told["parent"]).ppid() == first.pid, "the node's goes on"
        assert told["pid"] != second.pid
        assert not (tmp_path / "first").exists()


def test_calls_outlive_templates_that_are_killed_while_their_forks_live(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        of_node = node.call("first").pid
        first = node.told("first")
        os.kill(first["parent"], signal.SIGKILL)

        node.call("second")
        second = node.told("second")
        assert second["parent"] != first["parent"]
        assert psutil.Process(second["parent"]).ppid() == of_node, "the node's goes on"
        os.kill(of_node, signal.SIGKILL)

        node.call("third")
        third = node.told("third")
        assert third["parent"] == second["parent"], "the job's goes on"
        os.kill(third["parent"], signal.SIGKILL)

        fourth = node.call("fourth")
        assert psutil.Process(node.told("fourth")["parent"]).ppid() == fourth.pid, "both are gone"
        assert all(alive(told["pid"]) for told in (first, second, third))


def test_callers_that_say_nothing_hold_nobody_up_and_leave_nothing_open(tmp_path: Path) -> None:
    """At the node's template, which has a fourth file with a call, and at the job's."""
    with running_node(tmp_path) as node, ExitStack() as callers:
        of_node = psutil.Process(node.call("first", RAY_JOB_ID="01000000").pid)
        of_job = psutil.Process(node.told("first")["parent"])
        # The node's was there first.
        places = sorted(node.sockets, key=lambda path: path.stat().st_ctime)
        before = []
        for template, place, files in zip(
            (of_node, of_job), places, ([0, 1, 2, 2], [0, 1, 2]), strict=True
        ):
            silent, broken = (
                callers.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)
            )
            broken.connect(str(place))
            socket.send_fds(broken, [(100).to_bytes(4)], files)
            silent.connect(str(place))
            broken.close()
            before.append(template.num_fds())
        node.call("second", RAY_JOB_ID="01000000")
        node.call("third", RAY_JOB_ID="02000000")
        assert node.told("second")["parent"] == of_job.pid
        assert psutil.Process(node.told("third")["parent"]).parent() == of_node
        for template, most in zip((of_node, of_job), before, strict=True):
            eventually(
                lambda template=template, most=most: template.num_fds() <= most,
                "the files of the broken call",
            )


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
    looked = "from mics_core.cluster.template import _may_be_forked; print(_may_be_forked())"
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}\n{looked}"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"{may_be_forked}\n"


def test_a_job_that_comes_after_an_installation_does_not_get_what_was_loaded_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    call = Call(["worker.py", "--raylet-name=/run/raylet"], str(tmp_path), {})
    of_job, of_node = call.place_of(JOB), call.place_of(NODE)
    assert (of_job, of_node) == (call.place_of(JOB), call.place_of(NODE))
    os.utime(tmp_path, ns=(0, 0))
    assert call.place_of(JOB) == of_job, "the processes of a job load the same"
    assert call.place_of(NODE) != of_node


def test_what_has_loaded_ray_serves_no_other_job(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        first = node.call("first", **{LOADED_FOR_FORKS: "ray"})
        second = node.call("second", **{LOADED_FOR_FORKS: "ray"})
        for call, name in ((first, "first"), (second, "second")):
            told = node.told(name)
            assert told["parent"] in (call.pid, os.getpid()), "started plainly"
            assert told["loaded"] == []


def test_where_a_socket_cannot_be_processes_are_started_plainly(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    with running_node(folder) as node:
        call = node.call("one")
        told = node.told("one")
        assert (told["pid"], told["loaded"]) == (call.pid, [])


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
