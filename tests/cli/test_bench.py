"""The benchmark command: table, JSON, figure, and one sentence for every mistake."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thermodiff.bench.problems import Verdict
from thermodiff.bench.rivals import Absent
from thermodiff.bench.timing import Timing
from thermodiff.bench.works import PATH_STEP, Way, Work, choose
from thermodiff.cli import bench
from thermodiff.cli import main as command

PNG = b"\x89PNG\r\n\x1a\n"


class Problem:
    size = 100.0


def quick(problem: Any) -> Callable[[], float]:
    return lambda: 0.25


def absent(problem: Any) -> Callable[[], float]:
    raise Absent("jax is not installed")


FAKE = Work(
    "fake", "nothing at all", Problem, {"quick": {}, "full": {}, "tiny": {}},
    (Way("thermodiff", 2, quick), Way("C", 1, quick, goal=1e-9), Way("NumPy", 1, quick, goal=1e9), Way("JAX", 2, absent)),
    PATH_STEP, lambda problem, result: Verdict("E x²", result, 0.01),
)  # fmt: skip


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "choose", lambda names: choose(names)[:0] or [FAKE])


def call(capsys: Any, monkeypatch: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["thermodiff", "bench", *arguments])
    code = 0
    try:
        command()
    except SystemExit as stop:
        code = stop.code or 0
    found = capsys.readouterr()
    return code, found.out, found.err


def test_what_it_writes_and_shows(faked, capsys, monkeypatch, tmp_path: Path) -> None:
    code, out, err = call(capsys, monkeypatch, "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png"]
    assert (tmp_path / "bench.png").read_bytes().startswith(PNG)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (record["size"], record["rounds"]) == ("quick", 3)
    assert {"cpu", "cores", "versions", "date"} <= set(record["machine"])
    (work,) = record["works"]
    ways = {way["way"]: way for way in work["ways"]}
    assert list(ways) == ["thermodiff", "C", "NumPy", "JAX"]
    assert len(ways["C"]["runs"]) == 3
    assert ways["C"]["verdict"] == {"what": "E x²", "deviation": 0.25, "error": 0.01}
    assert ways["JAX"]["skipped"] == "jax is not installed"
    for text in ("fake", "per path-step", "ratio", "≥ 1e-09 ✓", "≥ 1e+09 ✗", "E x²: +25.00 ± 1.00 %", "skipped: jax is not"):
        assert text in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 110


def test_quiet_and_full(faked, capsys, monkeypatch, tmp_path: Path) -> None:
    assert call(capsys, monkeypatch, "--quiet", "--full", "--out", str(tmp_path)) == (0, "", "")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (record["size"], record["rounds"]) == ("full", 9)


def test_a_real_work(tmp_path: Path, capsys) -> None:
    found = bench.run(size="tiny", only=["threads"], out=tmp_path, quiet=False)
    assert [one.threads for one in found] == [2, 1]
    assert "one thread" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "eule"), "thermodiff: unknown work 'eule'; choose among euler-1"),
        (("--only", "euler-1", "--only", ""), "thermodiff: unknown work ''"),
    ],
)
def test_one_sentence(capsys, monkeypatch, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = call(capsys, monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert err.startswith(words)
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(faked, capsys, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    monkeypatch.setattr(bench.timing, "run", None)  # refused before anything is measured
    for place in ("out", "out/deeper"):
        code, out, err = call(capsys, monkeypatch, "--out", str(tmp_path / place))
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
        assert err.endswith("out' is a file, and a folder is needed there; choose another name.\n")
    assert (tmp_path / "out").read_text() == "precious"


def test_out_cannot_be_written(faked, capsys, monkeypatch, tmp_path: Path) -> None:
    def refuse(**given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bench.timing, "run", None)
    monkeypatch.setattr("thermodiff._check.tempfile.TemporaryFile", refuse)
    code, out, err = call(capsys, monkeypatch, "--out", str(tmp_path / "out"))
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    for words in (str(tmp_path / "out"), "--out: nothing can be written there (Permission denied); choose another place"):
        assert words in err
    assert list(tmp_path.iterdir()) == []


def test_bars_of_one_way_have_names_of_their_own() -> None:
    group = [Timing("threads", "ours", 2, "ns"), Timing("threads", "ours", 1, "ns"), Timing("threads", "C", 1, "ns")]
    assert bench._bar_names(group) == ["ours, threads: 2", "ours, threads: 1", "C"]


def test_a_failure_leaves_earlier_results_alone(faked, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")

    def fails(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(bench.timing, "run", fails)
    with pytest.raises(MemoryError):
        bench.run(size="quick", only=[], out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert (tmp_path / "bench.json").read_text() == "{}"


def test_without_matplotlib(faked, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = call(capsys, monkeypatch, "--quiet", "--out", str(tmp_path))
    assert code == 0
    assert err.strip() == "bench.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]')."
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call here")
def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with bench._few_cores():
        assert len(os.sched_getaffinity(0)) == min(len(before), 2)
    assert os.sched_getaffinity(0) == before


def test_help(capsys, monkeypatch) -> None:
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0
    for option in ("--full", "--only", "--out", "--quiet"):
        assert option in out
    for work in choose([]):
        assert work.name in out
