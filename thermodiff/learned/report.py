"""What a training tells while it runs: losses to a bar, to a function, or to a file of JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch

from thermodiff._check import DivergenceError, write_atomically
from thermodiff.learned.parallel import Processes
from thermodiff.learned.progress import TrainingBar

_EVERY = 20  # losses stay on a GPU for so many steps: reading one waits for the device
LINE = 50
"""Steps in one line of a file of metrics."""

Metrics = Callable[[int, float], None] | str | PathLike[str]


class Report:
    """Collects the losses of the steps, looks whether they are finite, and passes them on.

    Parameters
    ----------
    steps, done : int
        Length of the training, and steps done before.
    lr : callable
        Learning rate by step.
    device : torch.device
    processes : Processes
    show : bool
        Whether a bar may be shown.
    metrics : callable, path or None
        ``metrics(step, loss)`` for every step; or a file that gets a line of JSON for every 50 steps, with "step",
        "loss" (their mean), "lr" and "seconds" (since the call).  Lines of earlier steps are kept, later ones dropped.
    """

    def __init__(
        self, steps: int, done: int, lr: Callable[[int], float], device: torch.device, processes: Processes, show: bool,
        metrics: Metrics | None,
    ) -> None:  # fmt: skip
        self._steps, self._lr, self._processes = steps, lr, processes
        self._every = 1 if device.type == "cpu" and processes.count == 1 else _EVERY
        self._waiting: list[torch.Tensor] = []
        self._step = done
        self._call = metrics if callable(metrics) and processes.first else None
        self._file = None if metrics is None or callable(metrics) or not processes.first else _Lines(Path(metrics), done)
        self._bar = TrainingBar(steps, show and processes.first)

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Take the loss of a step, a tensor without gradient."""
        self._waiting.append(loss)
        if len(self._waiting) >= self._every or step == self._steps:
            self.flush()

    def flush(self) -> None:
        """Read the losses that wait.

        Raises
        ------
        DivergenceError
            One is nan or infinite.
        """
        if not self._waiting:
            return
        values = self._processes.mean(torch.stack(self._waiting)).tolist()
        self._waiting.clear()
        for value in values:
            self._step += 1
            if not math.isfinite(value):
                raise DivergenceError(
                    f"the training loss became {value} at step {self._step} of {self._steps}; lower lr "
                    f"(now {self._lr(self._step):.3g})."
                )
            self._bar.update(self._step, value)
            if self._call is not None:
                self._call(self._step, value)
            if self._file is not None:
                self._file.add(self._step, value, self._lr(self._step), self._step == self._steps)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _Lines:
    """A file of JSON lines that survives being killed: whole lines of steps that were done stay."""

    def __init__(self, path: Path, done: int) -> None:
        if path.is_dir():
            raise ValueError(f"metrics={str(path)!r} is a folder; name a file in it, as in {str(path / 'metrics.jsonl')!r}.")
        self._path, self._losses, self._start = path, [], time.monotonic()
        kept = [line for line in _read(path) if line["step"] <= done]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, step: int, loss: float, lr: float, last: bool) -> None:
        """Take the loss of a step, and write a line where one is due."""
        self._losses.append(loss)
        if step % LINE and not last:
            return
        line = {
            "step": step,
            "loss": math.fsum(self._losses) / len(self._losses),
            "lr": lr,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        self._losses.clear()
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read(path: Path) -> list[dict[str, float]]:
    """The lines of an earlier run; the last may be torn."""
    if not path.exists():
        return []
    texts = path.read_text().splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif number < len(texts):
            raise ValueError(f"{path}, line {number}, is not a line of metrics; choose another file for metrics=.")
    return lines
