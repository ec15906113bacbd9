"""The demonstration with stand-ins for all that it starts, as a program that can be signalled."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from examples.demo import __main__ as demo


class Everything:
    """Stands in for the client, for its answers and for the scenario."""

    def __init__(self, *_: object) -> None:
        self.steps = ("a step",)

    def __getattr__(self, _: str) -> Any:
        return lambda *_: self


@contextmanager
def cluster(**_: int) -> Iterator[Everything]:
    """Take SIGTERM as Ray does where it starts a node."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield Everything()
    finally:
        print("The cluster is down.", flush=True)


def main() -> int:
    """Run it until a signal comes."""
    stand_ins: dict[str, Any] = {
        "LocalCluster": cluster,
        "MicsClient": Everything,
        "Scenario": Everything,
        "_start_service": lambda *_: "http://nowhere",
        "conclude": lambda *_: 0,
        "demo_job": lambda *_: None,
    }
    for name, stand_in in stand_ins.items():
        setattr(demo, name, stand_in)
    return demo.main()


if __name__ == "__main__":
    sys.exit(main())
