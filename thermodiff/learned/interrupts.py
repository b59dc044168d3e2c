"""Ctrl-C between the steps of a training, so that its state is whole when it is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept(active: bool = True) -> Iterator[Callable[[], bool]]:
    """Keep a first Ctrl-C until it is asked for, by the function that is given, or at the end; a second one acts at once.

    Not where it is not ``active``, in other threads than the main one, and where Ctrl-C does something of the caller's.
    """
    main = threading.current_thread() is threading.main_thread()
    if not active or not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if heard:
            signal.default_int_handler(number, frame)
        heard.append(number)

    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        if signal.getsignal(signal.SIGINT) is hear:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if heard:
        raise KeyboardInterrupt
