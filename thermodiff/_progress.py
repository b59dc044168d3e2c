"""How far a run is: for a function of the caller's, or as a bar in a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Report = Callable[[int, int], Any]
Progress = Report | Literal[False] | None

PATIENCE = 2.0
"""Seconds before a bar appears."""
_ONLY_ONE = threading.Lock()
"""Runs inside runs and beside runs: the first draws."""


@contextmanager
def reporting(progress: Progress, title: str) -> Iterator[Report]:
    """What a run calls as ``report(done, total)``.

    Parameters
    ----------
    progress : callable, False or None
        A function ``(done, total)``, nothing, or (None) a bar on standard error if that is a terminal and the run takes
        longer than two seconds.
    title : str
        Stands before the bar.

    Raises
    ------
    TypeError
        If ``progress`` is something else.
    """
    if callable(progress):
        yield progress
    elif progress is not False and progress is not None:
        raise TypeError(f"progress must be a function (done, total), False or None, got {progress!r}.")
    elif progress is False or sys.stderr is None or not sys.stderr.isatty() or not _ONLY_ONE.acquire(blocking=False):
        yield lambda done, total: None
    else:
        bar = _Bar(title)
        try:
            yield bar.report
        finally:
            bar.close()
            _ONLY_ONE.release()


class _Bar:
    """A bar that a timer opens, because the first report may be long in coming."""

    def __init__(self, title: str) -> None:
        self._title, self._at = title, (0, 0)
        self._bar: Any = None
        self._task: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._open)
        self._timer.daemon = True
        self._timer.start()

    def report(self, done: int, total: int) -> None:
        with self._lock:
            self._at = done, total
            if self._bar is not None:
                self._bar.update(self._task, completed=done, total=total)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with self._lock:
            done, total = self._at
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            # Without a total it moves to and fro.
            self._task = self._bar.add_task(self._title, completed=done, total=total or None)
            self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        self._timer.cancel()
        self._timer.join()
        if self._bar is not None:
            self._bar.stop()
