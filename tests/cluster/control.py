"""Steers the user's code of a job from outside, through files, so that events fall on known steps.

The test holds one `Control`, every worker another over the same folder. Nothing in it is part of
the system under test: it stands in for slow data and faulty models.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

HELD_AT_MOST_S = 300.0
POLL_S = 0.01


class Control:
    """How far a job may train, and which of its workers' models fail.

    Args:
        folder: Shared by the test and all workers.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    # The test's side.

    def allow(self, step: int) -> None:
        """Let the workers read the samples of the steps up to `step`."""
        fresh = self.folder / "allowed.new"
        fresh.write_text(str(step))
        fresh.replace(self.folder / "allowed")

    def fail_models(self, *pids: int) -> None:
        """Have the models of some processes fail in their next forward; without `pids`, of all."""
        for name in pids or ("all",):
            (self.folder / f"fail-{name}").touch()

    # The workers' side.

    @property
    def allowed(self) -> int:
        """The last step that may be trained; -1 for none yet."""
        try:
            return int((self.folder / "allowed").read_text())
        except FileNotFoundError:
            return -1

    def wait_for(self, step: int) -> None:
        """Return once `step` may be trained.

        Raises:
            TimeoutError: The test never allowed it.
        """
        deadline = time.monotonic() + HELD_AT_MOST_S
        while self.allowed < step:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"step {step} was not allowed within {HELD_AT_MOST_S:g} s: {self.folder}"
                    f"/allowed says {self.allowed}"
                )
            time.sleep(POLL_S)

    def check_model(self) -> None:
        """Fail if this process was told to.

        Raises:
            RuntimeError: It was.
        """
        if any((self.folder / f"fail-{name}").exists() for name in (os.getpid(), "all")):
            raise RuntimeError("the model was told to fail")
