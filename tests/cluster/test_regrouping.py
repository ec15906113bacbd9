"""What a change of membership took, phase by phase."""

from __future__ import annotations

import pytest

from mics_core.cluster.regrouping import Regrouped, Regroupings
from mics_core.spec.status import RegroupPhases


def phases(
    agree_s: float,
    connect_s: float,
    detect_s: float | None = None,
    copy_s: float | None = None,
    redo_s: float | None = None,
) -> RegroupPhases:
    return RegroupPhases(
        detect_s=detect_s, agree_s=agree_s, connect_s=connect_s, copy_s=copy_s, redo_s=redo_s
    )


@pytest.fixture
def trained() -> Regroupings:
    """Groups 0 and 1 train under generation 1, since a while."""
    changes = Regroupings()
    assert changes.announced(1, (0, 1), 10.0, after_loss=False) == []
    assert changes.entered(1, 0, 0, 3.0, 14.0) == []
    assert changes.entered(1, 1, 0, 0.5, 14.25) == []
    # Group 1 came last, 3.75 s after the announcement, and waited for nobody.
    assert changes.committed(1, 20.0) == [Regrouped(1, 0, phases(agree_s=3.75, connect_s=0.5))]
    assert changes.committed(1, 21.0) == []
    return changes


def test_a_loss_is_detected_agreed_on_and_the_step_goes_on(trained: Regroupings) -> None:
    assert trained.announced(2, (0,), 21.5, after_loss=True) == []
    assert trained.entered(2, 0, 8, 0.25, 22.0) == []
    assert trained.committed(2, 23.0, in_hand=0.75) == [
        Regrouped(2, 8, phases(agree_s=0.25, connect_s=0.25, detect_s=0.5, redo_s=1.0), kept=0.75)
    ]


def test_a_newcomer_copies_while_the_others_train(trained: Regroupings) -> None:
    trained.announced(2, (0, 1, 2), 22.0, after_loss=False)
    for group in (0, 1):
        assert trained.entered(2, group, 8, 0.5, 23.0) == []
    for now in (24.0, 25.0, 26.0):
        assert trained.committed(2, now) == []
    assert trained.entered(2, 2, 11, 0.75, 27.5) == [
        Regrouped(2, 8, phases(agree_s=0.5, connect_s=0.5, copy_s=4.5))
    ]


def test_a_change_that_another_overtakes_is_told_without_its_newcomer(
    trained: Regroupings,
) -> None:
    trained.announced(2, (0, 1, 2), 22.0, after_loss=False)
    trained.entered(2, 0, 8, 0.5, 23.0)
    trained.entered(2, 1, 8, 0.5, 23.0)
    trained.committed(2, 24.0)
    assert trained.announced(3, (0, 1), 25.0, after_loss=True) == [
        Regrouped(2, 8, phases(agree_s=0.5, connect_s=0.5))
    ]


def test_a_generation_that_nobody_trained_under_is_told_with_the_next(
    trained: Regroupings,
) -> None:
    for number in (2, 3):  # newcomers that come one after the other
        assert trained.announced(number, (0, 1, number), 20.0 + number, after_loss=False) == []
    assert trained.entered(2, 0, 8, 0.1, 23.0) == []  # late
    assert trained.entered(3, 9, 8, 0.1, 23.0) == []  # unknown
    assert trained.committed(2, 23.0) == []
    for group in (0, 1, 3):
        assert trained.entered(3, group, 8, 0.5, 24.0) == []
    # A newcomer that is overtaken costs the step nothing: this one counts from its own begin.
    told = Regrouped(3, 8, phases(agree_s=0.5, connect_s=0.5), overtook=(2,))
    assert trained.committed(3, 25.0) == [told]


@pytest.mark.parametrize("after_loss", [False, True])
def test_what_a_loss_took_is_told_with_the_change_that_overtakes_it(
    trained: Regroupings, after_loss: bool
) -> None:
    trained.announced(2, (0,), 21.5, after_loss=True)
    trained.entered(2, 0, 8, 0.25, 22.0)
    assert trained.announced(3, (0, 3), 22.5, after_loss=after_loss) == []
    assert trained.announced(4, (0, 3), 23.0, after_loss=True) == []
    trained.entered(4, 0, 8, 0.25, 24.0)
    trained.entered(4, 3, 8, 0.5, 24.5)
    # From the first announcement on; the step that the loss broke went on under generation 4.
    took = phases(agree_s=2.75, connect_s=0.25, detect_s=0.5, redo_s=1.0)
    told = Regrouped(4, 8, took, kept=0.5, overtook=(2, 3))
    assert trained.committed(4, 25.5, in_hand=0.5) == [told]


def test_a_newcomer_that_a_run_does_not_wait_for_is_left_out_of_what_its_join_took(
    trained: Regroupings,
) -> None:
    assert trained.ended() == [], "what was told is not told again"
    trained.announced(2, (0, 1, 2), 22.0, after_loss=False)
    for group in (0, 1):
        trained.entered(2, group, 8, 0.5, 23.0)
    assert trained.ended() == [], "nobody trained under it yet"
    trained.committed(2, 24.0)
    assert trained.ended() == [Regrouped(2, 8, phases(agree_s=0.5, connect_s=0.5))]
    assert trained.ended() == []


def test_the_end_of_a_run_is_no_change_to_measure(trained: Regroupings) -> None:
    assert trained.announced(2, (), 22.0, after_loss=False) == []
    assert trained.committed(1, 22.5) == []
