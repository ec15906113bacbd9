"""A cluster on this machine whose nodes Ray's autoscaler adds and removes, to try and to test.

    python -m mics_core.cluster.autoscaling examples/autoscaling/ray_cluster.local.yaml

The file is one for Ray's cluster launcher, on Ray's own provider for tests: every node is a real
raylet with processes of its own, started because something waits for room and ended when it idles.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.util
import yaml

from mics_core.cluster.local import LocalCluster, free_port

__all__ = ["AutoscalingCluster"]

_HEAD_ID = "f" * 51 + "00000"
"""The id that the provider takes for the head's."""

_ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",  # version 1 takes the provider's later nodes for lost
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
}


class AutoscalingCluster(LocalCluster):
    """A head, and nodes that come and go as they are needed.

    Args:
        config: A file for Ray's cluster launcher on `FakeMultiNodeProvider`.
    """

    def __init__(self, config: Path):
        super().__init__(num_nodes=0, workers_per_node=0)
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="mics-autoscaling-")

    def start(self) -> None:
        """Start the head and its autoscaler."""
        # They reach the head's processes by the environment alone, and no others.
        with _environment(_ENVIRONMENT):
            super().start()

    def stop(self) -> None:
        """End every process of the cluster, the autoscaler's nodes too."""
        super().stop()
        self._folder.cleanup()

    def _head_arguments(self) -> dict[str, Any]:
        port = free_port()
        config = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        config["provider"] |= {
            "head_node_id": _HEAD_ID,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
        }
        filled = Path(self._folder.name) / "ray_cluster.yaml"
        filled.write_text(yaml.safe_dump(config), encoding="utf-8")
        more = {"gcs_server_port": port, "autoscaling_config": str(filled)}
        return super()._head_arguments() | more


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main(arguments: list[str]) -> int:
    """Start the cluster of a file and stay until a signal; return the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        sys.stderr.write("usage: python -m mics_core.cluster.autoscaling FILE\n")
        return 2
    with AutoscalingCluster(Path(arguments[0])) as cluster:
        # Both, for a script that starts it in the background has the former ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        sys.stdout.write(
            f"Ray at {cluster.address}, dashboard at {cluster.dashboard_url}. Ctrl-C ends it.\n"
        )
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
