"""Ctrl-C is kept until it is asked for."""

import signal
import threading

import pytest

from thermodiff.learned.interrupts import kept


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_kept_and_the_second_acts() -> None:
    with pytest.raises(KeyboardInterrupt), kept() as heard:  # noqa: PT012
        assert not heard()
        interrupt()
        assert heard()
        interrupt()
        raise AssertionError("the second was not heard")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_it_is_given_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="mine"), kept():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_it_is_not_wanted() -> None:
    with kept(False) as heard, pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not heard()


def test_a_handler_of_the_callers_stays() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with kept() as heard:
            interrupt()
            assert calls == [signal.SIGINT]
            assert not heard()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hear_nothing() -> None:
    found: list[bool] = []

    def work() -> None:
        with kept() as heard:
            found.append(heard())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_one_that_nobody_asks_for_acts_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), kept():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_is_set_meanwhile_stays() -> None:
    try:
        with kept():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
