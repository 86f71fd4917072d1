"""Signals: at once outside training, a clean stop in it, at once when asked twice, and none is forgotten."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref

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


class Referent:
    """Something that a weak reference can point at."""


def drop_a_signal() -> None:
    """Lets a signal arrive in a weak reference's callback, where the interpreter drops what it raises."""
    referent = Referent()
    reference = weakref.ref(referent, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del referent
    assert reference() is None


def test_signal_that_the_interpreter_drops_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption()
    hook = sys.unraisablehook
    with interruption.handled():
        drop_a_signal()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5.0)
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""


def test_training_does_not_begin_after_a_signal() -> None:
    interruption = Interruption()
    with interruption.handled():
        drop_a_signal()
        with pytest.raises(KeyboardInterrupt), interruption.deferred():
            pytest.fail("training must not begin")


def test_after_training_signals_interrupt_again() -> None:
    interruption = Interruption()
    with interruption.handled():
        with interruption.deferred():
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
