"""The description of the machine."""

from __future__ import annotations

import json
import platform
from datetime import datetime

import numpy as np
import pytest

from thermodiff.bench import machine


def test_describe() -> None:
    found = json.loads(json.dumps(machine.describe()))
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["cpu"]
    assert 1 <= found["cores used"] <= found["cores"]
    versions = found["versions"]
    assert (versions["python"], versions["numpy"]) == (platform.python_version(), np.__version__)
    assert {"thermodiff", "numba", "llvm", "compiler"} <= set(versions)


def test_it_names_neither_machine_nor_user() -> None:
    assert platform.node() not in json.dumps(machine.describe()) or len(platform.node()) < 4


def test_without_a_compiler_and_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    monkeypatch.setattr(machine.Path, "read_text", missing)
    assert machine._compiler() == "none"
    assert machine._processor()
