"""Progress of a run: the caller's function, a bar in a terminal after two seconds, nothing elsewhere."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from user_dynamics import double_well

import thermodiff as td
from thermodiff import _progress
from thermodiff._progress import reporting

WELL = td.Langevin(double_well, (1.0,), 0.5, dim=1)
X0 = np.zeros((1500, 1))


class Terminal(io.StringIO):
    """Standard error of a terminal, or of a file."""

    def __init__(self, real: bool = True) -> None:
        super().__init__()
        self.real = real

    def isatty(self) -> bool:
        return self.real

    def shows(self, text: str, seconds: float = 10.0) -> bool:
        """Whether the text appears within some time."""
        end = time.monotonic() + seconds
        while text not in self.getvalue() and time.monotonic() < end:
            time.sleep(0.005)
        return text in self.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "PATIENCE", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_bar_appears_moves_and_goes(terminal: Terminal) -> None:
    with redirect_stderr(terminal), reporting(None, "working") as report:
        assert terminal.shows("working")
        assert "━" in terminal.getvalue()
        report(1, 2)
        assert terminal.shows("\x1b[2K")  # drawn again
    lines = terminal.getvalue()
    assert lines.endswith("\x1b[2K")  # the last line is cleared
    with redirect_stderr(terminal), reporting(None, "again"):
        assert terminal.shows("again")


@pytest.mark.usefixtures("impatient")
def test_the_bar_is_as_long_as_the_share_done(terminal: Terminal) -> None:
    """Forty places, the filled ones in a colour of their own."""
    with redirect_stderr(terminal), reporting(None, "working") as report:
        for quarters in (3, 1):
            report(quarters, 4)
            assert terminal.shows("m" + "━" * 10 * quarters + "\x1b[0m")


def test_nothing_is_shown_within_two_seconds(terminal: Terminal) -> None:
    assert _progress.PATIENCE == 2.0
    with redirect_stderr(terminal), reporting(None, "working") as report:
        report(1, 2)
        time.sleep(0.1)
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_nothing_is_shown_where_there_is_no_terminal(terminal: Terminal) -> None:
    """A file, False, no standard error at all."""
    terminal.real = False
    with redirect_stderr(terminal), reporting(None, "working"):
        assert not terminal.shows("working", 0.1)
    terminal.real = True
    with redirect_stderr(terminal), reporting(False, "working"):
        assert not terminal.shows("working", 0.1)
    with redirect_stderr(None), reporting(None, "working") as report:
        report(1, 2)


@pytest.mark.usefixtures("impatient")
def test_a_run_inside_a_run_draws_no_second_bar(terminal: Terminal) -> None:
    with redirect_stderr(terminal), reporting(None, "outer"), reporting(None, "inner") as report:
        report(1, 2)
        assert terminal.shows("outer")
        assert not terminal.shows("inner", 0.1)


@pytest.mark.usefixtures("impatient")
def test_the_bar_goes_when_the_run_fails(terminal: Terminal) -> None:
    def fail() -> None:
        with redirect_stderr(terminal), reporting(None, "working"):
            assert terminal.shows("working")
            raise RuntimeError("broken")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            fail()
        assert terminal.getvalue().endswith("\x1b[2K")
        terminal.truncate(0)


@pytest.mark.parametrize("wrong", [True, 1, 0, "bar"])
def test_other_values_get_a_sentence(wrong) -> None:
    with (
        pytest.raises(TypeError, match=r"progress must be a function \(done, total\), False or None, got"),
        reporting(wrong, "working"),
    ):
        pass


class Watched(ThreadPoolExecutor):
    """Does not take a task before the bar is there, or some time has gone."""

    def __init__(self, terminal: Terminal, title: str, seconds: float = 10.0) -> None:
        super().__init__(1)
        self.wait = lambda: terminal.shows(title, seconds)

    def submit(self, *arguments, **keywords):
        self.wait()
        return super().submit(*arguments, **keywords)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("progress", "shown"), [(None, True), (False, False)])
def test_long_runs_show_a_bar(terminal: Terminal, progress, shown: bool) -> None:
    seconds = 10.0 if shown else 0.05
    with redirect_stderr(terminal), Watched(terminal, "simulate", seconds) as executor:
        td.simulate(WELL, X0, 0.1, 0.02, rng=0, chunk=3, executor=executor, progress=progress)
    assert ("simulate" in terminal.getvalue()) == shown
    with redirect_stderr(terminal), Watched(terminal, "first_passage", seconds) as executor:
        td.first_passage(WELL, X0, high=1.0, t_max=0.1, dt=0.02, rng=0, chunk=3, executor=executor, progress=progress)
    assert ("first_passage" in terminal.getvalue()) == shown


def test_first_passage_counts_its_tasks() -> None:
    seen = []
    given = {"high": 1.0, "t_max": 0.1, "dt": 0.02, "rng": 0, "chunk": 1}
    one = td.first_passage(WELL, X0, progress=lambda done, total: seen.append((done, total)), **given)
    assert seen == [(k, 6) for k in range(1, 7)]
    np.testing.assert_array_equal(one.states, td.first_passage(WELL, X0, **given).states)


def test_rich_is_imported_when_a_bar_appears() -> None:
    code = (
        "import sys\nfrom thermodiff import _progress\nsys.stderr.isatty = lambda: True\n"
        "with _progress.reporting(None, 'a') as report: report(1, 1)\n"
        "print('rich' in sys.modules)\n"
        "import time; _progress.PATIENCE = 0.0\n"
        "with _progress.reporting(None, 'a') as report: time.sleep(1.0)\n"
        "print('rich' in sys.modules)"
    )
    root = Path(_progress.__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
