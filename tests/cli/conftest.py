"""``thermodiff entropy`` with a small budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Outcome, call


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """``run(...)`` calls ``thermodiff entropy`` with a small budget and a folder of its own."""

    def call_entropy(*arguments: str) -> Outcome:
        small = ("--nodes", "8", "--samples", "100", "--steps", "2", "--out", str(tmp_path / "out"))
        return call(capsys, monkeypatch, "entropy", *small, *arguments)

    return call_entropy


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    """A small mixture in a file."""
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps({"means": [[-1.0], [1.0]], "stds": [0.3, 0.5], "weights": [0.4, 0.6]}))
    return str(path)
