"""Ensembles of user dynamics: only the asked times are kept, and any executor gives the same bits."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, choice, count, points, seed_words
from thermodiff._progress import Progress, reporting
from thermodiff._tasks import in_order
from thermodiff.integrate.boundaries import require_inside, warn_of_oblique_mirrors
from thermodiff.integrate.checkpoint import Checkpoint, description, reducer_description
from thermodiff.integrate.kept import Kept
from thermodiff.integrate.path import Path
from thermodiff.integrate.reducers import Reducer
from thermodiff.integrate.stability import MOST_PATHS, MOST_TIMES, sampled, warn_if_too_large
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import TASK_STEPS, blocks_per_task
from thermodiff.processes import Langevin, Linear

FloatArray = npt.NDArray[np.float64]

EXACT = -1
MOST_NORMALS = 2**34
"""Normals of a path: four for each value of the 32 bits that count them."""
COUNTING = 5.0
"""Seconds that a run goes on to count lost paths before it raises."""
SAVED_TASKS, SAVED_STEPS = 256, 2**28
"""Tasks of a run with a checkpoint, and the most steps of one: each is a file, and an hour's run must not make a million."""
MOST_STOPS = 24
"""Times between the asked ones at which some paths are looked at."""
MOST_RERUN = 256
"""Blocks with lost paths that are run again to find the first time."""
RULES = {
    "euler": langevin.EULER, "heun": langevin.HEUN, "milstein": langevin.MILSTEIN, "weak2": langevin.WEAK2,
    "rk4": langevin.RK4, "exact": EXACT,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Asked times and the steps between them: interval j is ``counts[j]`` steps of ``widths[j]`` from ``times[j]``."""

    times: FloatArray
    widths: FloatArray
    counts: npt.NDArray[np.int64]
    skips: npt.NDArray[np.int64]
    """Steps from ``times[j]`` that come before those of interval j: 0 unless it is the rest of one."""

    @classmethod
    def of(cls, times: npt.ArrayLike, dt: float, dim: int) -> Grid:
        """Each interval in ceil(interval / dt - 1e-9) equal steps; a single number means [0, times]."""
        dt = above("dt", dt, 0.0, "it is the longest step")
        try:
            asked = np.zeros(0) if isinstance(times, str | bytes) else np.asarray(times, dtype=np.float64)
        except (TypeError, ValueError):
            asked = np.zeros(0)
        if asked.ndim == 0:
            asked = np.array([0.0, float(asked)])
        if asked.ndim == 1 and asked.size == 2 and np.ndim(times) == 0 and not asked[1] > 0.0:
            raise ValueError(f"times: a number t means [0, t] and must be positive, got {times!r:.80}.")
        if asked.ndim != 1 or asked.size < 2 or not np.all(np.isfinite(asked)) or not np.all(np.diff(asked) > 0.0):
            raise ValueError(f"times must be at least two finite, increasing numbers, got {times!r:.80}.")
        # Differences of late times are off by the rounding of the times themselves.
        slack = 1e-9 + 4.0 * np.finfo(np.float64).eps * np.abs(asked).max() / dt
        wanted = np.maximum(np.ceil(np.diff(asked) / dt - min(slack, 0.01)), 1.0)
        if wanted.sum() * dim > MOST_NORMALS:
            raise ValueError(
                f"dt = {dt:g} makes {wanted.sum():.3g} steps of these times, more than the {MOST_NORMALS // dim} for which "
                f"a path in d = {dim} has random numbers; take a larger dt."
            )
        counts = wanted.astype(np.int64)
        return cls(asked, np.diff(asked) / counts, counts, np.zeros_like(counts))

    def cut(self, stops: npt.NDArray[np.int64]) -> tuple[Grid, npt.NDArray[np.intp]]:
        """The same steps with stops after these numbers of steps too, and which of its times are those of this grid."""
        ends = np.cumsum(self.counts)
        at = np.union1d(ends, stops[(stops > 0) & (stops < ends[-1])])
        whole, first = np.searchsorted(ends, at), np.concatenate([[0], at[:-1]])
        skips = first - (ends - self.counts)[whole]
        starts = np.concatenate([self.times[whole], self.times[-1:]])
        return Grid(starts, self.widths[whole], at - first, skips), np.concatenate([[0], 1 + np.searchsorted(at, ends)])

    def ends(self) -> FloatArray:
        """Time at the end of each interval."""
        return self.times[:-1] + self.widths * (self.skips + self.counts)

    @property
    def middles(self) -> FloatArray:
        """The middle of each step."""
        pieces = [t + h * (np.arange(n) + 0.5) for t, h, n in zip(self.times[:-1], self.widths, self.counts, strict=True)]
        return np.concatenate(pieces)


def simulate(
    process: Langevin,
    x0: npt.ArrayLike,
    times: npt.ArrayLike,
    dt: float,
    *,
    method: Literal["euler", "heun", "milstein", "weak2", "rk4", "exact"] | None = None,
    rng: Any = None,
    heat: bool = False,
    work: bool = False,
    reduce: Reducer | None = None,
    out: str | os.PathLike[str] | Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_divergence: Literal["raise", "mark"] = "raise",
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Path:
    """Run an ensemble of paths.

    Parameters
    ----------
    process : Langevin or Linear
    x0 : (n, d) array
        First states.
    times : (T,) array or float
        Increasing times at which the state is kept, the first being that of ``x0``; a number t means [0, t].
    dt : float
        Longest step; each interval between asked times is split evenly.
    method : {"euler", "heun", "milstein", "weak2", "rk4", "exact"}, optional
        Euler-Maruyama by default, "rk4" without noise, "exact" (no step error) for a `Linear` process.  Strong and weak
        order: euler 1/2 and 1 (1 and 1 where D does not depend on the state), heun 1 and 1 (weak 2 where D does not depend
        on the state), milstein 1 and 1, weak2 weak 2; the last two need D_i to depend on x_i only.
    rng : int, SeedSequence, Generator or None
        Fixes the noise: the normal of (path, step, coordinate) depends on nothing else.
    heat : bool
        Also keep the heat Q given to the bath along each path, the integral of f . dx (Stratonovich), f being the force on
        an overdamped particle of mobility 1: of second order for a force that is a gradient, of first order otherwise (it
        misses the area enclosed within a step); where the force jumps its mean converges about as the root of dt.
    work : bool
        Also keep the work W done on each path by what changes the potential in time, the integral of dU/dt at fixed x: of
        second order, and zero for a potential that rests.  The energy changes by W - Q.
    reduce : Reducer, optional
        Keep running statistics instead of the states, e.g. `Moments` or `Histogram`.
    out : path or array, optional
        Where to write the states as they come: a ``.npy`` file, a ``.zarr`` store (needs the package zarr), or an array
        (T, n, d) that takes slices.
    checkpoint : path, optional
        Directory for finished chunks, or for what a reducer has so far: the same call, made again after a crash, goes on
        from there, to the same bits.
    on_divergence : {"raise", "mark"}
        What to do with paths that leave the finite numbers: raise `DivergenceError`, or go on and mark them.
    executor, chunk
        Where to run, and blocks of 256 paths per task; neither changes a bit of the result.
    progress : callable, False or None
        Called as ``progress(done, tasks)``.  By default a run of more than two seconds in a terminal shows a bar.

    Returns
    -------
    Path
        ``states`` (T, n, d), and ``heat`` (T, n), ``work`` (T, n), ``reduced`` or ``diverged`` (n,) where asked for.

    Raises
    ------
    DivergenceError
        With the number of lost paths, the first time, and the key.
    """
    if not isinstance(process, Langevin):
        raise TypeError(f"simulate: it needs a Langevin process, got {type(process).__name__}.")
    x0, grid = points("x0", x0, process.dim), Grid.of(times, dt, process.dim)
    require_inside(process, x0)
    rule = _method(process, method)
    if rule in ("milstein", "weak2"):
        _require_own_noise(process, x0[0], float(grid.times[0]), rule)
    if heat:
        _check_heat(process, rule)
    if work:
        process.energy()
    choice("on_divergence", on_divergence, ("raise", "mark"))
    if reduce is not None and (isinstance(reduce, type) or not isinstance(reduce, Reducer)):
        raise TypeError(f"reduce must have the methods of, merge and result, got {type(reduce).__name__}; pass Moments().")
    also = tuple(name for name, wanted in (("heat", heat), ("work", work)) if wanted)
    key, saved = seed_words(rng), None
    steps = int(grid.counts.sum()) * process.dim
    if chunk is None:
        longest = TASK_STEPS if checkpoint is None else max(TASK_STEPS, min(len(x0) * steps // SAVED_TASKS, SAVED_STEPS))
        per_task = blocks_per_task(len(x0), steps, longest)
    else:
        per_task = count("chunk", chunk)
    mix = process.mix(grid.middles if callable(process.diffusivity) else grid.times[:1])
    warn_of_oblique_mirrors(process, mix[0], stacklevel=2)
    if checkpoint is not None:
        how = {"counts": grid.counts.tolist(), "method": rule, "heat": heat, "work": work, "chunk": per_task}
        whole = description(process, x0, grid.times, mix) | how | {"reduce": reducer_description(reduce)}
        saved = Checkpoint(FilePath(checkpoint), whole, rng, key)
        key = saved.key
    run = _Run(process, grid, mix, key, RULES[rule], heat, work, reduce)
    begin = float(grid.times[0]), float(grid.widths[0]), x0[sampled(len(x0), MOST_PATHS)]
    warned = rule == "exact" or warn_if_too_large(process, [begin], stacklevel=2)
    size = per_task * LANES
    ranges = [slice(first, min(first + size, len(x0))) for first in range(0, len(x0), size)]
    kept = Kept.made((len(grid.times), *x0.shape), size, also, reduce, out)
    found = _pieces(run, x0, ranges, executor, saved, kept)
    lost, since = [], math.inf
    # Whatever ends this early stops the tasks that have not begun.
    with closing(found), kept, reporting(progress, "simulate") as report:
        for k, (part, piece) in enumerate(zip(ranges, found, strict=True)):
            seen = piece.pop("seen", None)
            if seen is not None and not warned:
                warned = warn_if_too_large(process, seen, stacklevel=2)
            kept.put(part, piece)
            if saved is not None and "reduced" in piece and (k + 1 == len(ranges) or saved.due()):
                saved.save_total(kept.total(k + 1))
            lost.append(piece["lost"])
            if piece["lost"].any() and on_divergence == "raise":
                since = min(since, time.monotonic())
            report(k + 1, len(ranges))
            if time.monotonic() - since > COUNTING:
                break
        if since < math.inf:
            _raise_divergence(run, x0, np.concatenate(lost))
    return kept.path(grid.times, (int(key[0]), int(key[1])) if not process.noiseless else None, on_divergence == "mark")


def _pieces(
    run: _Run, x0: FloatArray, ranges: list[slice], executor: Executor | None, saved: Checkpoint | None, kept: Kept
) -> Generator[dict[str, Any], None, None]:
    """The pieces of all ranges in order: from the checkpoint, or computed, and saved there."""
    chunks = range(len(ranges))
    merged = kept.begin(None if saved is None else saved.total()) if run.reduce is not None else 0
    filed = saved is not None and (run.reduce is None or run.heat or run.work)
    there = set(chunks) - set(saved.missing(len(ranges))) if saved is not None and filed else set(chunks[:merged])
    # What a reducer has not merged is computed again, for its part is in no file.
    todo = [k for k in chunks if k not in there or (run.reduce is not None and k >= merged)]
    missing = set(todo)
    with closing(in_order(run, len(todo), executor, inputs=lambda j: (ranges[todo[j]], x0[ranges[todo[j]]]))) as found:
        for k, part in enumerate(ranges):
            piece = None
            if k in missing:
                piece = next(found)
            elif saved is None or not filed:
                piece = {"lost": kept.lost[part]}
            else:
                piece = saved.load(k)
            again = piece is None
            if piece is None:
                piece = run((part, x0[part]))
            if saved is not None and filed and (again or k in missing):
                saved.save(k, {name: value for name, value in piece.items() if name not in ("reduced", "seen")})
            if k < merged:
                piece.pop("reduced", None)
            yield piece


def _method(process: Langevin, method: str | None) -> str:
    exact = isinstance(process, Linear) and not process.walls.any()
    if method is None:
        return "exact" if exact else "rk4" if process.noiseless else "euler"
    choice("method", method, tuple(RULES))
    if method == "exact" and not exact:
        raise ValueError('method="exact" is for a Linear process without walls; use "heun".')
    if method == "rk4" and not process.noiseless:
        raise ValueError('method="rk4" is for dynamics without noise; use "heun" or "weak2", or diffusivity=0.')
    # Where D does not depend on the state, Milstein's correction vanishes, and Heun's rule has weak order 2.
    if not process.state_dependent:
        return {"milstein": "euler", "weak2": "heun"}.get(method, method)
    return method


def _require_own_noise(process: Langevin, x: FloatArray, t: float, method: str) -> None:
    """Refuse a D_i that changes with another coordinate, near a start: these rules would converge to something else."""
    if process.dim == 1:
        return
    moved = x + np.vstack([np.zeros(process.dim), np.diag(0.1 * (1.0 + np.abs(x)))])
    level = process.diffusivity.at(moved, t, process.diffusivity_params)[:, : process.dim]
    changed = np.isfinite(level[1:]) & (level[1:] != level[0]) & ~np.eye(process.dim, dtype=bool)
    if changed.any():
        j, i = np.argwhere(changed)[0]
        raise ValueError(
            f'method="{method}" is for a diffusivity whose D_i depends on x_i only, and here D_{i} changes with x_{j}; '
            'use "heun" or "euler".'
        )


def _check_heat(process: Langevin, method: str) -> None:
    """Refuse exact steps, and warn of coordinates that have no bath."""
    if method == "exact":
        raise ValueError('heat=True needs the steps of a path; pass method="heun".')
    if process.state_dependent or callable(process.diffusivity) or process.noiseless:
        return
    still = np.flatnonzero(~process.mix(np.zeros(1))[0].any(axis=1))
    if still.size:
        warnings.warn(
            f"heat=True takes the drift as the force on an overdamped particle (mobility 1), and coordinates "
            f"{', '.join(map(str, still[:6]))} have no noise, as positions in underdamped dynamics, whose heat this is not.",
            RuntimeWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Run:
    """One task: paths ``part`` from ``x0`` (n, d) through the grid.  What travels are the process and numbers."""

    process: Langevin
    grid: Grid
    mix: FloatArray
    key: npt.NDArray[np.uint32]
    rule: int
    heat: bool
    work: bool
    reduce: Reducer | None

    def __call__(self, given: tuple[slice, FloatArray]) -> dict[str, Any]:
        part, x0 = given
        n, piece = len(x0), {}
        if part.start == 0 and self.rule != EXACT:
            states, heats, works, piece["seen"] = self._watched(x0)
        else:
            states, heats, works = self.states(part.start // LANES, x0, self.grid, self.mix)
        lost: Any = ~np.isfinite(states[-1, :, :n]).all(axis=0)
        # Energies of their own may have no value where the path has.
        for kept in (heats, works):
            if kept.size:
                lost |= ~np.isfinite(kept[-1, :n])
        piece["lost"] = lost
        if self.heat:
            piece["heat"] = heats[:, :n]
        if self.work:
            piece["work"] = works[:, :n]
        if self.reduce is None:
            piece["states"] = states[:, :, :n].transpose(0, 2, 1)
        else:
            # A path on its way to infinity may overflow in a square; the result says so by being infinite.
            with np.errstate(over="ignore", invalid="ignore"):
                piece["reduced"] = [self.reduce.of(block) for block in _blocks(states, lost)]
        return piece

    def _watched(self, x0: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, list[tuple[float, float, FloatArray]]]:
        """`states` of the first paths, and some of them at some times on the way, with time and step, to be looked at.

        The states at asked times alone would miss what a protocol does between: it is often asked for once in a period.
        """
        timed = getattr(getattr(self.process, "drift", None), "timed", False)
        # Stops in the golden ratio lie evenly, and keep time with no period.
        places = (np.arange(1, MOST_STOPS + 1) * 0.6180339887498949 % 1.0) if timed else np.zeros(0)
        fine, kept = self.grid.cut(np.unique((int(self.grid.counts.sum()) * places).astype(np.int64)))
        mine = x0[:LANES]
        states, heats, works = self.states(0, mine, fine, self.mix)
        some = sampled(len(mine), MOST_PATHS)
        at = np.union1d(np.setdiff1d(np.arange(len(states)), kept), kept[1:][sampled(len(kept) - 1, MOST_TIMES)])
        seen = [(float(fine.ends()[j - 1]), float(fine.widths[j - 1]), states[j][:, some].T.copy()) for j in at]
        found = [values[kept] if values.size else values for values in (states, heats, works)]
        if len(x0) > LANES:
            rest = self.states(1, x0[LANES:], self.grid, self.mix)
            found = [np.concatenate([one, two], axis=-1) if one.size else one for one, two in zip(found, rest, strict=True)]
        return found[0], found[1], found[2], seen

    def states(
        self, block: int, x0: FloatArray, grid: Grid, mix: FloatArray, step: int = 0
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """States (T, d, whole blocks), heats and works (T, whole blocks) of paths from block number ``block`` on."""
        n, dim = x0.shape
        blocks = -(-n // LANES)
        states = np.empty((grid.times.size, dim, blocks * LANES))
        states[0, :, :n] = x0.T
        # Lanes beyond the last path repeat it: nothing exceptional happens there first.
        states[0, :, n:] = states[0, :, n - 1 : n]
        heats, works = (np.zeros((grid.times.size, blocks * LANES) if kept else (0, 0)) for kept in (self.heat, self.work))
        if self.rule == EXACT:
            self._exact(block, states, grid, step)
            return states, heats, works
        made = self.process.compiled()
        kind = langevin.NONE if self.process.noiseless else langevin.ADDITIVE
        if self.process.state_dependent:
            kind = langevin.STATE
        langevin.langevin(
            made.field, made.params, self.process.energy() if self.work else made.field, made.noise, made.noise_params,
            kind, mix, made.twist, self.key, self.rule, block, block + blocks, step, grid.times[:-1].copy(), grid.widths,
            grid.skips, grid.counts, made.walls, states, heats, works,
        )  # fmt: skip
        return states, heats, works

    def _exact(self, block: int, states: FloatArray, grid: Grid, step: int) -> None:
        """The exact transition is an Euler step with other coefficients, which depend on the length of the step."""
        assert isinstance(self.process, Linear)
        made, kind = self.process.compiled(), langevin.NONE if self.process.noiseless else langevin.ADDITIVE
        blocks = states.shape[2] // LANES
        known: dict[str, tuple[FloatArray, FloatArray]] = {}
        for j, (h, steps) in enumerate(zip(grid.widths, grid.counts, strict=True)):
            # The widths of an even grid differ by rounding, and a matrix exponential costs more than a step.
            width = f"{h:.12g}"
            if width not in known:
                known[width] = self.process.exact_step(float(h))
            params, mix = known[width]
            two = np.ascontiguousarray(states[j : j + 2])
            langevin.langevin(
                made.field, params, made.field, made.field, made.noise_params, kind, mix, 0.0, self.key, langevin.EULER,
                block, block + blocks, step, grid.times[j : j + 1].copy(), grid.widths[j : j + 1].copy(),
                grid.skips[j : j + 1].copy(), grid.counts[j : j + 1].copy(), made.walls, two, *np.zeros((2, 0, 0)),
            )  # fmt: skip
            states[j + 1], step = two[1], step + int(steps)


def _blocks(states: FloatArray, lost: npt.NDArray[np.bool_]) -> Iterator[FloatArray]:
    """The paths that were not lost, (T, m, d), block by block and in one layout: sums must not depend on the tasks."""
    for first in range(0, lost.size, LANES):
        part = slice(first, min(first + LANES, lost.size))
        block = states[:, :, part]
        if lost[part].any():
            block = block[:, :, ~lost[part]]
        if block.size:
            yield np.ascontiguousarray(block).transpose(0, 2, 1)


def _raise_divergence(run: _Run, x0: FloatArray, lost: npt.NDArray[np.bool_]) -> None:
    """Find the step at which the first of the lost paths was lost, by running their blocks again, and raise.

    ``lost`` (m,) tells of the first m paths, which were run.
    """
    _require_finite_start(run, x0)
    earliest, blocks = math.inf, np.unique(np.flatnonzero(lost) // LANES)
    for block in blocks[:MOST_RERUN]:
        first = int(block) * LANES
        earliest = min(earliest, _first_bad_time(run, int(block), x0[first : min(first + LANES, lost.size)], earliest))
    which = f"{len(x0)} paths" if lost.size == len(x0) else f"the {lost.size} paths that were run, of {len(x0)},"
    among = "" if len(blocks) <= MOST_RERUN else f" among paths 0 ... {LANES * (int(blocks[MOST_RERUN - 1]) + 1) - 1}"
    cure = "ask for earlier times" if run.rule == EXACT else "use a smaller dt"
    raise DivergenceError(
        f"{int(lost.sum())} of {which} left the finite numbers, the first{among} at t = {earliest:.6g} "
        f'(key {int(run.key[0])}, {int(run.key[1])}); {cure}, or on_divergence="mark" to go on without them.'
    )


def _require_finite_start(run: _Run, x0: FloatArray) -> None:
    """Say so where the drift or D has no value at a start: no dt would help."""
    t, process = float(run.grid.times[0]), run.process
    with np.errstate(all="ignore"):
        fine = {"the drift is not finite": np.isfinite(process.force(x0, t)).all(axis=1)}
        if process.state_dependent:
            level = process.diffusivity.at(x0, t, process.diffusivity_params)[:, : process.dim]
            fine["the diffusivity is not finite"] = np.isfinite(level).all(axis=1)
            fine["the diffusivity is negative"] = ~(level < 0.0).any(axis=1)
    for what, good in fine.items():
        if not good.all():
            k = int(np.argmin(good))
            raise DivergenceError(
                f"{what} at the start of {int((~good).sum())} of {len(x0)} paths, first of path {k}, at x = "
                f"{np.array2string(x0[k], precision=6, threshold=8)}, t = {t:g}; start elsewhere, or correct the function."
            )


def _first_bad_time(run: _Run, block: int, x: FloatArray, latest: float) -> float:
    """Time of the first step after which a path of this block is not finite; ``latest`` where that is not before it."""
    quiet, done, n = replace(run, heat=False, work=False, reduce=None), 0, len(x)
    for start, width, total in zip(run.grid.times[:-1], run.grid.widths, run.grid.counts, strict=True):
        # Slots for at most 256 steps at a time.
        for first in range(0, int(total), 256):
            if start + width * first >= latest:
                return latest
            size = min(int(total) - first, 256)
            times = start + width * np.arange(first, first + size + 1)
            grid = Grid(times, np.full(size, width), np.ones(size, dtype=np.int64), np.zeros(size, dtype=np.int64))
            mix = run.mix[done : done + size] if len(run.mix) > 1 else run.mix
            states, _, _ = quiet.states(block, x, grid, mix, done)
            bad = ~np.isfinite(states[:, :, :n]).all(axis=(1, 2))
            if bad.any():
                return float(times[int(np.argmax(bad))])
            x, done = states[-1, :, :n].T.copy(), done + size
    return float(run.grid.times[-1])
