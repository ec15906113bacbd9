"""A driver that is asked to end hears of it, whatever it does at that moment."""

from __future__ import annotations

import io
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from mics_core.cluster import driver


class Stream(io.StringIO):
    """Somebody asks the process to end while it writes."""

    def write(self, text: str) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


@pytest.fixture
def handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, driver._raise_terminated)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handled")
def test_it_is_heard_in_the_middle_of_a_line_of_the_log() -> None:
    logger = logging.Logger("of the test")
    logger.addHandler(logging.StreamHandler(Stream()))
    with pytest.raises(driver._Terminated):
        logger.info("step 7")
