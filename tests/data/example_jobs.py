"""The type of the `build_job` fixture: it builds a small job over files in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable

from mics_core.spec import JobSpec

BuildJob = Callable[..., JobSpec]
