"""Signals: at once outside training, a clean stop in it, at once when asked twice, and none is forgotten."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.interruption import Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_training_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interruption().handled():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_in_training_the_first_signal_asks_and_the_second_interrupts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    interruption = Interruption()
    with interruption.handled(), interruption.deferred() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert "gangs checkpoint and leave" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_interruption_that_was_dropped_on_the_way_is_seen_at_the_next_check() -> None:
    interruption = Interruption()

    def somewhere_that_drops_exceptions() -> None:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    with interruption.handled():
        somewhere_that_drops_exceptions()
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        with pytest.raises(KeyboardInterrupt), interruption.deferred():
            pytest.fail("training must not begin")


def test_after_training_signals_interrupt_again() -> None:
    interruption = Interruption()
    with interruption.handled():
        with interruption.deferred():
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
