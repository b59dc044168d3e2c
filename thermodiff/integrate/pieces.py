"""What comes of the tasks of a run, in order: computed, or taken from a checkpoint.

A task takes some blocks of paths through all steps.  Where that would take long for a single block, the steps are cut into
stretches too: a run of few long paths shows how far it is, hears an interrupt, and goes on after a crash from the last
stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._tasks import in_order
from thermodiff.integrate.checkpoint import Checkpoint
from thermodiff.integrate.kept import Kept
from thermodiff.integrate.run import Run, Stretch

FloatArray = npt.NDArray[np.float64]
Piece = dict[str, Any]
Report = Callable[[int, int], object]

GROUP = 2**28
"""Bytes of states of the ranges that are under way together, about."""
FEWEST, MOST = 16, 4096
"""Ranges that are under way together."""


def pieces(
    run: Run,
    x0: FloatArray,
    ranges: list[slice],
    executor: Executor | None,
    saved: Checkpoint | None,
    kept: Kept,
    report: Report,
) -> Generator[Piece, None, None]:
    """The pieces of all ranges of paths in order: from the checkpoint, or computed, and saved there."""
    chunks = range(len(ranges))
    merged = kept.begin(None if saved is None else saved.total()) if run.reduce is not None else 0
    filed = saved is not None and (run.reduce is None or bool(kept.also))
    there = set(chunks) - set(saved.missing(len(ranges))) if saved is not None and filed else set(chunks[:merged])
    # What a reducer has not merged is computed again, for its part is in no file.
    todo = [k for k in chunks if k not in there or (run.reduce is not None and k >= merged)]
    missing, (stretches, rows) = set(todo), run.stretches()
    done = Done(len(ranges) * len(stretches), report)
    if len(stretches) == 1:
        source = _whole(run, x0, ranges, todo, executor)
    else:
        source = _stretched(run, stretches, rows, x0, ranges, todo, executor, saved, done)
    with closing(source) as found:
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
                saved.save(k, {name: value for name, value in piece.items() if name in (*kept.also, "states", "lost")})
            if k < merged:
                piece.pop("reduced", None)
            yield piece
            done.at((k + 1) * len(stretches))
            if saved is not None:
                saved.drop_parts(k + 1 if run.reduce is None else saved.merged)


@dataclass
class Done:
    """How many stretches of ranges are done, never fewer than before."""

    total: int
    report: Report
    count: int = 0

    def at(self, count: int) -> None:
        if count > self.count:
            self.count = count
            self.report(count, self.total)


def _whole(
    run: Run, x0: FloatArray, ranges: list[slice], todo: list[int], executor: Executor | None
) -> Generator[Piece, None, None]:
    yield from in_order(run, len(todo), executor, inputs=lambda j: (ranges[todo[j]], x0[ranges[todo[j]]]))


class Way:
    """Paths that are under way: states (T, d, n), heats and works (T, n) of each stretch that is behind them.

    The first begins with the start, the others with what follows the end of the one before.
    """

    NAMES = ("states", "heats", "works")

    def __init__(self, n: int, records: list[dict[str, np.ndarray]]) -> None:
        self.n, self.parts = n, [[record[name] for name in self.NAMES] for record in records]

    @property
    def stretches(self) -> int:
        """How many there are."""
        return len(self.parts)

    @property
    def x(self) -> FloatArray:
        """Where they are, (n, d)."""
        return np.ascontiguousarray(self.parts[-1][0][-1].T)

    def add(self, states: FloatArray, heats: FloatArray, works: FloatArray) -> dict[str, FloatArray]:
        """One stretch more, of whole blocks; returns what is new."""
        new = [states[..., : self.n], heats[:, : self.n], works[:, : self.n]]
        if self.parts:
            last = self.parts[-1]
            sums = [before[-1] + more[1:] if before.size else more for before, more in zip(last[1:], new[1:], strict=True)]
            new = [new[0][1:], *sums]
        # Not a view: the lanes beyond the last path are not kept.
        self.parts.append([np.ascontiguousarray(values) for values in new])
        return dict(zip(self.NAMES, self.parts[-1], strict=True))

    def joined(self, rows: npt.NDArray[np.intp]) -> list[FloatArray]:
        """States, heats and works at these of all times; the parts are given up."""
        whole, self.parts = [np.concatenate(values) for values in zip(*self.parts, strict=True)], []
        return [values[rows] if values.size else values for values in whole]


def _stretched(
    run: Run,
    stretches: list[Stretch],
    rows: npt.NDArray[np.intp],
    x0: FloatArray,
    ranges: list[slice],
    todo: list[int],
    executor: Executor | None,
    saved: Checkpoint | None,
    done: Done,
) -> Generator[Piece, None, None]:
    """The pieces of ``todo``: some ranges at a time, stretch by stretch."""
    size = 8 * rows.size * x0.shape[1] * max((part.stop - part.start for part in ranges), default=1)
    together, steps = min(max(GROUP // size, FEWEST), MOST), [stretch.step for stretch in stretches[1:]]
    for first in range(0, len(todo), together):
        group = todo[first : first + together]
        begun = [[] if saved is None else saved.parts(k, steps) for k in group]
        ways = [Way(ranges[k].stop - ranges[k].start, records) for k, records in zip(group, begun, strict=True)]
        before = group[0] * len(stretches)
        seen = []
        for number, stretch in enumerate(stretches):
            late = [(k, way) for k, way in zip(group, ways, strict=True) if way.stretches <= number]

            def given(j: int, late: list[tuple[int, Way]] = late, number: int = number) -> tuple[slice, FloatArray]:
                k, way = late[j]
                return ranges[k], way.x if number else x0[ranges[k]]

            with closing(in_order(stretch, len(late), executor, inputs=given)) as found:
                for (k, way), result in zip(late, found, strict=True):
                    new = way.add(*result)
                    if ranges[k].start == 0:
                        seen.append(stretch.seen(new["states"], way.n))
                    if saved is not None and number + 1 < len(stretches):
                        saved.add_part(k, steps[number], new)
                    done.at(before + sum(each.stretches for each in ways))
        for k, way in zip(group, ways, strict=True):
            piece = run.piece(way.n, *way.joined(rows))
            yield piece | ({"seen": seen} if ranges[k].start == 0 else {})
