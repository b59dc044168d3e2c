"""A run of an ensemble as tasks: blocks of paths through all of its steps, or through a stretch of them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._tasks import pause
from thermodiff.integrate.grid import Grid
from thermodiff.integrate.reducers import Reducer
from thermodiff.integrate.stability import MOST_PATHS, MOST_TIMES, sampled
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.processes import Compiled, Langevin, Linear

FloatArray = npt.NDArray[np.float64]

EXACT = -1
"""In place of a step rule: exact steps of a linear process."""
MOST_STOPS = 24
"""Times between the asked ones at which some paths are looked at."""
STRETCH = 2**30
"""Steps (times coordinates) of the paths of a block in one stretch, about: some seconds."""
CALL, BREATH = 2**21, 0.1
"""Steps (times coordinates) of the first call of a kernel, and seconds of the others, about."""


@dataclass(frozen=True)
class Run:
    """One task: paths ``part`` from ``x0`` (n, d) through the grid.  What travels are the process and numbers."""

    process: Langevin
    grid: Grid
    mix: FloatArray
    key: npt.NDArray[np.uint32]
    rule: int
    heat: bool
    work: bool
    reduce: Reducer | None

    @cached_property
    def _compiled(self) -> Compiled:
        """Once for all tasks here: large tables that the functions take from around them are looked through each time."""
        return self.process.compiled()

    def __call__(self, given: tuple[slice, FloatArray]) -> dict[str, Any]:
        part, x0 = given
        if part.start == 0 and self.rule != EXACT:
            states, heats, works, seen = self._watched(x0)
            return self.piece(len(x0), states, heats, works) | {"seen": seen}
        return self.piece(len(x0), *self.states(part.start // LANES, x0, self.grid, self.mix))

    def piece(self, n: int, states: FloatArray, heats: FloatArray, works: FloatArray) -> dict[str, Any]:
        """What is kept of the first ``n`` paths, from what `states` gives."""
        lost: Any = ~np.isfinite(states[-1, :, :n]).all(axis=0)
        # Energies of their own may have no value where the path has.
        for kept in (heats, works):
            if kept.size:
                lost |= ~np.isfinite(kept[-1, :n])
        piece: dict[str, Any] = {"lost": lost}
        if self.heat:
            piece["heat"] = heats[:, :n]
        if self.work:
            piece["work"] = works[:, :n]
        if self.reduce is None:
            piece["states"] = states[:, :, :n].transpose(0, 2, 1)
        else:
            # A path on its way to infinity may overflow in a square; the result says so by being infinite.
            with np.errstate(over="ignore", invalid="ignore"):
                taken = {name: piece.pop(name) for name in reduced_also(self.reduce)}
                tables = zip(
                    _blocks(states, lost), *(_blocks(values[:, None], lost) for values in taken.values()), strict=True
                )
                piece["reduced"] = [
                    self.reduce.of(block, **{name: part[:, :, 0] for name, part in zip(taken, parts, strict=True)})
                    for block, *parts in tables
                ]
        return piece

    def __getstate__(self) -> dict[str, Any]:
        """A reducer of a program or a notebook cannot be imported in a worker, and travels whole; addresses stay here."""
        state = {name: value for name, value in self.__dict__.items() if name != "_compiled"}
        if self.reduce is None or type(self.reduce).__module__ != "__main__":
            return state
        from thermodiff.kernels.user import to_bytes

        return {**state, "reduce": to_bytes(self.reduce)}  # pyright: ignore[reportArgumentType]

    def __setstate__(self, state: dict[str, Any]) -> None:
        from thermodiff.kernels.user import from_bytes

        whole = isinstance(state["reduce"], bytes)
        self.__dict__.update(state | ({"reduce": from_bytes(state["reduce"])} if whole else {}))

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

    def stretches(self) -> tuple[list[Stretch], npt.NDArray[np.intp]]:
        """The run in pieces of time of some seconds for one block, and which of their ends, joined, are asked for.

        How it is cut depends on its steps alone, so that sums over them are the same bits wherever it runs.
        """
        total = int(self.grid.counts.sum())
        pieces = max(-(-total * self.process.dim * LANES // STRETCH), 1)
        fine, kept = self.grid.cut(total * np.arange(1, pieces, dtype=np.int64) // pieces)
        ends, found, first, begun = np.cumsum(fine.counts), [], 0, 0
        for j in range(1, pieces + 1):
            last = int(np.searchsorted(ends, total * j // pieces)) + 1
            end = int(ends[last - 1])
            part = slice(first, last)
            grid = Grid(
                fine.times[first : last + 1], fine.widths[part], fine.counts[part], fine.skips[part], fine.stops[part]
            )
            mix = self.mix[begun:end] if len(self.mix) > 1 else self.mix
            found.append(Stretch(replace(self, reduce=None), grid, mix, begun))
            first, begun = last, end
        return found, kept

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
        march = self._exact(block) if self.rule == EXACT else self._steps(block, mix, step)
        if heats.size or works.size:  # sums of sums would be rounded otherwise
            march(grid, step, states, heats, works)
        else:
            _in_calls(march, grid, step, states)
        return states, heats, works

    def _steps(self, block: int, mix: FloatArray, begin: int) -> March:
        """Steps by a rule, ``mix`` being that of step number ``begin`` and those after it."""
        made = self._compiled
        kind = langevin.NONE if self.process.noiseless else langevin.ADDITIVE
        if self.process.state_dependent:
            kind = langevin.STATE
        energy = self.process.energy() if self.work else made.field

        def march(grid: Grid, step: int, states: FloatArray, heats: FloatArray, works: FloatArray) -> None:
            last = block + states.shape[2] // LANES
            own = mix[step - begin : step - begin + int(grid.counts.sum())] if len(mix) > 1 else mix
            langevin.langevin(
                made.field, made.params, energy, made.noise, made.noise_params, kind, own, made.twist, self.key, self.rule,
                block, last, step, grid.times[:-1].copy(), grid.widths, grid.skips, grid.counts, grid.stops, made.walls,
                states, heats, works,
            )  # fmt: skip

        return march

    def _exact(self, block: int) -> March:
        """The exact transition is an Euler step with other coefficients, which depend on the length of the step."""
        known: dict[str, tuple[FloatArray, FloatArray]] = {}

        def march(grid: Grid, step: int, states: FloatArray, heats: FloatArray, works: FloatArray) -> None:
            self._exact_steps(known, block, grid, step, states)

        return march

    def _exact_steps(
        self, known: dict[str, tuple[FloatArray, FloatArray]], block: int, grid: Grid, step: int, states: FloatArray
    ) -> None:
        assert isinstance(self.process, Linear)
        made, kind = self._compiled, langevin.NONE if self.process.noiseless else langevin.ADDITIVE
        blocks = states.shape[2] // LANES
        for j, (h, steps) in enumerate(zip(grid.widths, grid.counts, strict=True)):
            # The widths of an even grid differ by rounding, and a matrix exponential costs more than a step.
            width = f"{h:.12g}"
            if width not in known:
                known[width] = self.process.exact_step(float(h))
            params, mix = known[width]
            two, here = np.ascontiguousarray(states[j : j + 2]), slice(j, j + 1)
            langevin.langevin(
                made.field, params, made.field, made.field, made.noise_params, kind, mix, 0.0, self.key, langevin.EULER,
                block, block + blocks, step, grid.times[here].copy(), grid.widths[here].copy(), grid.skips[here].copy(),
                grid.counts[here].copy(), grid.stops[here].copy(), made.walls, two, *np.zeros((2, 0, 0)),
            )  # fmt: skip
            states[j + 1], step = two[1], step + int(steps)


March = Callable[[Grid, int, FloatArray, FloatArray, FloatArray], None]
"""What takes ``states[0]`` (and heats, works) through a grid whose first step has this number."""


def _in_calls(march: March, grid: Grid, step: int, states: FloatArray) -> None:
    """``march`` in calls of about `BREATH` seconds: between two of them an interrupt is heard, or that nobody waits."""
    total, done, none = int(grid.counts.sum()), 0, np.zeros((0, 0))
    size = max(CALL // (states.shape[1] * states.shape[2]), 1)
    x = states[0].copy()
    while done < total:
        pause()
        since, many = time.monotonic(), min(size, total - done)
        part, j = grid.part(done, done + many)
        mine = states[j : j + len(part.counts) + 1]
        asked, mine[0] = mine[0].copy(), x
        march(part, step + done, mine, none, none)
        x, mine[0] = mine[-1].copy(), asked
        done += many
        # From a first call that was short to what a breath has room for, by and by.
        size = max(int(many * min(BREATH / max(time.monotonic() - since, 1e-6), 8.0)), 1)


@dataclass(frozen=True)
class Stretch:
    """One task: some of the steps of a run, for paths ``part`` that are at ``x`` (n, d) when it begins."""

    run: Run
    grid: Grid
    mix: FloatArray
    step: int

    def __call__(self, given: tuple[slice, FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
        part, x = given
        return self.run.states(part.start // LANES, x, self.grid, self.mix, self.step)

    def seen(self, states: FloatArray, n: int) -> tuple[float, float, FloatArray]:
        """Time, step and some states at the end."""
        return float(self.grid.ends()[-1]), float(self.grid.widths[-1]), states[-1][:, sampled(n, MOST_PATHS)].T.copy()


def reduced_also(reduce: Reducer | None) -> tuple[str, ...]:
    """Which of heat and work the reducer takes beside the states."""
    taken = () if reduce is None else inspect.signature(reduce.of).parameters
    return tuple(name for name in ("heat", "work") if name in taken)


def _blocks(states: FloatArray, lost: npt.NDArray[np.bool_]) -> Iterator[FloatArray]:
    """The paths that were not lost, (T, m, d), block by block and in one layout: sums must not depend on the tasks."""
    for first in range(0, lost.size, LANES):
        part = slice(first, min(first + LANES, lost.size))
        block = states[:, :, part]
        if lost[part].any():
            block = block[:, :, ~lost[part]]
        if block.size:
            yield np.ascontiguousarray(block).transpose(0, 2, 1)
