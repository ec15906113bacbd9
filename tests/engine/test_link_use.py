"""Copies leave the links to the second hop, but never for good."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mics_core.engine.link_use import LinkUse

SOON_S = 10.0


def test_a_copy_does_not_wait_while_the_members_compute() -> None:
    use = LinkUse()
    use.wait_until_free()
    use.begin()
    use.end()
    use.wait_until_free()


def test_a_copy_waits_for_the_end_of_a_second_hop() -> None:
    use = LinkUse()
    use._usual_s = 1000.0
    use.begin()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(use.wait_until_free)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        use.end()
        waiting.result(SOON_S)


def test_a_second_hop_that_takes_longer_than_usual_does_not_hold_the_copy() -> None:
    """It may be the member that waits for the copy which holds the second hop."""
    use = LinkUse()
    use._usual_s = 0.05
    begin = time.monotonic()
    use.begin()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(use.wait_until_free).result(SOON_S)
    assert time.monotonic() - begin >= 0.05
