"""Where states go as they come: Zarr stores here; files, arrays and checkpoints in test_simulate_runs."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from user_dynamics import double_well

import thermodiff as td
from thermodiff.integrate import kept
from thermodiff.kernels.jit import LANES

WELL = td.Langevin(double_well, (1.0,), 0.5, dim=1)
N = 6 * LANES + 30
X0 = 0.5 * np.random.default_rng(0).standard_normal((N, 1))
GIVEN = {"times": [0.0, 0.1, 0.3], "dt": 0.02, "rng": 5, "chunk": 1}


class Stop(Exception):
    pass


def stop(done: int, tasks: int) -> None:
    if done == 3:
        raise Stop


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return td.simulate(WELL, X0, **GIVEN).states


@pytest.mark.parametrize("piece", [1, 4, 1000])
@pytest.mark.parametrize("most", [1, 700, 2**19], ids=lambda most: f"chunks of {most}")
def test_a_zarr_store_holds_the_states(most: int, piece: int, states: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    zarr = pytest.importorskip("zarr")
    monkeypatch.setattr(kept, "ZARR_CHUNK", most)
    path = td.simulate(WELL, X0, out=tmp_path / "new" / "run.zarr", **GIVEN | {"chunk": piece})
    assert repr(path) == f"Path({N} paths in d = 1 at 3 times, t = 0 ... 0.3)"
    np.testing.assert_array_equal(path.states[:], states)
    np.testing.assert_array_equal(path.final, states[-1])
    assert os.listdir(tmp_path / "new") == ["run.zarr"]
    stored = zarr.open_array(str(tmp_path / "new" / "run.zarr"), mode="r")
    assert stored.dtype == np.float64
    # No chunk belongs to two pieces, and none is much larger than asked for.
    paths = min(piece * LANES, N)
    assert stored.chunks == (min(max(most // paths, 1), 3), paths, 1)
    np.testing.assert_array_equal(stored[:], states)


def test_heat_goes_beside_a_zarr_store(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    found = td.simulate(WELL, X0, out=str(tmp_path / "run.zarr"), heat=True, **GIVEN)
    np.testing.assert_array_equal(found.heat, td.simulate(WELL, X0, heat=True, **GIVEN).heat)


def test_a_store_of_before_is_replaced_by_a_whole_one_only(states: np.ndarray, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    target = tmp_path / "run.zarr"

    def stored() -> np.ndarray:
        return zarr.open_array(str(target), mode="r")[:]

    with pytest.raises(Stop):
        td.simulate(WELL, X0, out=target, progress=stop, **GIVEN)
    assert os.listdir(tmp_path) == []
    td.simulate(WELL, X0, out=target, **GIVEN)
    with pytest.raises(Stop):
        td.simulate(WELL, X0 + 1.0, out=target, progress=stop, **GIVEN)
    np.testing.assert_array_equal(stored(), states)
    td.simulate(WELL, X0[:300], out=target, **GIVEN)
    np.testing.assert_array_equal(stored(), states[:, :300])
    assert os.listdir(tmp_path) == ["run.zarr"]


def test_what_is_not_such_a_store_is_left_alone(tmp_path: Path) -> None:
    """A folder, a file, and a Zarr group with arrays of its own."""
    zarr = pytest.importorskip("zarr")
    folder, file, group = (tmp_path / f"{name}.zarr" for name in ("folder", "file", "group"))
    folder.mkdir()
    for letter in (folder / "letter.txt", file):
        letter.write_text("dear")
    zarr.create_array(str(group / "inner"), shape=(3,), dtype="float64")[:] = [1.0, 2.0, 3.0]
    zarr.open_group(str(group))
    for taken in (folder, file, group):
        with pytest.raises(ValueError, match=rf"{taken.name}' exists and is not a Zarr array; choose another name"):
            td.simulate(WELL, X0, out=taken, **GIVEN)
    assert (folder / "letter.txt").read_text() == file.read_text() == "dear"
    assert zarr.open_array(str(group / "inner"), mode="r")[:].tolist() == [1.0, 2.0, 3.0]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    """They are refused before anything is computed, and nothing is left behind."""
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("dear")
    for name, message in (
        ("folder.npy", "is a folder, and a file is to be written there"),
        ("file/o.npy", "file' is a file, and a folder is needed there"),
        ("file/deeper/o.zarr", "file' is a file, and a folder is needed there"),
    ):
        with pytest.raises(ValueError, match=f"out: .*{message}; choose another name"):
            td.simulate(WELL, X0, out=tmp_path / name, progress=stop, **GIVEN)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npy"]


def test_an_array_that_cannot_be_written_to_is_refused_first() -> None:
    out = np.empty((3, *X0.shape))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only; pass an array that can be written to"):
        td.simulate(WELL, X0, out=out, progress=stop, **GIVEN)


def test_without_zarr_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"needs zarr; install it with: pip install 'thermodiff\[zarr\]'"):
        td.simulate(WELL, X0, out=tmp_path / "new" / "run.zarr", **GIVEN)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call here")
def test_room_for_a_file_is_taken_before_the_run(
    states: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full later ends a program that writes to a memory map, without a word."""
    asked, number = [], errno.ENOSPC

    def reserve(file: int, start: int, size: int) -> None:
        asked.append((start, size, os.fstat(file).st_size))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with pytest.raises(
        OSError, match=r"out needs .* GB for .*could not be reserved \(No space.*make room for \d+ bytes.*run\.npy"
    ) as found:
        td.simulate(WELL, X0, out=tmp_path / "run.npy", progress=stop, **GIVEN)
    assert (found.value.errno, os.listdir(tmp_path)) == (errno.ENOSPC, [])
    start, size, whole = asked[0]
    assert start == 0
    assert size == whole > states.nbytes
    # Where a file system cannot reserve anything, the run goes on.
    for number in (errno.EOPNOTSUPP, errno.EINVAL):  # noqa: B007
        path = td.simulate(WELL, X0, out=tmp_path / "run.npy", **GIVEN)
        np.testing.assert_array_equal(path.states, states)
    monkeypatch.delattr(os, "posix_fallocate")
    np.testing.assert_array_equal(td.simulate(WELL, X0, out=tmp_path / "run.npy", **GIVEN).states, states)
    assert os.listdir(tmp_path) == ["run.npy"]
