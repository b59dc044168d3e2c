"""States of an ensemble at the asked times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """What an integrator returns.

    Attributes
    ----------
    times : (T,) array
        Descending for the reverse direction.
    lam : (T,) array
        Log-SNR at ``times``; where lam(t) is infinite, the edge of the window that was used.
    states : (T, n, d) array
        The first entry is the start.
    key : tuple of int or None
        The random key; None without noise.
    denoised : bool
        Whether the last state is the posterior mean at the end of the window.
    """

    times: FloatArray
    lam: FloatArray
    states: FloatArray
    key: tuple[int, int] | None
    denoised: bool

    def __repr__(self) -> str:
        count, n, dim = self.states.shape
        times = f"t = {self.times[0]:.4g} ... {self.times[-1]:.4g}"
        return f"Path({n} paths in d = {dim} at {count} times, {times}{', denoised' if self.denoised else ''})"

    @property
    def final(self) -> FloatArray:
        """The last state, (n, d)."""
        return self.states[-1]
