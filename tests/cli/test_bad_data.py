"""Files that hold no data: one sentence, exit status 2, nothing written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused


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
        "huge": {"a": 1e200 * rows},
        "one huge": {"a": np.concatenate([rows, [[0.0, 1.7e308]]])},
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
        ("huge", ("so large that their variance overflows; rescale",)),
        ("one huge", ("so large that their variance overflows; rescale",)),
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
        ('{"means": [[1e200]], "stds": [1.0]}', ("the second moment of", "overflows; rescale the data")),
        ('{"means": [[1e100]], "stds": [1e100]}', ("the integrands overflow at lam =", "rescale the data")),
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
