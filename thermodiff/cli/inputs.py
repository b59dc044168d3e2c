"""What the command line names: data and schedules."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import points
from thermodiff.densities import Density, GaussianMixture, PointCloud, Samples, paper_mixture
from thermodiff.schedules import SCHEDULES, VP, Schedule, StraightLine

FloatArray = npt.NDArray[np.float64]

HELD_OUT = 0.2
"""Share of the vectors that the network never sees."""
FINEST = 0.1
"""Smallest noise of the default window for vectors, as a share of their rms deviation per coordinate."""


@dataclass(frozen=True)
class Problem:
    """Data for one run.

    Attributes
    ----------
    law : Density
        The law with an exact score: the mixture, or the empirical law of the training vectors.
    train : Density or Samples
        What the network learns from.
    held_out : Samples or None
        Vectors that it does not see; None where the law itself is known.
    top : float or None
        Upper edge of the default window, where the schedule's own would be infinite.
    """

    law: Density
    train: Density | Samples
    held_out: Samples | None
    top: float | None


def require_files(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder in which a folder stands where a file is to be written."""
    for name in names:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder, and a file of that name is to be written; move it away.")


def read_schedule(name: str) -> Schedule:
    """A schedule by the name of the command line."""
    table: dict[str, Schedule] = {"VPx": VP(scale=0.1), "SL": StraightLine(scale=0.1)}
    if name in table:
        return table[name]
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from VP, VPx, SL, {', '.join(list(SCHEDULES)[1:])}.")
    return SCHEDULES[name]()


def read_data(name: str, seed: int) -> Problem:
    """The data by name or file."""
    if name == "mixture":
        return _known(paper_mixture(3))
    if name == "digits":
        return _vectors(_digits(), seed)
    path = Path(name)
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"unknown data {name!r}; give 'mixture', 'digits', a FILE.json or a FILE.npz.")
    if not path.is_file():
        raise ValueError(f"there is no file {name}.")
    return _known(_read_mixture(path)) if path.suffix == ".json" else _vectors(_read_vectors(path), seed)


def _known(law: Density) -> Problem:
    return Problem(law, law, None, None)


def _vectors(x: FloatArray, seed: int) -> Problem:
    """Split vectors into training and held-out ones."""
    n = x.shape[0]
    held = max(2, round(HELD_OUT * n))
    if n - held < 2:
        raise ValueError(f"got {n} vectors; at least 4 are needed to train on some and hold out the others.")
    order = np.random.default_rng([seed, 1]).permutation(n)
    train, test = x[order[held:]], x[order[:held]]
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(np.sqrt(np.mean(np.var(train, axis=0))))
    if not np.isfinite(spread):
        raise ValueError("the vectors are so large that their variance overflows; rescale them to unit size.")
    if not spread > 0.0:
        raise ValueError("all vectors are equal; there is nothing to diffuse.")
    return Problem(PointCloud(train), Samples(train), Samples(test), round(-2.0 * np.log(FINEST * spread), 1))


def _digits() -> FloatArray:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("--data digits needs scikit-learn; install it with: pip install 'thermodiff[learned]'") from None
    return np.asarray(load_digits(return_X_y=True)[0], dtype=np.float64) / 16.0


def _read_mixture(path: Path) -> GaussianMixture:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
    known = {"means", "stds", "covs", "weights"}
    if not isinstance(record, dict) or "means" not in record or not set(record) <= known:
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path} must hold an object with means, stds or covs, and optionally weights; it holds {got}.")
    return GaussianMixture(**record)


def _read_vectors(path: Path) -> FloatArray:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} cannot be read as an .npz of plain arrays (not an archive); write it with numpy.savez(file, x=vectors)."
        )
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array, not an archive; save it with numpy.savez")
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz of plain arrays ({error}).") from None
    tables = {name: value for name, value in arrays.items() if np.ndim(value) == 2}
    if len(tables) != 1:
        shapes = {name: np.shape(value) for name, value in arrays.items()}
        images = (
            "; images are for `thermodiff train --net unet`"
            if any(len(shape) in (3, 4) for shape in shapes.values())
            else ""
        )
        raise ValueError(f"{path} must hold exactly one array of vectors (n, d); it holds {shapes}{images}.")
    return points(f"{path}: {next(iter(tables))}", next(iter(tables.values())))
