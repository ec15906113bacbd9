"""What must not be left behind is seen: also a port that a process has handed on."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.harness.followed import eventually
from benchmarks.harness.sockets import listeners, listeners_of

HANDS_ON = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
if os.fork():
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
else:
    os.close(1)
    os.read(int(sys.argv[1]), 1)
"""


def test_a_port_is_open_until_the_last_process_that_inherited_it_has_closed_it() -> None:
    until, end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", HANDS_ON, str(until)],
        pass_fds=[until],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        seen = listeners_of([process.pid])
        process.communicate()
    assert list(seen.values()) == [f"port {port} of process {process.pid}"]
    assert seen.keys() <= listeners().keys()
    os.close(end)
    eventually(lambda: not seen.keys() & listeners().keys(), "the end of the port", 10)
    os.close(until)
