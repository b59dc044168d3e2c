"""The command: help, exit codes, one line for every mistake, no trace of failed runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, call, launch

import thermodiff
from thermodiff.cli import entropy as job

# Help and version


def test_help_from_the_shell() -> None:
    got = launch("--help")
    assert got.code == 0
    assert "entropy production of exact and learned scores" in " ".join(got.out.split())
    assert "entropy" in got.out
    assert got.err == ""
    assert "\x1b" not in got.out


def test_help_of_the_job(capsys, monkeypatch) -> None:
    got = call(capsys, monkeypatch, "entropy", "--help")
    assert got.code == 0
    for option in [
        "--data",
        "--schedule",
        "--exact",
        "--lam",
        "--nodes",
        "--samples",
        "--steps",
        "--seed",
        "--out",
        "--quiet",
    ]:
        assert option in got.out
    for name in ("mixture", "digits", "VPx", "StraightLine", "SubVP", "CondOT", "nats"):
        assert name in got.out
    assert "\x1b" not in got.out


def test_version(capsys, monkeypatch) -> None:
    got = call(capsys, monkeypatch, "--version")
    assert (got.code, got.out.strip(), got.err) == (0, f"thermodiff {thermodiff.__version__}", "")


def test_no_arguments(capsys, monkeypatch) -> None:
    got = call(capsys, monkeypatch)
    assert got.code == 2  # as for other tools with commands
    assert "Usage" in got.out + got.err


@pytest.mark.parametrize(
    "arguments",
    [("entropie",), ("entropy", "--stps", "3"), ("entropy", "--nodes", "many"), ("entropy", "--lam", "1"), ("entropy", "x")],
)
def test_usage_errors(capsys, monkeypatch, arguments: tuple[str, ...]) -> None:
    got = call(capsys, monkeypatch, *arguments)
    assert got.code == 2
    assert got.out == ""
    assert "Traceback" not in got.err


def test_help_imports_neither_numba_nor_torch() -> None:
    code = (
        "import sys; sys.argv = ['thermodiff', 'entropy', '--help']\n"
        "from thermodiff.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'numba', 'torch', 'matplotlib', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    got = launch(code=code)
    assert got.code == 0
    assert got.err.strip() == "[]"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--schedule", "VPP"), ("unknown schedule 'VPP'", "VP, VPx, SL", "CondOT")),
        (("--schedule", "vp"), ("unknown schedule 'vp'",)),
        (("--schedule", "VP", "--schedule", ""), ("unknown schedule ''",)),
        (("--data", "cats"), ("unknown data 'cats'", "'mixture', 'digits', a FILE.json or a FILE.npz")),
        (("--data", "table.csv"), ("unknown data 'table.csv'",)),
        (("--data", "none.npz"), ("there is no file none.npz",)),
        (("--data", "none.json"), ("there is no file none.json",)),
        (("--nodes", "0"), ("--nodes must be at least 1, got 0",)),
        (("--nodes", "1000000"), ("--nodes must be at most 4096, got 1000000",)),
        (("--samples", "1"), ("--samples must be at least 2, got 1",)),
        (("--samples", "0"), ("--samples must be at least 2, got 0",)),
        (("--steps", "0"), ("--steps must be at least 1, got 0",)),
        (("--seed", "-1"), ("--seed must be at least 0, got -1",)),
        (("--lam", "4", "-8"), ("--lam must increase, got (4, -8)",)),
        (("--lam", "1", "1"), ("--lam must increase",)),
        (("--lam", "nan", "1"), ("--lam[0] must be finite",)),
        (("--lam", "0", "inf"), ("--lam[1] must be finite",)),
        (("--schedule", "SubVP"), ("SubVP grows without bound", "--lam")),
        (("--schedule", "VP", "--schedule", "CondOT"), ("CondOT grows without bound",)),
    ],
)
@pytest.mark.parametrize("exact", [True, False])
def test_bad_arguments(run, tmp_path: Path, arguments, words, exact: bool) -> None:
    assert_refused(run(*arguments, *(["--exact"] if exact else [])), tmp_path / "out", *words)


# Where results go


def test_out_is_a_file(run, tmp_path: Path, mixture: str) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    assert_refused(run("--data", mixture, "--exact"), tmp_path / "none", str(out))
    assert out.read_text() == "precious"


def test_out_is_a_link_to_nothing(run, tmp_path: Path, mixture: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert_refused(run("--data", mixture, "--exact", "--out", str(tmp_path / "link")), tmp_path / "nowhere", "link")


def test_out_below_a_file(run, tmp_path: Path, mixture: str) -> None:
    (tmp_path / "out").write_text("precious")
    assert_refused(run("--data", mixture, "--exact", "--out", str(tmp_path / "out" / "run")), tmp_path / "none", "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_cannot_be_written(run, tmp_path: Path, mixture: str) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for out in (tmp_path / "locked", tmp_path / "locked" / "a" / "b"):
        assert_refused(run("--data", mixture, "--exact", "--out", str(out)), tmp_path / "locked" / "a", "no permission")


def test_a_run_that_fails_leaves_no_folder(run, tmp_path: Path, mixture: str, monkeypatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise thermodiff.DivergenceError("the score is nan")

    monkeypatch.setattr(job, "account", fails)
    assert_refused(run("--data", mixture, "--exact", "--out", str(tmp_path / "a" / "b")), tmp_path / "a", "nan")


def test_disk_error_while_writing(run, tmp_path: Path, mixture: str, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(job, "write_atomically", full)
    assert_refused(run("--data", mixture, "--exact", "--schedule", "VP", "--quiet"), tmp_path / "out", "No space left")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_failures_leave_earlier_results_alone(run, tmp_path: Path, mixture: str, monkeypatch) -> None:
    assert run("--data", mixture, "--exact", "--schedule", "VP", "--quiet").code == 0
    before = contents(tmp_path / "out")
    assert set(before) == {"ledgers.json", "ledger.png"}
    assert run("--data", mixture, "--exact", "--schedule", "VPP").code == 2
    assert run("--data", mixture, "--exact", "--nodes", "0").code == 2
    assert contents(tmp_path / "out") == before

    # One that fails after half of its work.
    honest, calls = job.account, []

    def fails_later(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise thermodiff.DivergenceError("the score is nan")
        return honest(*arguments, **options)

    monkeypatch.setattr(job, "account", fails_later)
    got = run("--data", mixture, "--exact", "--seed", "5")
    assert (got.code, got.err.strip(), got.out) == (2, "thermodiff: the score is nan", "")
    assert len(calls) == 2
    assert contents(tmp_path / "out") == before


# What the user causes, and what is a fault of ours


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("lam must increase."), "thermodiff: lam must increase."),
        (TypeError("it must be a number."), "thermodiff: it must be a number."),
        (KeyError("this ledger has no row 'x'."), "thermodiff: this ledger has no row 'x'."),
        (KeyError(), "thermodiff: KeyError"),
        (MemoryError(), "thermodiff: MemoryError"),
        (ImportError("no torch."), "thermodiff: no torch."),
        (thermodiff.DivergenceError("nan."), "thermodiff: nan."),
        (PermissionError(13, "Permission denied", "x"), "thermodiff: x: Permission denied."),
    ],
)
def test_one_sentence(run, monkeypatch, error: Exception, line: str) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(job, "run", fail)
    got = run()
    assert (got.code, got.out, got.err.strip()) == (2, "", line)


def test_our_own_faults_are_not_hidden(run, monkeypatch) -> None:
    def fail(**options: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(job, "run", fail)
    with pytest.raises(ZeroDivisionError):
        run()


def test_interrupt(run, monkeypatch) -> None:
    def fail(**options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", fail)
    got = run()
    assert got.code == 130
    assert got.out == ""
    assert "Traceback" not in got.err


# Output


def test_quiet_prints_nothing(run, mixture: str) -> None:
    assert run("--data", mixture, "--schedule", "VP", "--quiet") == (0, "", "")


def test_without_a_terminal_there_are_no_escape_codes(mixture: str, tmp_path: Path) -> None:
    options = ("--data", mixture, "--schedule", "VP", "--nodes", "24", "--samples", "500", "--out", str(tmp_path / "o"))
    got = launch("entropy", "--exact", *options)
    assert got.code == 0, got.err
    assert got.err == ""
    assert "\x1b" not in got.out
    assert "\r" not in got.out
    assert "agrees" in got.out
    assert "written to" in got.out
    assert max(map(len, got.out.splitlines())) <= 110


# Packages that are not there

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
from thermodiff.cli import main
try:
    main()
finally:
    loaded = {{"torch", "safetensors", "sklearn"}} & set(sys.modules)
    print("loaded:", sorted(loaded), file=sys.stderr)
"""


@pytest.mark.parametrize("names", [["torch"], ["safetensors"]])
def test_without_torch(mixture: str, tmp_path: Path, names: list[str]) -> None:
    options = ("entropy", "--data", mixture, "--schedule", "VP", "--nodes", "8", "--samples", "100")
    got = launch(*options, "--out", str(tmp_path / "out"), code=BLOCK.format(names=names))
    sentence, _ = got.err.strip().splitlines()
    assert got.code == 2
    assert sentence.startswith("thermodiff: the learned part needs torch and safetensors; install them with: pip install")
    assert "thermodiff[learned]" in sentence
    assert "--exact" in sentence
    assert not (tmp_path / "out").exists()


def test_exact_needs_no_torch_and_no_matplotlib(mixture: str, tmp_path: Path) -> None:
    options = ("entropy", "--exact", "--data", mixture, "--schedule", "VP", "--nodes", "8", "--samples", "100")
    code = BLOCK.format(names=["torch", "safetensors", "sklearn", "matplotlib"])
    got = launch(*options, "--out", str(tmp_path / "out"), code=code)
    assert got.code == 0, got.err
    note, loaded = got.err.strip().splitlines()
    assert note == "ledger.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]')."
    assert loaded == "loaded: []"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ledgers.json"]
    assert json.loads((tmp_path / "out" / "ledgers.json").read_text())[0]["score"] == "exact"


def test_exact_does_not_import_torch(mixture: str, tmp_path: Path) -> None:
    options = ("entropy", "--exact", "--data", mixture, "--schedule", "SL", "--nodes", "8", "--samples", "100", "--quiet")
    got = launch(*options, "--out", str(tmp_path / "out"), code=BLOCK.format(names=[]))
    assert (got.code, got.out, got.err.strip()) == (0, "", "loaded: []")


def test_digits_without_scikit_learn(tmp_path: Path) -> None:
    options = ("entropy", "--exact", "--data", "digits", "--out", str(tmp_path / "out"))
    got = launch(*options, code=BLOCK.format(names=["sklearn"]))
    assert got.code == 2
    assert got.err.startswith("thermodiff: --data digits needs scikit-learn; install it with: pip install 'thermodiff[")
    assert not (tmp_path / "out").exists()


def test_defaults_are_shown(capsys, monkeypatch) -> None:
    """Square brackets are markup to the library that prints the help."""
    shown = call(capsys, monkeypatch, "entropy", "--help").out
    assert "[default: VP VPx SL]" in " ".join(shown.replace("│", " ").split())


def test_a_folder_in_the_place_of_the_result(capsys, monkeypatch, tmp_path) -> None:
    (tmp_path / "ledgers.json").mkdir()
    got = call(capsys, monkeypatch, "entropy", "--exact", "--schedule", "VP", "--out", str(tmp_path))
    assert got.code == 2
    assert "ledgers.json: it is a folder; choose another place with --out." in got.err
    assert [path.name for path in tmp_path.iterdir()] == ["ledgers.json"]


def test_a_stream_that_lacks_a_letter_gets_the_rest(tmp_path) -> None:
    """The table of a run that has succeeded names λ."""
    command = [sys.executable, "-m", "thermodiff", "entropy", "--exact", "--schedule", "VP", "--samples", "100"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--out", str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "window ? = " in done.stdout
    assert "total" in done.stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", 2),
        ("a fault", None),
        ("a fault of memory_format", None),
    ],
)
def test_errors_of_torch(capsys, monkeypatch, tmp_path, text: str, code: int | None) -> None:
    """Short memory is said in a sentence; a fault of ours keeps its traceback."""

    def fail(**_: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(job, "run", fail)
    if code is None:
        with pytest.raises(RuntimeError, match="a fault"):
            call(capsys, monkeypatch, "entropy")
    else:
        assert_refused(call(capsys, monkeypatch, "entropy"), tmp_path / "out", text)
