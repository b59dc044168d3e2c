"""States of an ensemble at the asked times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    lam : (T,) array or None
        Log-SNR at ``times``; where lam(t) is infinite, the edge of the window that was used.  None for other dynamics.
    states : (T, n, d) array
        The first entry is the start.
    key : tuple of int or None
        The random key; None without noise.
    denoised : bool
        Whether the last state is the posterior mean at the end of the window.
    heat : (T, n) array or None
        Heat given to the bath up to each time: the integral of f . dx along the path.
    work : (T, n) array or None
        Work done on each path up to each time: the integral of dU/dt along the path.
    reduced : object or None
        What the reducer made of the states, which are None then.
    diverged : (n,) array of bool or None
        Which paths left the finite numbers, with ``on_divergence="mark"``.
    """

    times: FloatArray
    lam: FloatArray | None
    states: Any
    key: tuple[int, int] | None
    denoised: bool
    heat: FloatArray | None = None
    work: FloatArray | None = None
    reduced: Any = None
    diverged: npt.NDArray[np.bool_] | None = None

    def __repr__(self) -> str:
        if self.states is None:
            return f"Path(reduced to {type(self.reduced).__name__}, t = {self.times[0]:.4g} ... {self.times[-1]:.4g})"
        count, n, dim = self.states.shape
        times = f"t = {self.times[0]:.4g} ... {self.times[-1]:.4g}"
        return f"Path({n} paths in d = {dim} at {count} times, {times}{', denoised' if self.denoised else ''})"

    @property
    def final(self) -> FloatArray:
        """The last state, (n, d)."""
        return self.states[-1]
