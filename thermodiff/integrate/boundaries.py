"""What walls ask of a run: starts between them, and noise that goes with the wall."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from thermodiff.kernels import langevin
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]


def require_inside(process: Langevin, x0: FloatArray) -> None:
    """Refuse starts behind a reflecting wall; a periodic coordinate may be counted from anywhere."""
    for i, (kind, low, high) in enumerate(process.walls):
        outside = int(np.count_nonzero((x0[:, i] < low) | (x0[:, i] > high))) if int(kind) == langevin.REFLECTING else 0
        if outside:
            raise ValueError(
                f"{outside} of {len(x0)} paths start outside the reflecting walls of coordinate {i}, {low:g} and {high:g}; "
                "move them inside."
            )


def warn_of_oblique_mirrors(process: Langevin, factor: FloatArray, *, stacklevel: int) -> None:
    """Warn of mirrors for coordinates whose noise goes with that of others: they are not walls without a flux."""
    if factor.shape[1] == 1:
        return
    tied = np.abs(factor @ factor.T) > 1e-12 * np.abs(factor).max() ** 2
    np.fill_diagonal(tied, False)
    found = [i for i in range(process.dim) if process.walls[i, 0] == langevin.REFLECTING and tied[i].any()]
    if found:
        warnings.warn(
            f"the reflecting coordinate {found[0]} shares its noise with others (D is not diagonal there): paths are turned "
            "back along the axis, which is not the wall without flux that leaves exp(-U) invariant; use coordinates in "
            "which D is diagonal.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
