"""First-passage times of an ensemble."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, count, finite_number, points, seed_words
from thermodiff._progress import Progress, reporting
from thermodiff._tasks import in_order
from thermodiff.integrate.stability import MOST_PATHS, sampled, warn_if_too_large
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.passage import passage
from thermodiff.kernels.tasks import blocks_per_task
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]

CLOSEST = 1e-150
"""Least distance of the levels."""


@dataclass(frozen=True, eq=False, repr=False)
class Passage:
    """What `first_passage` returns.

    Attributes
    ----------
    times : (n,) array
        Time of the first touch; inf for paths that had not touched a level by ``t_max``.
    sides : (n,) array of int
        +1 where the upper level was touched, -1 the lower, 0 neither.
    states : (n, d) array
        State when the path stopped; the other coordinates are those at the end of the step of the touch.
    key : tuple of int
        The random key.
    """

    times: FloatArray
    sides: npt.NDArray[np.int64]
    states: FloatArray
    key: tuple[int, int]

    def __repr__(self) -> str:
        done = int(np.count_nonzero(self.sides))
        return f"Passage({done} of {self.sides.size} paths touched a level)"


def first_passage(
    process: Langevin,
    x0: npt.ArrayLike,
    *,
    t_max: float,
    dt: float,
    low: float = -np.inf,
    high: float = np.inf,
    coordinate: int = 0,
    rng: Any = None,
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Passage:
    """Run each path until one coordinate first touches a level.

    Steps are Euler's; touches of either level between the ends of a step are drawn exactly from the Brownian bridge, with
    their time, so that for constant drift there is no error of the step at all, however long the step and however close the
    levels, and for others it is of first order in ``dt``.

    Parameters
    ----------
    process : Langevin or Linear
        With a constant D and without walls.
    x0 : (n, d) array
        First states at t = 0, strictly between the levels.
    t_max, dt : float
        When to give up, and the longest step.
    low, high : float
        The levels; give at least one.
    coordinate : int
        Which coordinate is watched.
    rng, executor, chunk, progress
        As for `simulate`.

    Returns
    -------
    Passage
    """
    if not isinstance(process, Langevin):
        raise TypeError(f"first_passage: it needs a Langevin process, got {type(process).__name__}.")
    if process.state_dependent or callable(process.diffusivity) or process.walls.any():
        raise ValueError(
            "first_passage: it needs a constant diffusivity and no walls; the bridge between steps is Brownian."
        )
    x0 = points("x0", x0, process.dim)
    coordinate = count("coordinate", coordinate, 0)
    if coordinate >= process.dim:
        raise ValueError(f"coordinate must be below dim = {process.dim}, got {coordinate}.")
    low, high = _levels(low, high)
    outside = int(np.count_nonzero((x0[:, coordinate] <= low) | (x0[:, coordinate] >= high)))
    if outside:
        raise ValueError(f"{outside} of {len(x0)} paths start at or beyond a level; start them strictly between.")
    mix = process.mix(np.zeros(1))[0]
    if not np.any(mix[coordinate]):
        raise ValueError(f"coordinate {coordinate} has no noise; use simulate and look for the crossing.")
    steps, key = _steps(t_max, dt, process.dim), seed_words(rng)
    run = _Run(process, mix, key, t_max / steps, steps, coordinate, low, high)
    some = sampled(len(x0), MOST_PATHS)
    warned = warn_if_too_large(process, [(0.0, run.h, x0[some])], stacklevel=2)
    size = (blocks_per_task(len(x0), steps * process.dim) if chunk is None else count("chunk", chunk)) * LANES
    parts = [slice(first, min(first + size, len(x0))) for first in range(0, len(x0), size)]
    pieces = []
    with (
        closing(in_order(run, len(parts), executor, inputs=lambda k: (parts[k].start // LANES, x0[parts[k]]))) as found,
        reporting(progress, "first_passage") as report,
    ):
        for piece in found:
            pieces.append(piece)
            report(len(pieces), len(parts))
    times = np.concatenate([piece[0] for piece in pieces])
    sides = np.concatenate([piece[1] for piece in pieces])
    states = np.concatenate([piece[2] for piece in pieces])
    if not np.all(np.isfinite(states)):
        lost = int(np.count_nonzero(~np.isfinite(states).all(axis=1)))
        raise DivergenceError(f"{lost} of {len(x0)} paths left the finite numbers; use a smaller dt.")
    if not warned:
        end = min(float(np.median(times[some])), float(t_max))
        warn_if_too_large(process, [(end, run.h, states[some])], stacklevel=2)
    return Passage(times, sides, states, (int(key[0]), int(key[1])))


def _levels(low: Any, high: Any) -> tuple[float, float]:
    """The levels as numbers; infinite where there is none."""
    low, high = (
        float(value) if isinstance(value, Real) and value in (-np.inf, np.inf) else finite_number(name, value)
        for name, value in (("low", low), ("high", high))
    )
    if not low < high or (np.isinf(low) and np.isinf(high)):
        raise ValueError(f"low and high must leave an interval with at least one end, got ({low:g}, {high:g}).")
    if high - low < CLOSEST:
        raise ValueError(f"low and high are {high - low:g} apart, which float64 cannot square; choose larger units.")
    return low, high


def _steps(t_max: Any, dt: Any, dim: int) -> int:
    """How many steps there are at most."""
    steps = np.ceil(above("t_max", t_max, 0.0, "it ends the run") / above("dt", dt, 0.0, "it is the step") - 1e-9)
    # The random numbers of a path begin again after 2**32 groups of four.
    most = min(2**32, 2**34 // dim)
    if steps > most:
        raise ValueError(
            f"t_max / dt asks for {steps:.3g} steps, and the random numbers of a path are enough for {most}; "
            "use a larger dt or a smaller t_max."
        )
    return max(int(steps), 1)


@dataclass(frozen=True)
class _Run:
    """One task; what travels are the process and numbers."""

    process: Langevin
    mix: FloatArray
    key: npt.NDArray[np.uint32]
    h: float
    steps: int
    coordinate: int
    low: float
    high: float

    def __call__(self, given: tuple[int, FloatArray]) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
        block, x0 = given
        n, blocks = len(x0), -(-len(x0) // LANES)
        states = np.empty((x0.shape[1], blocks * LANES))
        states[:, :n], states[:, n:] = x0.T, x0[-1:].T
        times, sides = np.full(blocks * LANES, np.inf), np.zeros(blocks * LANES, dtype=np.int64)
        made = self.process.compiled()
        # Far beyond any path, where there is no level.
        low, high = max(self.low, -1e150), min(self.high, 1e150)
        passage(
            made.field, made.params, self.mix, self.key, block, block + blocks, 0.0, self.h, self.steps,
            self.coordinate, low, high, states, times, sides,
        )  # fmt: skip
        return times[:n], sides[:n], states[:, :n].T.copy()
