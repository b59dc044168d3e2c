"""First-passage times of an ensemble."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, choice, count, finite_number, points, seed_words
from thermodiff._progress import Progress, Report, reporting
from thermodiff._tasks import in_order, pause
from thermodiff.fields import StopCondition
from thermodiff.integrate.boundaries import require_inside, warn_of_oblique_mirrors
from thermodiff.integrate.checkpoint import Checkpoint, description, per_task
from thermodiff.integrate.run import BREATH, CALL, STRETCH
from thermodiff.integrate.stability import (
    MOST_PATHS,
    MOST_TIMES,
    SEE_WHETHER,
    sampled,
    shown,
    warn_if_too_large,
    without_value,
)
from thermodiff.integrate.stops import Levels, Surface
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.passage import passage
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]
Seen = list[tuple[float, float, FloatArray]]
"""Time, step and some states, to be looked at."""

MOST_LEVELS = 2**24
"""Values of a D(t), one for each step."""


@dataclass(frozen=True, eq=False, repr=False)
class Passage:
    """What `first_passage` returns.

    Attributes
    ----------
    times : (n,) array
        Time of the first touch; inf for paths that had touched nothing by ``t_max``, nan for lost ones.
    sides : (n,) array of int
        +1 where the upper level was touched, -1 the lower, 0 neither; of a stop condition, whether it grew or fell to zero.
    states : (n, d) array
        State when the path stopped, drawn from the bridge as its time is; else at ``t_max``.
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
        return f"Passage({done} of {self.sides.size} paths stopped)"


def first_passage(
    process: Langevin,
    x0: npt.ArrayLike,
    *,
    t_max: float,
    dt: float,
    low: float = -np.inf,
    high: float = np.inf,
    coordinate: int = 0,
    stop: StopCondition | None = None,
    stop_params: Sequence[float] | Mapping[str, float] = (),
    t0: float = 0.0,
    rng: Any = None,
    on_divergence: Literal["raise", "mark"] = "raise",
    executor: Executor | None = None,
    chunk: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Passage:
    """Run each path until one coordinate first touches a level, or a function of the state passes through zero.

    Steps are Euler's; touches of either level between the ends of a step are drawn exactly from the Brownian bridge, with
    their time, so that for constant drift and D there is no error of the step at all, however long the step and however
    close the levels, and for others it is of first order in ``dt``.

    A mirror on the far side of a single level turns the path back, exactly where there is no drift.  On a ring a single
    level is reached from both sides, and two levels are the ends of the arc from ``low`` up to ``high`` on which the paths
    start, through the seam where ``high`` is the lower number.

    With ``stop``, the function of state and time is followed instead, as if it were a coordinate, with the variance that
    noise gives it by its gradient at both ends of the step.  That is exact for a plane, also one that moves, and of first
    order in ``dt`` for a curved surface; the error is small where the function grows as the distance from the surface does.

    Parameters
    ----------
    process : Langevin or Linear
    x0 : (n, d) array
        First states, strictly between the levels; on either side of a surface.
    t_max, dt : float
        When to give up, and the longest step.
    low, high : float
        The levels; give at least one.  They must lie within the walls of the coordinate.
    coordinate : int
        Which coordinate is watched.  Where it has no noise, as a position in underdamped dynamics, a straight line joins
        the ends of a step.
    stop, stop_params : StopCondition, sequence of float or mapping
        In place of levels: a function made by `thermodiff.stop_condition`, and its parameters.  A path ends where it first
        has the other sign than at its start.  It needs finite values on both sides, and where its gradient is zero on the
        surface nothing is known of what happens within a step.
    t0 : float
        Time at the start.
    on_divergence : {"raise", "mark"}
        What to do with paths that leave the finite numbers: raise `DivergenceError`, or go on and mark them.
    rng, executor, chunk, checkpoint, progress
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
    choice("on_divergence", on_divergence, ("raise", "mark"))
    ends = _ends(process, low, high, coordinate, stop, stop_params)
    require_inside(process, x0)
    t0, t_max = finite_number("t0", t0), finite_number("t_max", t_max)
    steps, key = _steps(t0, t_max, dt, process.dim), seed_words(rng)
    x0, h = ends.carried(x0, t0), (t_max - t0) / steps
    mix = process.mix(_middles(t0, h, steps) if callable(process.diffusivity) else np.array([t0]))
    warn_of_oblique_mirrors(process, mix[0], stacklevel=2)
    blocks, saved = per_task(len(x0), steps * process.dim, chunk, checkpoint is not None), None
    if checkpoint is not None:
        how = ends.description() | {"counts": steps, "chunk": blocks}
        whole = description(process, x0, np.array([t0, t_max]), mix) | how
        saved = Checkpoint(checkpoint, whole, rng, key)
        key = saved.key
    run = _Run(process, mix, key, t0, h, 0, steps, _stops(process, steps), ends)
    some = sampled(len(x0), MOST_PATHS)
    how_long: dict[str, Any] = {"rule": "passage", "duration": t_max - t0}
    warned = warn_if_too_large(process, [(t0, h, ends.ringed(x0[some]))], **how_long, stacklevel=2)
    ranges = [slice(first, min(first + blocks * LANES, len(x0))) for first in range(0, len(x0), blocks * LANES)]
    with reporting(progress, "first_passage") as report:
        paths, seen = _all(run, x0, ranges, executor, saved, report)
    times, states = paths.times, paths.states
    sides = ends.touched(paths)
    lost: npt.NDArray[np.bool_] = np.logical_not(np.isfinite(states).all(axis=1))
    if lost.any() and on_divergence == "raise":
        _raise_divergence(process, x0, t0, min(times[lost].min(), t_max), lost, key, stop)
    times[lost], sides[lost] = np.nan, 0
    if not warned:
        end = float(np.clip(np.nanmedian(times[some]), t0, t_max)) if not lost[some].all() else t_max
        on_way = [(t, h, ends.ringed(x)) for t, h, x in seen]
        warn_if_too_large(process, [*on_way, (end, h, states[some])], **how_long, stacklevel=2)
    return Passage(times, sides, states, (int(key[0]), int(key[1])), lost if on_divergence == "mark" else None)


def _raise_divergence(
    process: Langevin,
    x0: FloatArray,
    t0: float,
    first: float,
    lost: npt.NDArray[np.bool_],
    key: npt.NDArray[np.uint32],
    stop: StopCondition | None,
) -> None:
    """Say how many paths were lost, and by when the ``first``."""
    other = "" if stop is None else ", or stop has no finite value or gradient where they went"
    found, why = without_value(process, x0, t0), SEE_WHETHER.format("where the paths go")
    if found is not None:
        what, bad = found
        why = (
            f"At the start of {bad.sum()} paths, first of path {np.argmax(bad)}, at x = {shown(x0[np.argmax(bad)])}, t = "
            f"{t0:g}, {what}: start elsewhere, or correct the function."
        )
    raise DivergenceError(
        f"{lost.sum()} of {len(x0)} paths left the finite numbers, the first by t = {first:.6g} (key {key[0]}, {key[1]})"
        f'{other}; use a smaller dt, or on_divergence="mark" to go on without them. {why}'
    )


def _ends(process: Langevin, low: Any, high: Any, coordinate: Any, stop: Any, stop_params: Any) -> Levels | Surface:
    """What ends a path."""
    if stop is None:
        if np.size(np.asarray(stop_params, dtype=object)):
            raise ValueError(f"stop_params belong to stop=, which is missing; got {stop_params!r:.60}.")
        coordinate = count("coordinate", coordinate, 0)
        if coordinate >= process.dim:
            raise ValueError(f"coordinate must be below dim = {process.dim}, got {coordinate}.")
        return Levels.of(coordinate, low, high, process.walls[coordinate])
    usual = ((low, -np.inf), (high, np.inf), (coordinate, 0))
    if not all(np.ndim(value) == 0 and value == default for value, default in usual):
        raise ValueError("give stop=, or low, high and coordinate, not both; a level can be part of the stop condition.")
    return Surface.of(stop, stop_params, process.walls)


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


def _all(
    run: _Run, x0: FloatArray, ranges: list[slice], executor: Executor | None, saved: Checkpoint | None, report: Report
) -> tuple[_Paths, Seen]:
    """All paths to their end, some at a time; those that go on are taken up again stretch by stretch."""
    paths, seen, stretches = _Paths.at(x0), [], run.stretches()
    behind = [0] * len(ranges) if saved is None else _resumed(paths, ranges, saved, [each.begin for each in stretches[1:]])
    total = len(ranges) * len(stretches)
    for number, stretch in enumerate(stretches):
        late = [k for k, done in enumerate(behind) if done == number and (number == 0 or paths.alive[ranges[k]].any())]

        def given(j: int, late: list[int] = late) -> tuple[int, _Paths]:
            return ranges[late[j]].start, paths.part(ranges[late[j]])

        with closing(in_order(stretch, len(late), executor, inputs=given)) as found:
            for k, (piece, looked) in zip(late, found, strict=True):
                paths.put(ranges[k], piece)
                seen += looked
                behind[k] = number + 1 if piece.alive.any() else len(stretches)
                if saved is not None:
                    _save(saved, k, piece, stretches[number + 1].begin if behind[k] < len(stretches) else None)
                report(sum(behind), total)
    return paths, seen


def _resumed(paths: _Paths, ranges: list[slice], saved: Checkpoint, begins: list[int]) -> list[int]:
    """Put what a checkpoint holds into ``paths``; returns how many stretches are behind each range."""
    missing, behind = set(saved.missing(len(ranges))), []
    for k, part in enumerate(ranges):
        whole = None if k in missing else saved.load(k)
        records = saved.parts(k, begins) if whole is None else [whole]
        if whole is not None:
            saved.drop_part(k)
        if records:
            paths.put(part, _Paths(**records[-1]))
        behind.append(len(records) if whole is None else len(begins) + 1)
    return behind


def _save(saved: Checkpoint, k: int, piece: _Paths, begin: int | None) -> None:
    """Write paths that go on with step ``begin``, or those that are at their end."""
    if begin is None:
        saved.save(k, vars(piece))
        saved.drop_part(k)
    else:
        saved.add_part(k, begin, vars(piece))


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
    ends: Levels | Surface

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
        made = self.process.compiled()
        last, kind = block + times.size // LANES, langevin.STATE if self.process.state_dependent else langevin.ADDITIVE
        watched = self.ends.watched(made)

        def march(begin: int, steps: int) -> None:
            mix = self.mix[begin - self.begin :][:steps] if len(self.mix) > 1 else self.mix
            passage(
                made.field, made.params, made.noise, made.noise_params, kind, mix, made.twist, self.key, block, last,
                self.t0, self.h, begin, steps, *watched, states, times, sides, alive,
            )  # fmt: skip

        return march
