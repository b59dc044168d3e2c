"""First-passage times of an ensemble."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, count, finite_number, points, seed_words
from thermodiff._progress import Progress, reporting
from thermodiff._tasks import in_order
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.passage import passage
from thermodiff.kernels.tasks import blocks_per_task
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]


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

    Steps are Euler's; touches between the ends of a step are drawn from the Brownian bridge, with their time, so that for
    constant drift there is no error of the step at all, and for others it is of first order in ``dt``.

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
    low, high = (value if np.isinf(value) else finite_number(name, value) for name, value in (("low", low), ("high", high)))
    if not low < high or (np.isinf(low) and np.isinf(high)):
        raise ValueError(f"low and high must leave an interval with at least one end, got ({low:g}, {high:g}).")
    outside = int(np.count_nonzero((x0[:, coordinate] <= low) | (x0[:, coordinate] >= high)))
    if outside:
        raise ValueError(f"{outside} of {len(x0)} paths start at or beyond a level; start them strictly between.")
    mix = process.mix(np.zeros(1))[0]
    if not np.any(mix[coordinate]):
        raise ValueError(f"coordinate {coordinate} has no noise; use simulate and look for the crossing.")
    steps = int(np.ceil(above("t_max", t_max, 0.0, "it ends the run") / above("dt", dt, 0.0, "it is the step") - 1e-9))
    key = seed_words(rng)
    run = _Run(process, mix, key, t_max / steps, steps, coordinate, low, high)
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
    return Passage(times, sides, states, (int(key[0]), int(key[1])))


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
