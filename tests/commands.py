"""The command, called in this process or in one of its own, and what it must do about a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import thermodiff
from thermodiff.cli import main as command

ROOT = Path(thermodiff.__file__).parent.parent


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    """Run the command in this process."""
    monkeypatch.setattr(sys, "argv", ["thermodiff", *arguments])
    code = 0
    try:
        command()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def launch(*arguments: str, code: str | None = None, cwd: Path | None = None, **variables: str) -> Outcome:
    """Run the command, or a piece of code, in a process of its own."""
    start = ["-m", "thermodiff"] if code is None else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **variables}
    done = subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_refused(got: Outcome, out: Path, *words: str) -> None:
    """Exit 2, one sentence on standard error, nothing written."""
    assert got.code == 2, got
    assert got.out == ""
    lines = got.err.strip().splitlines()
    assert len(lines) == 1, got.err
    assert lines[0].startswith("thermodiff: ")
    for word in words:
        assert word in lines[0]
    assert not out.exists()
