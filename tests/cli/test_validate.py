"""The command ``thermodiff validate``: table, file, exit status."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console

import thermodiff as td
from thermodiff.accounting import Estimate
from thermodiff.cli import main as command
from thermodiff.cli import validate

FEW = ("log-likelihood", "dragged-trap")


@pytest.fixture
def run(capsys, monkeypatch):
    """``run(...)`` calls ``thermodiff validate`` with few samples; (exit status, standard output, standard error)."""

    def call(*arguments, scale="0.05"):
        monkeypatch.setattr(sys, "argv", ["thermodiff", "validate", *arguments, *(["--scale", scale] if scale else [])])
        code = 0
        try:
            command()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def sabotage(monkeypatch, name, **changed):
    """Put another case in the place of this one."""
    wrong = replace(td.cases.get(name), **changed)
    monkeypatch.setattr(td.cases, "CASES", tuple(wrong if case.name == name else case for case in td.cases.CASES))


@td.drift
def too_stiff(x, t, k, u):
    return (-1.2 * k * (x[0] - u * t),)


@td.drift
def explosive(x, t):
    return (1e3 + 1e3 * x[0] ** 3,)


def test_help(run):
    code, out, err = run("--help", scale="")
    assert (code, err) == (0, "")
    for word in ("NAMES", "--seed", "--scale", "--out", "--quiet", "exit status"):
        assert word in out


def test_table(run):
    code, out, err = run(*FEW)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    for word in (*FEW, "14.385013", "-0.91661698", "nats", "measured ± error", "2 of 2 cases passed (|z| < 4)"):
        assert word in out
    assert "gaussian-vp" not in out


def test_all_cases_pass(run):
    code, out, _ = run()
    assert code == 0, out
    assert f"{len(td.cases.CASES)} of {len(td.cases.CASES)} cases passed" in out
    assert all(name in out for name in td.cases.names())
    assert max(map(len, out.splitlines())) <= 110


def test_quiet(run):
    assert run(*FEW, "--quiet") == (0, "", "")


def test_the_file(run, tmp_path):
    out = tmp_path / "new" / "checks.json"
    assert run(*FEW, "--out", str(out), "--seed", "3")[0] == 0
    record = json.loads(out.read_text())
    assert (record["seed"], record["scale"], record["passed"]) == (3, 0.05, True)
    first = record["cases"][1]
    assert first["name"] == "dragged-trap"
    assert first["exact"] == pytest.approx(14.3850128458, abs=1e-9)
    assert first["size"] == 5000
    assert first["z"] == pytest.approx((first["value"] - first["exact"]) / first["error"])
    assert [path.name for path in out.parent.iterdir()] == ["checks.json"]


def test_a_case_does_not_depend_on_what_else_is_measured(run, tmp_path):
    values = []
    for names in (FEW, FEW[1:], (*FEW[::-1], FEW[0])):
        run(*names, "--out", str(tmp_path / "out.json"))
        found = {case["name"]: case["value"] for case in json.loads((tmp_path / "out.json").read_text())["cases"]}
        assert set(found) == set(names)
        values.append(found["dragged-trap"])
    assert values[0] == values[1] == values[2]


def test_a_wrong_drift_fails(run, monkeypatch, tmp_path):
    process = td.Langevin(too_stiff, params=(2.0, 3.0), diffusivity=0.5, dim=1)
    sabotage(monkeypatch, "dragged-trap", process=process)
    code, out, err = run(*FEW, "--out", str(tmp_path / "out.json"))
    assert (code, err) == (1, "")
    assert "1 of 2 cases passed (|z| < 4)" in out
    assert "not: dragged-trap." in out
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["passed"], [case["passed"] for case in record["cases"]]) == (False, [True, False])
    assert run(*FEW, "--quiet") == (1, "", "")


@pytest.mark.filterwarnings("ignore:the step:RuntimeWarning")
def test_a_case_that_blows_up_fails_and_the_others_go_on(run, monkeypatch, tmp_path):
    sabotage(monkeypatch, "dragged-trap", process=td.Langevin(explosive, diffusivity=0.5, dim=1))
    code, out, err = run("dragged-trap", "log-likelihood", "--out", str(tmp_path / "out.json"))
    assert (code, err) == (1, "")
    assert "failed" in out
    assert "left the finite numbers" in out
    assert "1 of 2 cases passed" in out
    first = json.loads((tmp_path / "out.json").read_text())["cases"][0]
    assert (first["value"], first["z"], first["passed"]) == (None, None, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 14.385 + 4.01, 14.385 - 4.01])
def test_what_does_not_pass(value):
    assert not validate.Result(td.cases.get("dragged-trap"), Estimate(value, 1.0), 10, 0.0).passed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), ("there is no case 'nonsense'", "choose among", "gaussian-vp")),
        (("--seed", "-1"), ("--seed", "at least 0")),
        (("--scale", "0"), ("--scale", "positive")),
        (("--scale", "nan"), ("--scale", "finite")),
        (("--out", "checks.txt"), ("--out", ".json", "checks.txt")),
    ],
)
def test_bad_input(run, arguments, words):
    code, out, err = run(*arguments, scale="")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err


def test_out_below_a_file_or_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "measure", None)  # refused before anything is measured
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder.json").mkdir()
    for out, words in (
        (tmp_path / "file" / "checks.json", "file' is a file, and a folder is needed there; choose another name."),
        (tmp_path / "folder.json", f"must be a file that ends in .json, got '{tmp_path / 'folder.json'}'"),
    ):
        code, shown, err = run(*FEW, "--out", str(out))
        assert (code, shown) == (2, "")
        assert words in err
    assert (tmp_path / "file").read_text() == "precious"


def test_out_where_nothing_can_be_written(run, tmp_path, monkeypatch):
    def refuse(**given):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(validate, "measure", None)
    monkeypatch.setattr("thermodiff._check.tempfile.TemporaryFile", refuse)
    code, shown, err = run(*FEW, "--out", str(tmp_path / "new" / "checks.json"))
    assert (code, shown, len(err.strip().splitlines())) == (2, "", 1)
    assert f"{tmp_path / 'new'}: --out: nothing can be written there (Permission denied); choose another place" in err
    assert list(tmp_path.iterdir()) == []


def test_a_bar_where_it_takes_a_while(run, monkeypatch):
    monkeypatch.setattr(validate, "Console", partial(Console, force_terminal=True))
    monkeypatch.setattr(validate, "PATIENCE", 60.0)
    assert "measuring" not in run(*FEW)[2]
    monkeypatch.setattr(validate, "PATIENCE", 0.0)
    assert "measuring" in run(*FEW)[2]
    assert "measuring" not in run(*FEW, "--quiet")[2]
