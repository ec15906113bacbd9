"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes is no property of the code: a machine may be busy.
settings.register_profile("mics", deadline=None)
settings.load_profile("mics")
