"""What a training tells while it runs: losses to a bar, to a function, or to a file of JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import torch

from thermodiff._check import DivergenceError, write_atomically
from thermodiff.learned.parallel import Processes
from thermodiff.learned.progress import TrainingBar

_EVERY = 20  # losses stay on a GPU for so many steps: reading one waits for the device
LINE = 50
"""Steps in one line of a file of metrics."""

_BEGINNING = '{"step"'

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
    losses : sequence of float
        Of the steps done before that are in no line yet.

    Attributes
    ----------
    losses : list of float
        Of the steps that are in no line yet, to be kept with the state of the training.
    """

    def __init__(
        self, steps: int, done: int, lr: Callable[[int], float], device: torch.device, processes: Processes, show: bool,
        metrics: Metrics | None, losses: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self._steps, self._lr, self._processes = steps, lr, processes
        self._every = 1 if device.type == "cpu" and processes.count == 1 else _EVERY
        self._waiting: list[torch.Tensor] = []
        self._step, self.losses = done, list(losses)
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
            self.losses.append(value)
            if self._step % LINE == 0 or self._step == self._steps:
                if self._file is not None:
                    self._file.add(self._step, math.fsum(self.losses) / len(self.losses), self._lr(self._step))
                self.losses.clear()

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _Lines:
    """A file of JSON lines that survives being killed: whole lines of steps that were done stay."""

    def __init__(self, path: Path, done: int) -> None:
        if path.is_dir():
            raise ValueError(f"metrics={str(path)!r} is a folder; name a file in it, as in {str(path / 'metrics.jsonl')!r}.")
        self._path, self._start = path, time.monotonic()
        kept = [line for line in _read(path) if line["step"] <= done]
        try:
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        except OSError as error:
            raise ValueError(
                f"metrics={str(path)!r} cannot be written ({error.strerror}); choose a file in a folder of yours."
            ) from None

    def add(self, step: int, loss: float, lr: float) -> None:
        """Write a line, with the mean loss of its steps."""
        line = {"step": step, "loss": loss, "lr": lr, "seconds": round(time.monotonic() - self._start, 3)}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read(path: Path) -> list[dict[str, float]]:
    """The lines of an earlier run; the last may be torn, and then it has no end."""
    if not path.exists():
        return []
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a file of text, so it holds no metrics; choose another file for metrics=."
        ) from None
    lines, texts = [], content.splitlines()
    begun = bool(texts) and not content.endswith("\n") and _BEGINNING.startswith(texts[-1][: len(_BEGINNING)])
    torn = len(texts) if begun else 0
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if _is_line(line):
            lines.append(line)
        elif number != torn:
            raise ValueError(f"{path}, line {number}, is not a line of metrics; choose another file for metrics=.")
    return lines


def _is_line(line: Any) -> TypeGuard[dict[str, float]]:
    """Whether it has the form that `_Lines.add` gives it."""
    return isinstance(line, dict) and type(line.get("step")) is int and type(line.get("loss")) in (int, float)
