"""First-passage times of an ensemble."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, choice, count, finite_number, points, seed_words
from thermodiff._progress import Progress, Report, reporting
from thermodiff._tasks import in_order, pause
from thermodiff.integrate.boundaries import require_inside, warn_of_oblique_mirrors
from thermodiff.integrate.run import BREATH, CALL, STRETCH
from thermodiff.integrate.stability import MOST_PATHS, MOST_TIMES, sampled, warn_if_too_large
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.passage import passage
from thermodiff.kernels.tasks import blocks_per_task
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]
Seen = list[tuple[float, float, FloatArray]]
"""Time, step and some states, to be looked at."""

MOST_LEVELS = 2**24
"""Values of a D(t), one for each step."""
CLOSEST = 1e-150
"""Least distance of the levels."""


@dataclass(frozen=True, eq=False, repr=False)
class Passage:
    """What `first_passage` returns.

    Attributes
    ----------
    times : (n,) array
        Time of the first touch; inf for paths that had not touched a level by ``t_max``, nan for lost ones.
    sides : (n,) array of int
        +1 where the upper level was touched, -1 the lower, 0 neither.
    states : (n, d) array
        State when the path stopped; the other coordinates are those at the end of the step of the touch.
    key : tuple of int
        The random key.
    diverged : (n,) array of bool, optional
        Paths that left the finite numbers, with ``on_divergence="mark"``.
    """

    times: FloatArray
    sides: npt.NDArray[np.int64]
    states: FloatArray
    key: tuple[int, int]
    diverged: npt.NDArray[np.bool_] | None = None

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
    t0: float = 0.0,
    rng: Any = None,
    on_divergence: Literal["raise", "mark"] = "raise",
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Passage:
    """Run each path until one coordinate first touches a level.

    Steps are Euler's; touches of either level between the ends of a step are drawn exactly from the Brownian bridge, with
    their time, so that for constant drift and D there is no error of the step at all, however long the step and however
    close the levels, and for others it is of first order in ``dt``.

    A mirror on the far side of a single level turns the path back, exactly in the same sense.  On a ring a single level is
    reached from both sides, and two levels are the ends of the arc from ``low`` up to ``high`` on which the paths start,
    through the seam where ``high`` is the lower number.

    Parameters
    ----------
    process : Langevin or Linear
    x0 : (n, d) array
        First states, strictly between the levels.
    t_max, dt : float
        When to give up, and the longest step.
    low, high : float
        The levels; give at least one.  They must lie within the walls of the coordinate.
    coordinate : int
        Which coordinate is watched.  Where it has no noise, as a position in underdamped dynamics, a straight line joins
        the ends of a step.
    t0 : float
        Time at the start.
    on_divergence : {"raise", "mark"}
        What to do with paths that leave the finite numbers: raise `DivergenceError`, or go on and mark them.
    rng, executor, chunk, progress
        As for `simulate`.

    Returns
    -------
    Passage

    Raises
    ------
    DivergenceError
        If paths leave the finite numbers.
    """
    if not isinstance(process, Langevin):
        raise TypeError(f"first_passage: it needs a Langevin process, got {type(process).__name__}.")
    x0 = points("x0", x0, process.dim)
    coordinate = count("coordinate", coordinate, 0)
    if coordinate >= process.dim:
        raise ValueError(f"coordinate must be below dim = {process.dim}, got {coordinate}.")
    choice("on_divergence", on_divergence, ("raise", "mark"))
    levels = Levels.of(low, high, process.walls[coordinate])
    require_inside(process, x0)
    x0 = levels.carried(x0, coordinate)
    t0, t_max = finite_number("t0", t0), finite_number("t_max", t_max)
    steps, key = _steps(t0, t_max, dt, process.dim), seed_words(rng)
    h = (t_max - t0) / steps
    mix = process.mix(_middles(t0, h, steps) if callable(process.diffusivity) else np.array([t0]))
    warn_of_oblique_mirrors(process, mix[0], stacklevel=2)
    run = _Run(process, mix, key, t0, h, 0, steps, _stops(process, steps), coordinate, levels)
    some = sampled(len(x0), MOST_PATHS)
    how_long: dict[str, Any] = {"rule": "passage", "duration": t_max - t0}
    warned = warn_if_too_large(process, [(t0, h, levels.ringed(x0[some], coordinate))], **how_long, stacklevel=2)
    size = (blocks_per_task(len(x0), steps * process.dim) if chunk is None else count("chunk", chunk)) * LANES
    with reporting(progress, "first_passage") as report:
        paths, seen = _all(run, x0, size, executor, report)
    times, states = paths.times, paths.states
    sides, states[:, coordinate] = levels.touched(paths.sides, states[:, coordinate])
    lost: npt.NDArray[np.bool_] = np.logical_not(np.isfinite(states).all(axis=1))
    if lost.any() and on_divergence == "raise":
        raise DivergenceError(
            f'{lost.sum()} of {len(x0)} paths left the finite numbers; use a smaller dt, or on_divergence="mark" to go on '
            "without them."
        )
    times[lost], sides[lost] = np.nan, 0
    if not warned:
        end = float(np.clip(np.nanmedian(times[some]), t0, t_max)) if not lost[some].all() else t_max
        on_way = [(t, h, levels.ringed(x, coordinate)) for t, h, x in seen]
        warn_if_too_large(process, [*on_way, (end, h, states[some])], **how_long, stacklevel=2)
    return Passage(times, sides, states, (int(key[0]), int(key[1])), lost if on_divergence == "mark" else None)


@dataclass(frozen=True)
class Levels:
    """What ends a path: ``low`` and ``high`` on the line on which the watched coordinate moves.

    Beyond a mirror lies the image of the one level there is, and on a ring its next turn: touching either is touching it.
    """

    low: float
    high: float
    only: float | None
    """The single level that both stand for; None for two levels."""
    side: int
    """What touching it is called: its own side beyond a mirror; 0 on a ring, where either side is told apart."""
    wall: FloatArray
    """(kind, low, high) of the mirror, or of the ring; zeros for none."""

    @classmethod
    def of(cls, low: Any, high: Any, wall: FloatArray) -> Levels:
        kind, bottom, top = int(wall[0]), float(wall[1]), float(wall[2])
        low, high = _levels(low, high, around=kind == langevin.PERIODIC)
        free = np.zeros(3)
        if kind == langevin.FREE:
            return cls(low, high, None, 0, free)
        for name, value in (("low", low), ("high", high)):
            if np.isfinite(value) and not bottom <= value <= top:
                raise ValueError(f"{name} = {value:g} lies outside the walls, {bottom:g} and {top:g}; no path gets there.")
        both = np.isfinite(low) and np.isfinite(high)
        if kind == langevin.PERIODIC:
            if both:
                # The arc from low up to high, through the seam where high is below.
                return cls(low, high if low < high else high + top - bottom, None, 0, wall)
            only, length = (high, top - bottom) if np.isinf(low) else (low, top - bottom)
            return cls(only - length, only, only, 0, wall) if np.isinf(low) else cls(only, only + length, only, 0, wall)
        if both:
            return cls(low, high, None, 0, free)
        if np.isinf(low):
            mirror = np.array([langevin.REFLECTING, bottom, np.inf])
            return cls(2.0 * bottom - high, high, high, 1, mirror if np.isfinite(bottom) else free)
        mirror = np.array([langevin.REFLECTING, -np.inf, top])
        return cls(low, 2.0 * top - low, low, -1, mirror if np.isfinite(top) else free)

    @property
    def ring(self) -> bool:
        return int(self.wall[0]) == langevin.PERIODIC

    def carried(self, x0: FloatArray, coordinate: int) -> FloatArray:
        """The starts, on a ring by whole turns to between the levels.

        Raises
        ------
        ValueError
            If they are not strictly between them.
        """
        x0 = x0.copy()
        if self.ring:
            length = self.wall[2] - self.wall[1]
            x0[:, coordinate] -= length * np.floor((x0[:, coordinate] - self.low) / length)
        x = x0[:, coordinate]
        outside = int(np.count_nonzero((x <= self.low) | (x >= self.high)))
        if outside:
            through = ", or give low above high for the arc through the seam" if self.ring and self.only is None else ""
            raise ValueError(
                f"{outside} of {len(x0)} paths start at or beyond a level; start them strictly between{through}."
            )
        return x0

    def ringed(self, x: FloatArray, coordinate: int) -> FloatArray:
        """States with the watched coordinate back in the interval of its ring."""
        if not self.ring:
            return x
        x, length = x.copy(), self.wall[2] - self.wall[1]
        x[:, coordinate] -= length * np.floor((x[:, coordinate] - self.wall[1]) / length)
        return x

    def touched(self, sides: npt.NDArray[np.int64], x: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Sides as they are told, and the watched coordinate, at its level where one was touched."""
        level = np.where(sides > 0, self.high, self.low) if self.only is None else self.only
        if self.ring:
            level = np.where(level > self.wall[2], level - (self.wall[2] - self.wall[1]), level)
        told = sides if self.side == 0 else np.abs(sides) * self.side
        return told, np.where(sides != 0, level, self.ringed(x[:, None], 0)[:, 0])


def _levels(low: Any, high: Any, *, around: bool) -> tuple[float, float]:
    """The levels as numbers; infinite where there is none.  ``around`` a ring the upper one may be below the other."""
    low, high = (
        float(value) if isinstance(value, Real) and value in (-np.inf, np.inf) else finite_number(name, value)
        for name, value in (("low", low), ("high", high))
    )
    ordered = low < high or (around and low != high and np.isfinite(low) and np.isfinite(high))
    if not ordered or (np.isinf(low) and np.isinf(high)):
        raise ValueError(f"low and high must leave an interval with at least one end, got ({low:g}, {high:g}).")
    if abs(high - low) < CLOSEST:
        raise ValueError(f"low and high are {high - low:g} apart, which float64 cannot square; choose larger units.")
    return low, high


def _steps(t0: float, t_max: float, dt: Any, dim: int) -> int:
    """How many steps there are at most."""
    if not t_max > t0:
        raise ValueError(f"t_max must be later than the start at t0 = {t0:g}, got {t_max:g}.")
    steps = np.ceil((t_max - t0) / above("dt", dt, 0.0, "it is the step") - 1e-9)
    # The random numbers of a path begin again after 2**32 groups of four.
    most = min(2**32, 2**34 // dim)
    if steps > most:
        raise ValueError(
            f"(t_max - t0) / dt asks for {steps:.3g} steps, and the random numbers of a path are enough for {most}; "
            "use a larger dt or a smaller t_max."
        )
    return max(int(steps), 1)


def _middles(t0: float, h: float, steps: int) -> FloatArray:
    """The middle of each step."""
    if steps > MOST_LEVELS:
        raise ValueError(
            f"(t_max - t0) / dt asks for {steps} values of D(t), and {MOST_LEVELS} is the most; "
            "use a larger dt or a smaller t_max."
        )
    return np.linspace(t0 + 0.5 * h, t0 + (steps - 0.5) * h, steps)


def _stops(process: Langevin, steps: int) -> npt.NDArray[np.int64]:
    """Numbers of steps after which some paths are looked at: powers of eight, as all may end long before the last step.

    There are few, for a look costs as much as some thousand steps.
    """
    stops = 8 ** np.arange(4, 11, dtype=np.int64)
    if getattr(getattr(process, "drift", None), "timed", False):
        # Stops in the golden ratio lie evenly, and keep time with no period.
        stops = np.union1d(stops, (steps * (np.arange(1, MOST_TIMES + 1) * 0.6180339887498949 % 1.0)).astype(np.int64))
    return stops[(stops > 0) & (stops < steps)]


@dataclass(frozen=True, eq=False)
class _Paths:
    """Paths under way, or at their end."""

    states: FloatArray
    """(n, d)"""
    times: FloatArray
    sides: npt.NDArray[np.int64]
    alive: FloatArray
    """1 for paths that are under way."""

    @classmethod
    def at(cls, x0: FloatArray) -> _Paths:
        n = len(x0)
        return cls(x0.copy(), np.full(n, np.inf), np.zeros(n, dtype=np.int64), np.ones(n))

    def part(self, part: slice) -> _Paths:
        return _Paths(self.states[part], self.times[part], self.sides[part], self.alive[part])

    def put(self, part: slice, new: _Paths) -> None:
        self.states[part], self.times[part], self.sides[part] = new.states, new.times, new.sides
        self.alive[part] = new.alive

    def padded(self) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64], FloatArray]:
        """States (d, whole blocks), times and so on.  Lanes beyond the last path repeat it, and are not waited for."""
        more = -len(self.times) % LANES
        states = np.concatenate([self.states, np.repeat(self.states[-1:], more, axis=0)])
        times = np.concatenate([self.times, np.full(more, np.inf)])
        sides = np.concatenate([self.sides, np.zeros(more, dtype=np.int64)])
        return np.ascontiguousarray(states.T), times, sides, np.concatenate([self.alive, np.zeros(more)])


def _all(run: _Run, x0: FloatArray, size: int, executor: Executor | None, report: Report) -> tuple[_Paths, Seen]:
    """All paths to their end, in tasks of ``size`` paths; those that go on are taken up again stretch by stretch."""
    paths, seen, done = _Paths.at(x0), [], 0
    late, stretches = [slice(first, min(first + size, len(x0))) for first in range(0, len(x0), size)], run.stretches()
    total = len(late) * len(stretches)
    for number, stretch in enumerate(stretches):

        def given(k: int, late: list[slice] = late) -> tuple[int, _Paths]:
            return late[k].start, paths.part(late[k])

        with closing(in_order(stretch, len(late), executor, inputs=given)) as found:
            for part, (piece, looked) in zip(late, found, strict=True):
                paths.put(part, piece)
                seen += looked
                done += 1 if piece.alive.any() else len(stretches) - number
                report(done, total)
        late = [part for part in late if paths.alive[part].any()]
        if not late:
            break
    return paths, seen


@dataclass(frozen=True)
class _Run:
    """One task: some of the steps of some paths; what travels are the process and numbers."""

    process: Langevin
    mix: FloatArray
    """Of each of the steps, or of all."""
    key: npt.NDArray[np.uint32]
    t0: float
    h: float
    begin: int
    """Number of the first step."""
    steps: int
    stops: npt.NDArray[np.int64]
    coordinate: int
    levels: Levels

    def stretches(self) -> list[_Run]:
        """The run in pieces of time of some seconds for one block."""
        pieces = -(-self.steps * self.process.dim * LANES // STRETCH)
        if pieces <= 1:
            return [self]
        cuts = self.steps * np.arange(pieces + 1, dtype=np.int64) // pieces
        stops = np.union1d(self.stops, cuts[1:-1][sampled(pieces - 1, MOST_TIMES)])
        found = []
        for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            mix, own = self.mix[a:b] if len(self.mix) > 1 else self.mix, stops[(stops > a) & (stops <= b)]
            found.append(replace(self, mix=mix, begin=a, steps=b - a, stops=own))
        return found

    def __call__(self, given: tuple[int, _Paths]) -> tuple[_Paths, Seen]:
        """Carry the paths from number ``given[0]`` on; returns them, and of the first ones what was seen on the way.

        The kernel is called for about `BREATH` seconds: between two calls an interrupt is heard, or that nobody waits.
        """
        first, paths = given
        n, (states, times, sides, alive) = len(paths.times), paths.padded()
        march, stops = self._march(first // LANES, states, times, sides, alive), self.stops if first == 0 else self.stops[:0]
        seen, done, end, size = [], self.begin, self.begin + self.steps, max(CALL // states.size, 1)
        while done < end and alive.any():
            pause()
            since, many = time.monotonic(), min(size, int(min([end, *stops[stops > done][:1]])) - done)
            march(done, many)
            done += many
            size = max(int(many * min(BREATH / max(time.monotonic() - since, 1e-6), 8.0)), 1)
            lanes = np.flatnonzero(alive[:LANES])
            if done in stops and lanes.size:
                seen.append((self.t0 + done * self.h, self.h, states[:, lanes[sampled(lanes.size, MOST_PATHS)]].T.copy()))
        return _Paths(states[:, :n].T.copy(), times[:n], sides[:n], alive[:n]), seen

    def _march(
        self, block: int, states: FloatArray, times: FloatArray, sides: npt.NDArray[np.int64], alive: FloatArray
    ) -> Callable[[int, int], None]:
        """What takes these blocks through ``steps`` steps from number ``begin`` on."""
        made, levels = self.process.compiled(), self.levels
        last, kind = block + times.size // LANES, langevin.STATE if self.process.state_dependent else langevin.ADDITIVE
        # Far beyond any path, where there is no level.
        low, high = max(levels.low, -1e150), min(levels.high, 1e150)
        walls, ring = made.walls.copy(), np.zeros((0, 3))
        walls[self.coordinate] = 0.0 if levels.ring else levels.wall
        if levels.ring:
            ring = np.zeros_like(made.walls)
            ring[self.coordinate] = levels.wall

        def march(begin: int, steps: int) -> None:
            mix = self.mix[begin - self.begin :][:steps] if len(self.mix) > 1 else self.mix
            passage(
                made.field, made.params, made.noise, made.noise_params, kind, mix, made.twist, self.key, block, last,
                self.t0, self.h, begin, steps, self.coordinate, low, high, walls, ring, states, times, sides, alive,
            )  # fmt: skip

        return march
