"""Ensembles of user dynamics: only the asked times are kept, and any executor gives the same bits."""

from __future__ import annotations

import math
import os
import time
import warnings
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, choice, points, seed_words
from thermodiff._progress import Progress, reporting
from thermodiff.integrate.boundaries import require_inside, warn_of_oblique_mirrors
from thermodiff.integrate.checkpoint import Checkpoint, description, per_task, reducer_description
from thermodiff.integrate.grid import Grid
from thermodiff.integrate.kept import Kept
from thermodiff.integrate.path import Path
from thermodiff.integrate.pieces import pieces
from thermodiff.integrate.reducers import Reducer
from thermodiff.integrate.run import EXACT, Run, reduced_also
from thermodiff.integrate.stability import MOST_PATHS, SEE_WHETHER, sampled, shown, warn_if_too_large, without_value
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.processes import Langevin, Linear

FloatArray = npt.NDArray[np.float64]

COUNTING = 5.0
"""Seconds that a run goes on to count lost paths before it raises."""
MOST_RERUN = 256
"""Blocks with lost paths that are run again to find the first time."""
FAR = 1e10
"""Size of a coordinate from which on a drift that is no number is one of overflow."""
RULES = {
    "euler": langevin.EULER, "heun": langevin.HEUN, "milstein": langevin.MILSTEIN, "weak2": langevin.WEAK2,
    "rk4": langevin.RK4, "exact": EXACT,
}  # fmt: skip


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
        on the state, strong 1/2 where a D_i changes with another coordinate), milstein 1 and 1, weak2 1 and 2; the last two
        need D_i to depend on x_i only.
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
        Keep running statistics instead of the states, e.g. `Moments` or `Histogram`; of heat and work too, which are then
        not kept, where its method ``of`` takes them.
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
    asked, reduced = {"heat": heat, "work": work}, reduced_also(reduce)
    missing = [name for name in reduced if not asked[name]]
    if missing:
        raise ValueError(f"the reducer's `of` takes {missing[0]}; pass {missing[0]}=True.")
    also = tuple(name for name, wanted in asked.items() if wanted and name not in reduced)
    key, blocks = seed_words(rng), per_task(len(x0), int(grid.counts.sum()) * process.dim, chunk, checkpoint is not None)
    mix = process.mix(grid.middles if callable(process.diffusivity) else grid.times[:1])
    warn_of_oblique_mirrors(process, mix[0], stacklevel=2)
    saved = None
    if checkpoint is not None:
        how = {"counts": grid.counts.tolist(), "method": rule, "heat": heat, "work": work, "chunk": blocks}
        whole = description(process, x0, grid.times, mix) | how | {"reduce": reducer_description(reduce)}
        saved = Checkpoint(checkpoint, whole, rng, key)
        key = saved.key
    run = Run(process, grid, mix, key, RULES[rule], heat, work, reduce)
    begin = float(grid.times[0]), float(grid.widths[0]), x0[sampled(len(x0), MOST_PATHS)]
    how_long: dict[str, Any] = {"rule": rule, "duration": float(grid.times[-1] - grid.times[0])}
    warned = rule == "exact" or warn_if_too_large(process, [begin], **how_long, stacklevel=2)
    size = blocks * LANES
    ranges = [slice(first, min(first + size, len(x0))) for first in range(0, len(x0), size)]
    kept = Kept.made((len(grid.times), *x0.shape), size, also, reduce, out)
    lost, since = [], math.inf
    with (
        kept,
        reporting(progress, "simulate") as report,
        closing(pieces(run, x0, ranges, executor, saved, kept, report)) as found,
    ):
        # Whatever ends this early stops the tasks that have not begun.
        for k, (part, piece) in enumerate(zip(ranges, found, strict=True)):
            seen = piece.pop("seen", None)
            if seen is not None and not warned:
                warned = warn_if_too_large(process, seen, **how_long, stacklevel=2)
            kept.put(part, piece)
            if saved is not None and "reduced" in piece and (k + 1 == len(ranges) or saved.due()):
                saved.save_total(kept.total(k + 1))
            lost.append(piece["lost"])
            if piece["lost"].any() and on_divergence == "raise":
                since = min(since, time.monotonic())
            if time.monotonic() - since > COUNTING:
                break
        if since < math.inf:
            _raise_divergence(run, x0, np.concatenate(lost))
    return kept.path(grid.times, (int(key[0]), int(key[1])) if not process.noiseless else None, on_divergence == "mark")


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
    if process.state_dependent and process.interpretation == "isothermal":
        warnings.warn(
            "heat=True integrates the drift along the path, which is the heat where D is a temperature and the mobility 1; "
            "an isothermal D(x) is a mobility at constant temperature, and this is then not the heat.",
            RuntimeWarning,
            stacklevel=3,
        )
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


def _raise_divergence(run: Run, x0: FloatArray, lost: npt.NDArray[np.bool_]) -> None:
    """Find the step at which the first of the lost paths was lost, by running their blocks again, and raise.

    ``lost`` (m,) tells of the first m paths, which were run.
    """
    _require_finite_start(run.process, x0, float(run.grid.times[0]))
    loss, blocks = (math.inf, math.inf, x0[:0], x0[:0]), np.unique(np.flatnonzero(lost) // LANES)
    for block in blocks[:MOST_RERUN]:
        first = int(block) * LANES
        found = _first_loss(run, int(block), x0[first : min(first + LANES, lost.size)], loss[0])
        loss = min(loss, found, key=lambda one: one[0])
    which = f"{len(x0)} paths" if lost.size == len(x0) else f"the {lost.size} paths that were run, of {len(x0)},"
    among = "" if len(blocks) <= MOST_RERUN else f" among paths 0 ... {LANES * (int(blocks[MOST_RERUN - 1]) + 1) - 1}"
    cure = "ask for earlier times" if run.rule == EXACT else "use a smaller dt"
    raise DivergenceError(
        f"{int(lost.sum())} of {which} left the finite numbers, the first{among} at t = {loss[0]:.6g} "
        f'(key {int(run.key[0])}, {int(run.key[1])}); {cure}, or on_divergence="mark" to go on without them.'
        + _why(run.process, *loss[1:])
    )


def _why(process: Langevin, t: float, x: FloatArray, after: FloatArray) -> str:
    """A sentence about paths at x (m, d) whose next states ``after`` are lost.

    None where these are infinite, or the path had gone far: it only ran away, and a smaller dt is all that can be said.
    """
    x = x[np.isnan(after).any(axis=1) & (np.abs(x) < FAR).all(axis=1)]
    if not len(x):
        return ""
    found = without_value(process, x, t)
    if found is None:
        return f" {SEE_WHETHER.format(f'near x = {shown(x[0])}')}"
    what, bad = found
    return f" Before, at x = {shown(x[np.argmax(bad)])}, t = {t:.6g}, {what}: correct the function if paths may go there."


def _require_finite_start(process: Langevin, x0: FloatArray, t: float) -> None:
    """Say so where the drift or D has no value at a start: no dt would help."""
    found = without_value(process, x0, t)
    if found is not None:
        what, bad = found
        k = int(np.argmax(bad))
        raise DivergenceError(
            f"{what} at the start of {int(bad.sum())} of {len(x0)} paths, first of path {k}, at x = {shown(x0[k])}, t = "
            f"{t:g}; start elsewhere, or correct the function."
        )


def _first_loss(run: Run, block: int, x: FloatArray, latest: float) -> tuple[float, float, FloatArray, FloatArray]:
    """Time after the first step that loses paths of this block, time before it, and their states (m, d) before and after.

    ``latest``, and no states, where that is not before it.
    """
    quiet, done, n = replace(run, heat=False, work=False, reduce=None), 0, len(x)
    for start, width, total in zip(run.grid.times[:-1], run.grid.widths, run.grid.counts, strict=True):
        # Slots for at most 256 steps at a time.
        for first in range(0, int(total), 256):
            if start + width * first >= latest:
                return latest, latest, x[:0], x[:0]
            size = min(int(total) - first, 256)
            times = start + width * np.arange(first, first + size + 1)
            counts, skips = np.ones(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
            grid = Grid(times, np.full(size, width), counts, skips, times[1:])
            mix = run.mix[done : done + size] if len(run.mix) > 1 else run.mix
            states, _, _ = quiet.states(block, x, grid, mix, done)
            bad = ~np.isfinite(states[:, :, :n]).all(axis=(1, 2))
            if bad.any():
                k = int(np.argmax(bad))
                gone = ~np.isfinite(states[k, :, :n]).all(axis=0)
                return float(times[k]), float(times[k - 1]), states[k - 1, :, :n].T[gone], states[k, :, :n].T[gone]
            x, done = states[-1, :, :n].T.copy(), done + size
    end = float(run.grid.times[-1])
    return end, end, x[:0], x[:0]
