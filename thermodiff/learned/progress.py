"""A progress bar for trainings in a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

_PATIENCE = 2.0  # seconds before a bar appears
_REFRESH = 0.1


class TrainingBar:
    """Step, smoothed loss and expected end on stderr, if that is a terminal and the training takes over two seconds."""

    def __init__(self, steps: int, show: bool) -> None:
        self._steps = steps
        self._show = show and sys.stderr.isatty()
        self._start = self._drawn = time.monotonic()
        self._smooth: float | None = None
        self._bar: Any = None
        self._task: Any = None

    def update(self, step: int, loss: float) -> None:
        """Report that ``step`` steps are done."""
        if not self._show:
            return
        self._smooth = loss if self._smooth is None else 0.98 * self._smooth + 0.02 * loss
        now = time.monotonic()
        if now - self._drawn < _REFRESH or now - self._start < _PATIENCE:
            return
        self._drawn = now
        bar = self._bar if self._bar is not None else self._open(step)
        bar.update(self._task, completed=step, loss=self._smooth)

    def _open(self, step: int) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.5g}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=self._steps, completed=step, loss=0.0)
        self._bar.start()
        return self._bar

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
