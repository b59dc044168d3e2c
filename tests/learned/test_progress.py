"""The progress bar: silent unless stderr is a terminal and the work takes long."""

import io
import sys

import pytest

from thermodiff.learned import progress
from thermodiff.learned.progress import TrainingBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(show: bool) -> None:
    bar = TrainingBar(3, show)
    for step in range(1, 4):
        bar.update(step, 1.25)
    bar.close()


def test_bar_appears_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_REFRESH", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(show=True)
    assert "loss 1.25" in sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("show", "stream", "patience"), [(False, Terminal, 0.0), (True, io.StringIO, 0.0), (True, Terminal, 9.0)]
)
def test_silence(monkeypatch: pytest.MonkeyPatch, show: bool, stream: type[io.StringIO], patience: float) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    monkeypatch.setattr(sys, "stderr", stream())
    run(show)
    assert sys.stderr.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]
