"""Work in chunks of blocks over any `concurrent.futures.Executor`.

Blocks are ranges of LANES *global* path indices and every result is a function of its block alone, so neither the number
of workers nor the chunk changes a bit of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from thermodiff._tasks import cores, in_order
from thermodiff.kernels.jit import LANES, Kernel
from thermodiff.kernels.march import apply

MOST_BLOCKS = 128
"""Blocks of one task: memory grows with them, and a worker that dies takes them along."""
TASK_STEPS = 1 << 21
"""Steps of one coordinate in one task, about: some milliseconds, beside which handing it out costs nothing."""


def blocks_per_task(paths: int, steps: int, wanted: int = TASK_STEPS) -> int:
    """Blocks for each task of a run of ``paths`` paths and ``steps`` steps (times coordinates), of ``wanted`` steps or more.

    Few, so that workers end together, and independent of their number: a run that goes on elsewhere has the same tasks.
    """
    worthwhile = -(-wanted // (LANES * max(steps, 1)))
    return min(worthwhile, -(-paths // LANES), MOST_BLOCKS)


def over_blocks(
    function: Callable[[int, int], np.ndarray],
    count: int,
    executor: Executor | None,
    chunk: int | None,
    report: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Call ``function(first, last)`` over the blocks that hold ``count`` paths; join the results along the last axis.

    ``chunk`` is the number of blocks per call (None: four calls per core).  ``function`` must be picklable where the
    executor runs processes.  Lanes beyond ``count`` are cut off.  ``report(done, ranges)`` is called after each.
    """
    blocks = -(-count // LANES)
    if chunk is None:
        chunk = max(1, -(-blocks // (4 * cores())))
    ranges = [(first, min(first + chunk, blocks)) for first in range(0, blocks, chunk)]
    if len(ranges) == 1 and executor is None:
        return function(*ranges[0])[..., :count]
    pieces = []
    for piece in in_order(Ranged(function, ranges), len(ranges), executor):
        pieces.append(piece)
        if report is not None:
            report(len(pieces), len(ranges))
    return np.concatenate(pieces, axis=-1)[..., :count]


@dataclass(frozen=True)
class Ranged:
    """``function`` called on the k-th range; picklable where ``function`` is."""

    function: Callable[[int, int], np.ndarray]
    ranges: list[tuple[int, int]]

    def __call__(self, k: int) -> np.ndarray:
        return self.function(*self.ranges[k])


def at_points(
    field: Kernel, params: np.ndarray, row: tuple[float, float, float, float], points: np.ndarray, rows: int
) -> np.ndarray:
    """One evaluation of a field at points (n, d); returns (n, rows)."""
    n = points.shape[0]
    padded = np.empty((points.shape[1], -(-n // LANES) * LANES))
    padded[:, :n] = points.T
    # Lanes beyond n repeat the last point, so that nothing exceptional is computed there.
    padded[:, n:] = padded[:, n - 1 : n]
    task = partial(_evaluate, field, params, np.array(row, dtype=np.float64), padded, rows)
    return np.ascontiguousarray(over_blocks(task, n, None, None).T)


def _evaluate(
    field: Kernel, params: np.ndarray, row: np.ndarray, points: np.ndarray, rows: int, first: int, last: int
) -> np.ndarray:
    out = np.empty((rows, (last - first) * LANES))
    apply(field, params, row, np.ascontiguousarray(points[:, first * LANES : last * LANES]), out)
    return out
