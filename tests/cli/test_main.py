"""The command: help, exit codes, one line for every mistake, no trace of failed runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import thermodiff
from thermodiff.cli import entropy as job
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


def assert_refused(got: Outcome, out: Path, *words: str) -> None:
    """Exit 2, one sentence on standard error, nothing written."""
    assert got.code == 2, got
    assert got.out == ""
    lines = got.err.strip().splitlines()
    assert len(lines) == 1, got.err
    assert lines[0].startswith("thermodiff: ")
    for word in words:
        assert word in lines[0]
    assert not out.is_dir() or not any(out.iterdir())


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


def write_npz(path: Path, kind: str) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 2))
    with_nan = rows.copy()
    with_nan[3, 1] = np.nan
    arrays = {
        "two": {"a": rows, "b": rows},
        "none": {"a": np.arange(5.0)},
        "nan": {"a": with_nan},
        "inf": {"a": np.full((20, 2), np.inf)},
        "pickled": {"a": np.array([{"x": 1}, None], dtype=object)},
        "pickled beside": {"a": rows, "b": np.array([{"x": 1}], dtype=object)},
        "text": {"a": np.array([["a", "b"]] * 20)},
        "few": {"a": rows[:3]},
        "equal": {"a": np.ones((20, 2))},
        "empty": {"a": np.zeros((0, 2))},
        "no arrays": {},
    }
    if kind in arrays:
        np.savez(path, **arrays[kind])
    elif kind == "corrupt":
        path.write_bytes(b"this is no archive")
    elif kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "cut":
        np.savez(path, a=rows)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "flipped":
        np.savez(path, a=rows)
        content = bytearray(path.read_bytes())
        content[300] ^= 0xFF
        path.write_bytes(bytes(content))
    elif kind == "foreign member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "hello")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("corrupt", ("cannot be read as an .npz of plain arrays",)),
        ("zero bytes", ("cannot be read as an .npz",)),
        pytest.param(
            "cut",
            ("cannot be read as an .npz",),
            # numpy.load leaves the file to the garbage collector when the archive has no directory.
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
        ("flipped", ("cannot be read as an .npz",)),
        ("pickled", ("cannot be read as an .npz of plain arrays", "allow_pickle=False")),
        ("pickled beside", ("cannot be read as an .npz of plain arrays",)),
        ("two", ("exactly one array of vectors (n, d)", "'a': (20, 2)", "'b': (20, 2)")),
        ("none", ("exactly one array of vectors (n, d)", "'a': (5,)")),
        ("no arrays", ("exactly one array of vectors",)),
        ("nan", ("holds 1 values that are nan or infinite",)),
        ("inf", ("holds 40 values that are nan or infinite",)),
        ("text", ("must be an array of numbers",)),
        ("few", ("got 3 vectors; at least 4",)),
        ("equal", ("all vectors are equal",)),
        ("empty", ("is empty",)),
        ("foreign member", ("data.npz",)),
    ],
)
def test_bad_vectors(run, tmp_path: Path, kind: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "data.npz"
    write_npz(path, kind)
    assert_refused(run("--data", str(path), "--exact", "--schedule", "VP"), tmp_path / "out", *words)


def test_an_array_under_the_name_of_an_archive(run, tmp_path: Path) -> None:
    with open(tmp_path / "data.npz", "wb") as file:
        np.save(file, np.ones((20, 2)))
    assert_refused(run("--data", str(tmp_path / "data.npz"), "--exact"), tmp_path / "out", "data.npz", "not an archive")


def test_damaged_compressed_vectors(run, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).standard_normal((400, 2)))
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(bytes(content))
    assert_refused(run("--data", str(path), "--exact", "--schedule", "VP"), tmp_path / "out", "cannot be read")


def test_complex_vectors(run, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, a=np.random.default_rng(0).standard_normal((20, 2)) * (1.0 + 1.0j))
    assert_refused(run("--data", str(path), "--exact", "--schedule", "VP"), tmp_path / "out", "numbers")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("is not JSON",)),
        ("{", ("is not JSON",)),
        ("\x00\x01", ("is not JSON",)),
        ("[]", ("must hold an object with means, stds or covs", "list")),
        ("null", ("must hold an object",)),
        ("{}", ("must hold an object with means",)),
        ('{"means": [[0.0]], "std": 1}', ("must hold an object", "'std'")),
        ('{"means": [[0.0]]}', ("either stds= (isotropic components) or covs=",)),
        ('{"means": [[0.0]], "stds": [1], "covs": [[[1]]]}', ("either stds=",)),
        ('{"means": [[0.0], [1.0]], "stds": [1, 1], "weights": [0.5, 0.4]}', ("weights must sum to one", "0.9")),
        ('{"means": [[0.0], [1.0]], "stds": [1, 1], "weights": [1.5, -0.5]}', ("weights must not be negative",)),
        ('{"means": [[0.0]], "stds": [-1.0]}', ("stds must be positive, got -1",)),
        ('{"means": [[0.0]], "stds": [0.0]}', ("stds must be positive",)),
        ('{"means": [0.0], "stds": [1.0]}', ("means must have shape (K, d)",)),
        ('{"means": [[0.0]], "stds": [1.0, 2.0]}', ("stds must have shape (1,)",)),
        ('{"means": [[NaN]], "stds": [1.0]}', ("means holds 1 values that are nan",)),
        ('{"means": [["a"]], "stds": [1.0]}', ("means must be an array of numbers",)),
        ('{"means": [[0.0, 1.0], [2.0]], "stds": 1.0}', ("means must be an array of numbers",)),
        ('{"means": [[0.0, 0.0]], "covs": [[[1.0, 2.0], [2.0, 1.0]]]}', ("covs must be positive definite",)),
        ('{"means": [[0.0, 0.0]], "covs": [[[1.0, 0.5], [0.0, 1.0]]]}', ("covs must be symmetric",)),
        pytest.param(
            '{"means": [[1' + "0" * 400 + ']], "stds": [1.0]}',
            ("means",),
        ),
        pytest.param(
            "[" * 100_000,
            ("is not JSON",),
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_mixtures(run, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    assert_refused(run("--data", str(path), "--exact", "--schedule", "VP"), tmp_path / "out", *words)


def test_bytes_that_are_no_text(run, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b"\xff\xfe\xfa{")
    assert_refused(run("--data", str(tmp_path / "data.json"), "--exact"), tmp_path / "out", "is not JSON")


def test_a_folder_for_data(run, tmp_path: Path) -> None:
    (tmp_path / "data.npz").mkdir()
    assert_refused(run("--data", str(tmp_path / "data.npz"), "--exact"), tmp_path / "out", "there is no file")


# Where results go


def test_out_is_a_file(run, tmp_path: Path, mixture: str) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    assert_refused(run("--data", mixture, "--exact"), tmp_path / "none", str(out))
    assert out.read_text() == "precious"


def test_out_below_a_file(run, tmp_path: Path, mixture: str) -> None:
    (tmp_path / "out").write_text("precious")
    assert_refused(run("--data", mixture, "--exact", "--out", str(tmp_path / "out" / "run")), tmp_path / "none", "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_cannot_be_written(run, tmp_path: Path, mixture: str) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_refused(run("--data", mixture, "--exact", "--out", str(tmp_path / "locked")), tmp_path / "none", "ermission")


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
        (PermissionError(13, "Permission denied", "x"), "thermodiff: [Errno 13] Permission denied: 'x'"),
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
