"""The service as a process of its own: it stops when told, and never loads torch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from running import DEADLINE_S

PROGRAM = """
import sys
from fakes import FakeCluster
from service.app import build_app
from service.serve import serve_app
from service.settings import Settings

settings = Settings.from_environment(port=0, ping_interval_s=0.1)
cluster = FakeCluster()
cluster.start_supervisor("by-hand").train(1)
try:
    serve_app(build_app(settings, cluster), settings)
finally:
    print("connected:", cluster.is_connected, "torch:", "torch" in sys.modules)
"""

COMMAND_LINE = """
import ctypes

# Runs when the libraries that are loaded after this have destroyed their objects.
c = ctypes.CDLL(None)
c.__cxa_atexit.argtypes = [ctypes.c_void_p] * 3
c.__cxa_atexit(ctypes.cast(c.sleep, ctypes.c_void_p), 10, None)

from service.cli.main import main
main()
"""


@contextmanager
def running_process(
    folder: Path, program: str = PROGRAM, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = os.environ | {
        "MICS_DATA_DIRECTORY": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    too_late = threading.Timer(DEADLINE_S, process.kill)
    too_late.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("the service never said where it runs")
    finally:
        too_late.cancel()
        process.kill()
        process.communicate()


def test_sigterm_ends_the_service_though_a_stream_is_open(tmp_path: Path) -> None:
    with running_process(tmp_path) as (process, url), httpx.Client(base_url=url) as client:
        while client.get("/api/v1/jobs/by-hand").status_code == 404:
            pass  # until the service has found it; the process has a deadline
        with client.stream("GET", "/api/v1/jobs/by-hand/events") as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            # The stream is cut, not closed: nobody shall take it for a job's whole story.
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert "Application shutdown complete" in errors
    assert "Traceback" not in errors
    assert output == "connected: False torch: False\n"


def test_sigterm_ends_the_service_while_ray_leaves_it_without_an_answer(tmp_path: Path) -> None:
    # Ray takes this machine's own address for 127.0.0.1.
    with socket.create_server(("", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = ("serve", "--port", "0", "--ray-address", address)
        with running_process(tmp_path, COMMAND_LINE, *command) as (process, _):
            silent.accept()  # who knocks
            silent.accept()  # Ray itself, whose thread is left in there
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors


def test_the_service_loads_nothing_large_that_it_does_not_use(tmp_path: Path) -> None:
    program = (
        "import sys, service.serve, mics_core.cluster.gateway;"
        "from pathlib import Path; from service.app import build_app;"
        "from service.database import Database; service.serve._do_without_arrow();"
        f"Database('sqlite:///{tmp_path / 'jobs.sqlite3'}').close();"
        "large = {'torch', 'transformers', 'pyarrow', 'numpy', 'alembic'};"
        "sys.exit(','.join(m for m in sorted(large) if sys.modules.get(m)) or 0)"
    )

    def loaded() -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        return done.stderr.strip()

    # A new database gets its tables by Alembic; from then on nothing of it is needed.
    assert loaded() == "alembic"
    assert loaded() == ""
