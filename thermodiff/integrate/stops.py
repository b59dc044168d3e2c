"""What ends a path: levels of a coordinate, among walls, or the surface where a function is zero."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from thermodiff._check import finite_number
from thermodiff.fields import StopCondition
from thermodiff.integrate.checkpoint import code_of
from thermodiff.integrate.stability import MOST_PATHS, sampled
from thermodiff.kernels import langevin
from thermodiff.kernels.passage import SURFACE
from thermodiff.processes import Compiled

FloatArray = npt.NDArray[np.float64]
Sides = npt.NDArray[np.int64]

CLOSEST = 1e-150
"""Least distance of the levels."""


class Paths(Protocol):
    """Paths at their end: times and sides (n,), states (n, d)."""

    @property
    def times(self) -> FloatArray: ...

    @property
    def sides(self) -> Sides: ...

    @property
    def states(self) -> FloatArray: ...


class Watched(NamedTuple):
    """What the kernel is told of it."""

    coordinate: int
    low: float
    high: float
    walls: FloatArray
    ring: FloatArray
    stop: Any
    stop_params: FloatArray


@dataclass(frozen=True)
class Levels:
    """What ends a path: ``low`` and ``high`` on the line on which the watched ``coordinate`` moves.

    Beyond a mirror lies the image of the one level there is, and on a ring its next turn: touching either is touching it.
    """

    coordinate: int
    low: float
    high: float
    only: float | None
    """The single level that both stand for; None for two levels."""
    side: int
    """What touching it is called: its own side beyond a mirror; 0 on a ring, where either side is told apart."""
    wall: FloatArray
    """(kind, low, high) of the mirror, or of the ring; zeros for none."""

    @classmethod
    def of(cls, coordinate: int, low: Any, high: Any, wall: FloatArray) -> Levels:
        kind, bottom, top = int(wall[0]), float(wall[1]), float(wall[2])
        low, high = _levels(low, high, around=kind == langevin.PERIODIC)
        free = np.zeros(3)
        if kind == langevin.FREE:
            return cls(coordinate, low, high, None, 0, free)
        for name, value in (("low", low), ("high", high)):
            if np.isfinite(value) and not bottom <= value <= top:
                raise ValueError(f"{name} = {value:g} lies outside the walls, {bottom:g} and {top:g}; no path gets there.")
        both = np.isfinite(low) and np.isfinite(high)
        if kind == langevin.PERIODIC:
            if both:
                # The arc from low up to high, through the seam where high is below.
                return cls(coordinate, low, high if low < high else high + top - bottom, None, 0, wall)
            only, length = (high, top - bottom) if np.isinf(low) else (low, top - bottom)
            return (
                cls(coordinate, only - length, only, only, 0, wall)
                if np.isinf(low)
                else cls(coordinate, only, only + length, only, 0, wall)
            )
        if both:
            return cls(coordinate, low, high, None, 0, free)
        if np.isinf(low):
            mirror = np.array([langevin.REFLECTING, bottom, np.inf])
            return cls(coordinate, 2.0 * bottom - high, high, high, 1, mirror if np.isfinite(bottom) else free)
        mirror = np.array([langevin.REFLECTING, -np.inf, top])
        return cls(coordinate, low, 2.0 * top - low, low, -1, mirror if np.isfinite(top) else free)

    @property
    def ring(self) -> bool:
        return int(self.wall[0]) == langevin.PERIODIC

    def carried(self, x0: FloatArray, t0: float) -> FloatArray:
        """The starts, on a ring by whole turns to between the levels.

        Raises
        ------
        ValueError
            If they are not strictly between them.
        """
        x0 = x0.copy()
        if self.ring:
            length = self.wall[2] - self.wall[1]
            x0[:, self.coordinate] -= length * np.floor((x0[:, self.coordinate] - self.low) / length)
        x = x0[:, self.coordinate]
        outside = int(np.count_nonzero((x <= self.low) | (x >= self.high)))
        if outside:
            through = ", or give low above high for the arc through the seam" if self.ring and self.only is None else ""
            raise ValueError(
                f"{outside} of {len(x0)} paths start at or beyond a level; start them strictly between{through}."
            )
        return x0

    def ringed(self, x: FloatArray) -> FloatArray:
        """States with the watched coordinate back in the interval of its ring."""
        if not self.ring:
            return x
        x, length = x.copy(), self.wall[2] - self.wall[1]
        x[:, self.coordinate] -= length * np.floor((x[:, self.coordinate] - self.wall[1]) / length)
        return x

    def touched(self, paths: Paths) -> Sides:
        """Sides as they are told; the watched coordinate is put on its level where one was touched."""
        sides, states = paths.sides, paths.states
        level = np.where(sides > 0, self.high, self.low) if self.only is None else self.only
        if self.ring:
            level = np.where(level > self.wall[2], level - (self.wall[2] - self.wall[1]), level)
        states[:] = self.ringed(states)
        states[:, self.coordinate] = np.where(sides != 0, level, states[:, self.coordinate])
        return sides if self.side == 0 else np.abs(sides) * self.side

    def description(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        return {"levels": [self.coordinate, self.low, self.high]}

    def watched(self, made: Compiled) -> Watched:
        walls, ring = made.walls.copy(), np.zeros((0, 3))
        walls[self.coordinate] = 0.0 if self.ring else self.wall
        if self.ring:
            ring = np.zeros_like(made.walls)
            ring[self.coordinate] = self.wall
        # No function is watched; a field is needed in its place.
        return Watched(self.coordinate, self.low, self.high, walls, ring, made.field, made.params)


@dataclass(frozen=True, eq=False)
class Surface:
    """What ends a path: a function of state and time that passes through zero."""

    condition: StopCondition
    params: FloatArray
    walls: FloatArray

    @classmethod
    def of(cls, condition: Any, params: Any, walls: FloatArray) -> Surface:
        if not isinstance(condition, StopCondition):
            raise TypeError(
                f"stop must be made by @td.stop_condition, got {type(condition).__name__}; put the decorator above a "
                "function (x, t, ...) that returns one number, which is zero where paths stop."
            )
        return cls(condition, condition.values_of(params, "stop_params"), walls)

    def carried(self, x0: FloatArray, t0: float) -> FloatArray:
        """The starts, on rings by whole turns to between their ends.

        Raises
        ------
        ValueError
            If some are on the surface, or where the function has no value.
        """
        x0 = x0.copy()
        for i in np.flatnonzero(self.walls[:, 0] == langevin.PERIODIC):
            low, length = self.walls[i, 1], self.walls[i, 2] - self.walls[i, 1]
            x0[:, i] -= length * np.floor((x0[:, i] - low) / length)
        self._require_periodic(x0[sampled(len(x0), MOST_PATHS)], t0)
        values, name = self.condition.at(x0, t0, self.params)[:, 0], self.condition.__name__
        lost, on = np.count_nonzero(~np.isfinite(values)), np.count_nonzero(values == 0.0)
        if lost:
            raise ValueError(f"stop: {name} has no finite value at {lost} of {len(x0)} starts; it needs one at all states.")
        if on:
            raise ValueError(f"stop: {on} of {len(x0)} paths start where {name} is zero; start them on either side.")
        return x0

    def _require_periodic(self, x: FloatArray, t: float) -> None:
        """Refuse a function that jumps where a ring closes: that would be a passage."""
        for i in np.flatnonzero(self.walls[:, 0] == langevin.PERIODIC):
            ends = np.repeat(x[None], 2, axis=0)
            ends[0, :, i], ends[1, :, i] = self.walls[i, 1:]
            low, high = (self.condition.at(end, t, self.params)[:, 0] for end in ends)
            apart = np.abs(high - low) > 1e-6 * (np.abs(high) + np.abs(low) + np.abs(high - low).max())
            if apart.any():
                k = int(np.argmax(apart))
                raise ValueError(
                    f"stop: {self.condition.__name__} jumps from {high[k]:g} to {low[k]:g} where the ring of coordinate {i} "
                    f"closes, at {self.walls[i, 2]:g}; write it with sin and cos of whole turns, or use low= and high=."
                )

    def ringed(self, x: FloatArray) -> FloatArray:
        return x

    def touched(self, paths: Paths) -> Sides:
        """Sides as they are; warns where the function has no gradient, as one that jumps."""
        some = np.flatnonzero(paths.sides)[:MOST_PATHS]
        found = [self.condition.at(paths.states[k : k + 1], float(paths.times[k]), self.params)[0] for k in some]
        if some.size and not np.any(np.array(found)[:, 1:]) and np.abs(np.array(found)[:, 0]).max() > 1e-6:
            warnings.warn(
                f"stop: {self.condition.__name__} has no gradient where paths stopped, so that touches between the ends of "
                "steps were not seen; write it as a number that passes through zero, as x[0] - 1.0.",
                RuntimeWarning,
                stacklevel=3,
            )
        return paths.sides

    def description(self) -> dict[str, Any]:
        return {"stop": code_of(self.condition.function), "stop_params": self.params.tolist()}

    def watched(self, made: Compiled) -> Watched:
        stop = self.condition.kernel(len(self.walls), self.params)
        return Watched(SURFACE, -np.inf, 0.0, made.walls, np.zeros((0, 3)), stop, self.params)


def _levels(low: Any, high: Any, *, around: bool) -> tuple[float, float]:
    """The levels as numbers; infinite where there is none.  ``around`` a ring the upper one may be below the other."""
    low, high = (
        float(value) if isinstance(value, Real) and value in (-np.inf, np.inf) else finite_number(name, value)
        for name, value in (("low", low), ("high", high))
    )
    ordered = low < high or (around and low != high and np.isfinite(low) and np.isfinite(high))
    if not ordered or (np.isinf(low) and np.isinf(high)):
        raise ValueError(
            f"low and high must leave an interval with at least one end, got ({low:g}, {high:g}); give one, or stop=."
        )
    if abs(high - low) < CLOSEST:
        raise ValueError(f"low and high are {high - low:g} apart, which float64 cannot square; choose larger units.")
    return low, high
