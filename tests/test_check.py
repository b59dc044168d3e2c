"""Messages of the argument checks: what was given, what is needed, what to do."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from thermodiff import _check


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2.0), np.int64(3)])
def test_numbers_pass_as_floats(value) -> None:
    number = _check.finite_number("x", value)
    assert type(number) is float
    assert number == value


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _check.finite_number("x", "1"), TypeError, "^x must be a number, got '1'"),
        (lambda: _check.finite_number("x", True), TypeError, "^x must be a number, got True"),
        (lambda: _check.finite_number("x", None), TypeError, "^x must be a number, got None"),
        (lambda: _check.finite_number("x", np.nan), ValueError, "^x must be finite"),
        (lambda: _check.above("x", 0.0, 0.0, "why"), ValueError, "^x must be positive, got 0; why"),
        (lambda: _check.above("x", 1.0, 2.0, "why"), ValueError, "^x must be greater than 2, got 1; why"),
        (lambda: _check.count("n", 0), ValueError, "^n must be at least 1, got 0"),
        (lambda: _check.count("n", 1, 2), ValueError, "^n must be at least 2, got 1"),
        (lambda: _check.count("n", 4, most=3), ValueError, "^n must be at most 3, got 4"),
        (lambda: _check.count("n", 3.0), TypeError, "^n must be an integer, got 3.0"),
        (lambda: _check.count("n", True), TypeError, "^n must be an integer"),
        (lambda: _check.choice("way", "c", ("a", "b")), ValueError, "^way='c' is unknown; choose one of 'a', 'b'"),
        (lambda: _check.increasing_pair("w", (2, 1)), ValueError, r"^w must increase, got \(2, 1\); swap"),
        (lambda: _check.increasing_pair("w", None), ValueError, "^w must be a pair"),
        (lambda: _check.array("a", [], "(n,)", 1), ValueError, "^a is empty"),
        (lambda: _check.array("a", [1.0], "(n, d)", 2), ValueError, r"^a must have shape \(n, d\), got \(1,\)"),
        (lambda: _check.array("a", [1.0, np.nan, np.inf], "(n,)", 1), ValueError, "^a holds 2 values that are nan or infinite"),
        (lambda: _check.array("a", ["1"], "(n,)", 1), TypeError, "^a must be an array of numbers"),
        (lambda: _check.array("a", ["x"], "(n,)", 1), TypeError, "^a must be an array of numbers"),
        (lambda: _check.array("a", [[1.0], [1.0, 2.0]], "(n, d)", 2), TypeError, "^a must be an array of numbers"),
        (lambda: _check.points("p", np.zeros((3, 2)), 3), ValueError, r"^p must have shape \(n, 3\), got \(3, 2\)"),
        (lambda: _check.points("p", np.zeros((0, 2))), ValueError, "^p is empty"),
        (lambda: _check.seed_words("x"), TypeError, "^rng must be a non-negative integer, a SeedSequence"),
        (lambda: _check.seed_words(np.random.RandomState(0)), TypeError, "use numpy.random.default_rng"),
        (lambda: _check.seed_words(-1), TypeError, "^rng must be a non-negative integer"),
        (lambda: _check.seed_words(1.0), TypeError, "^rng must be"),
        (lambda: _check.seed_words(True), TypeError, "^rng must be"),
    ],
)  # fmt: skip
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_array_is_contiguous_float64() -> None:
    result = _check.array("a", np.arange(6, dtype=np.float32).reshape(2, 3).T, "(n, d)", 2)
    assert result.dtype == np.float64
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, [[0, 3], [1, 4], [2, 5]])


def test_an_integer_is_its_seed_sequence() -> None:
    words = np.random.SeedSequence(5).generate_state(2)
    np.testing.assert_array_equal(_check.seed_words(5), words)
    np.testing.assert_array_equal(_check.seed_words(np.int64(5)), words)
    np.testing.assert_array_equal(_check.seed_words(np.random.SeedSequence(5)), words)
    assert words.dtype == np.uint32


def test_a_generator_moves_on() -> None:
    generator = np.random.default_rng(3)
    first, second = _check.seed_words(generator), _check.seed_words(generator)
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(_check.seed_words(np.random.default_rng(3)), first)


def test_none_takes_fresh_entropy() -> None:
    assert len({tuple(_check.seed_words(None).tolist()) for _ in range(8)}) == 8


def test_write_atomically_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    for content in (b"one", b"two"):
        _check.write_atomically(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    _check.write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(_check.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _check.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_divergence_error_is_arithmetic() -> None:
    assert issubclass(_check.DivergenceError, ArithmeticError)


def test_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a process, and processes of two machines that have the same number."""
    path, names, replace = tmp_path / "file", [], os.replace

    def seen(temporary: Path, target: Path) -> None:
        names.append(temporary.name)
        replace(temporary, target)

    monkeypatch.setattr(_check.os, "replace", seen)
    for machine in ("one", "two"):
        monkeypatch.setattr(_check.platform, "node", lambda machine=machine: machine)
        monkeypatch.setattr(_check, "_WRITES", iter(range(50)))
        threads = [threading.Thread(target=_check.write_atomically, args=(path, bytes([k]))) for k in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(names)) == 40
    assert len(path.read_bytes()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_small_files_are_on_the_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(_check.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    for size in (0, 7, _check.SYNCED - 1, _check.SYNCED):
        _check.write_atomically(tmp_path / "file", b"x" * size)
    assert synced == [0, 7, _check.SYNCED - 1]


def test_a_folder_is_tried_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "deep"
    _check.require_folder("out", folder)
    _check.require_writable("out", folder)
    assert list(tmp_path.iterdir()) == []

    def refuse(**given) -> None:
        assert given == {"dir": tmp_path}
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(_check.tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        OSError, match=r"out: nothing can be written there \(Read-only.*choose another place.*deep'"
    ) as found:
        _check.require_writable("out", folder)
    assert (found.value.errno, found.value.filename) == (errno.EROFS, str(folder))
