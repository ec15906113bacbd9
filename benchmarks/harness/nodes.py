"""Emulated nodes: network namespaces joined by shaped links, each with its own loopback.

A bridge in a namespace of its own is the switch, and a veth pair joins each node to it. Nothing
appears in the machine's own namespace, so deleting the namespaces leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["LOCAL_NODE", "EmulatedNetwork", "Node", "reason_to_skip"]

_PREFIX = "mics-bench"
_LINK = "link0"
_BURST = "16kb"
"""HTB with a burst this small is exact, and delays small messages as a real link does."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place where workers run.

    Args:
        name: Name of the node.
        address: Address under which other nodes reach it.
        interface: Network interface of that address.
        command_prefix: What to put before a command so that it runs on the node.
        has_own_network: Whether its ports are its own, so that any may be taken.
    """

    name: str
    address: str
    interface: str
    command_prefix: tuple[str, ...] = ()
    has_own_network: bool = False


LOCAL_NODE = Node("local", "127.0.0.1", "lo")
"""This machine as it is."""


def reason_to_skip() -> str | None:
    """Return why nodes cannot be emulated here, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root."
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} is missing (package iproute2)."
    try:
        with EmulatedNetwork(1) as network:
            network.shape(1000)
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {(error.stderr or '').strip() or 'failed'}"
    return None


class EmulatedNetwork:
    """Nodes n0, n1, … on one switch; a context manager that takes them down again.

    Args:
        num_nodes: Number of nodes, at most 200.
    """

    def __init__(self, num_nodes: int):
        stem = f"{_PREFIX}-{os.getpid()}"
        self._switch = f"{stem}-switch"
        self._namespaces = [f"{stem}-n{index}" for index in range(num_nodes)]
        self.nodes = [
            Node(
                name=f"n{index}",
                address=f"10.77.0.{index + 1}",
                interface=_LINK,
                command_prefix=("ip", "netns", "exec", namespace),
                has_own_network=True,
            )
            for index, namespace in enumerate(self._namespaces)
        ]

    def __enter__(self) -> EmulatedNetwork:
        _remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def shape(self, link_mbit: float | None) -> None:
        """Set the rate of every link in both directions, in Mbit/s; None for no limit."""
        for index, namespace in enumerate(self._namespaces):
            _shape(namespace, _LINK, link_mbit)
            _shape(self._switch, f"port{index}", link_mbit)

    def connect(self, index: int, *, connected: bool) -> None:
        """Pull a node's plug, or put it back in; connections stay open and fall silent."""
        state = "up" if connected else "down"
        _run("ip", "-n", self._switch, "link", "set", f"port{index}", state)

    def _build(self) -> None:
        _run("ip", "netns", "add", self._switch)
        _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "switch", "up")
        for index, (namespace, node) in enumerate(zip(self._namespaces, self.nodes, strict=True)):
            port = f"port{index}"
            peer = ("peer", "name", _LINK, "netns", namespace)
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", self._switch, "link", "add", port, "type", "veth", *peer)
            _run("ip", "-n", self._switch, "link", "set", port, "master", "switch", "up")
            _run("ip", "-n", namespace, "address", "add", f"{node.address}/24", "dev", _LINK)
            _run("ip", "-n", namespace, "link", "set", _LINK, "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for namespace in (*self._namespaces, self._switch):
            with suppress(subprocess.CalledProcessError):  # it was never made
                _run("ip", "netns", "delete", namespace)


def _shape(namespace: str, device: str, link_mbit: float | None) -> None:
    with suppress(subprocess.CalledProcessError):  # there is none before the first time
        _run("tc", "-n", namespace, "qdisc", "delete", "dev", device, "root")
    if link_mbit is None:
        return
    rate = f"{link_mbit:g}mbit"
    limits = ("rate", rate, "ceil", rate, "burst", _BURST, "cburst", _BURST)
    qdisc = ("dev", device, "root", "handle", "1:", "htb", "default", "1")
    _run("tc", "-n", namespace, "qdisc", "add", *qdisc)
    place = ("dev", device, "parent", "1:", "classid", "1:1")
    _run("tc", "-n", namespace, "class", "add", *place, "htb", *limits)


def _remove_leftovers() -> None:
    """Delete the namespaces of benchmarks that were killed before they could."""
    folder = Path("/run/netns")
    for path in sorted(folder.glob(f"{_PREFIX}-*")) if folder.is_dir() else []:
        owner = path.name.removeprefix(f"{_PREFIX}-").split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _run("ip", "netns", "delete", path.name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
