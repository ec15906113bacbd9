"""What a newcomer keeps while the states arrive, and when it applies it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from mics_core.engine.catch_up import CatchUp, most_kept_bytes
from mics_core.engine.copying import Incoming
from mics_core.engine.holding import Holding
from mics_core.engine.host_memory import free_host_bytes
from mics_core.errors import ReplicationError

pytestmark = pytest.mark.pure


GRADIENT_BYTES = 12
MOST_BYTES = 4 * GRADIENT_BYTES
SOME_S = 0.5


class Arriving:
    """A copy that is complete when the test says so, or whose source is lost."""

    def __init__(self, error: str = ""):
        self.is_in_place = False
        self.waits: list[float] = []
        self._is_complete = False
        self._error = error

    @property
    def is_complete(self) -> bool:
        if self._error:
            raise ReplicationError(self._error)
        return self._is_complete

    @is_complete.setter
    def is_complete(self, value: bool) -> None:
        self._is_complete = value

    def is_over_within(self, limit_s: float) -> bool:
        self.waits.append(limit_s)
        return self._is_complete or bool(self._error)

    def put_in_place(self) -> None:
        assert self.is_complete
        assert not self.is_in_place
        self.is_in_place = True


def build(incoming: Arriving, first_step: int, held: Holding) -> CatchUp:
    return CatchUp(cast("Incoming", incoming), first_step, held, MOST_BYTES)


def catch_up_with(incoming: Arriving, held: Holding | None = None) -> CatchUp:
    """A way from step 0 on, of a worker whose group has received."""
    catch_up = build(incoming, 0, held or Holding(0, has_state=False))
    catch_up.all_have_received()
    return catch_up


def keep(catch_up: CatchUp, *steps: int) -> None:
    for step in steps:
        catch_up.keep(step, 0.5, torch.full((3,), float(step)))


def test_what_is_kept_is_applied_in_order_a_few_at_a_time() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    keep(catch_up, *range(6))
    assert catch_up.take() == []
    incoming.is_complete = True
    taken = catch_up.take()
    assert not catch_up.has_arrived
    keep(catch_up, 6)  # the step during which they were applied
    taken += catch_up.take()
    assert [(kept.step, kept.scale) for kept in taken] == [(step, 0.5) for step in range(7)]
    assert all(torch.equal(kept.values, torch.full((3,), float(kept.step))) for kept in taken)
    assert catch_up.has_arrived


@pytest.mark.parametrize("older", [Holding(4, has_state=True), Holding(0, has_state=False)])
def test_older_states_stay_until_all_workers_of_the_group_have_received(older: Holding) -> None:
    incoming, held = Arriving(), replace(older)
    catch_up = build(incoming, 5, held)
    keep(catch_up, 5)
    assert not catch_up.has_received
    incoming.is_complete = True
    assert catch_up.has_received
    keep(catch_up, 6)
    assert (catch_up.take(), held, incoming.is_in_place) == ([], older, False)
    catch_up.all_have_received()
    assert held == older
    assert [kept.step for kept in catch_up.take()] == [5, 6]
    assert incoming.is_in_place
    assert held == Holding(7, has_state=True)


def test_what_is_held_follows_what_is_applied() -> None:
    incoming, held = Arriving(), Holding(0, has_state=False)
    catch_up = catch_up_with(incoming, held)
    keep(catch_up, *range(6))
    incoming.is_complete = True
    catch_up.take()
    assert held == Holding(4, has_state=True)
    catch_up.take()
    assert held == Holding(6, has_state=True)


def test_what_is_kept_does_not_follow_the_buffer_of_the_next_step() -> None:
    incoming, gradient = Arriving(), torch.ones(3)
    catch_up = catch_up_with(incoming)
    catch_up.keep(0, 1.0, gradient)
    gradient.zero_()
    incoming.is_complete = True
    assert torch.equal(catch_up.take()[0].values, torch.ones(3))


def test_beyond_some_bytes_of_gradients_it_has_to_wait_for_the_copy() -> None:
    incoming = Arriving()
    catch_up = catch_up_with(incoming)
    keep(catch_up, *range(2))
    assert not catch_up.will_be_full(GRADIENT_BYTES)
    keep(catch_up, 2)
    assert catch_up.will_be_full(GRADIENT_BYTES)
    assert not catch_up.must_wait(SOME_S)
    assert incoming.waits == []
    keep(catch_up, 3)
    assert catch_up.must_wait(SOME_S)
    assert incoming.waits == [SOME_S]
    incoming.is_complete = True
    assert not catch_up.must_wait(SOME_S)
    assert not catch_up.will_be_full(GRADIENT_BYTES)


def test_nobody_waits_for_a_copy_whose_source_is_lost() -> None:
    catch_up = catch_up_with(Arriving(error="a source went away"))
    keep(catch_up, *range(4))
    assert not catch_up.must_wait(SOME_S)
    assert not catch_up.has_received
    with pytest.raises(ReplicationError, match="a source went away"):
        catch_up.take()


def test_what_may_be_kept_follows_the_free_memory_and_is_never_less_than_a_few_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mics_core.engine.catch_up.free_host_bytes", lambda: 800)
    assert most_kept_bytes(1, num_workers=1) == 200
    assert most_kept_bytes(1, num_workers=4) == 50
    assert most_kept_bytes(30, num_workers=4) == 120


def test_free_memory_is_the_hosts_or_what_a_container_leaves_of_it(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_host_bytes(meminfo, cgroup) == 0
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       4 kB\n")
    assert free_host_bytes(meminfo, cgroup) == 4096
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert free_host_bytes(meminfo, cgroup) == 4096
    (cgroup / "memory.max").write_text("3000\n")
    (cgroup / "memory.current").write_text("2500\n")
    assert free_host_bytes(meminfo, cgroup) == 500
    (cgroup / "memory.stat").write_text("anon 2000\ninactive_file 400\n")
    assert free_host_bytes(meminfo, cgroup) == 900
    (cgroup / "memory.current").write_text("9000\n")
    assert free_host_bytes(meminfo, cgroup) == 0
