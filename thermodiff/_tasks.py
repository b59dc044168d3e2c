"""Independent tasks on any `concurrent.futures.Executor`, results in order."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@cache
def _helpers() -> ThreadPoolExecutor:
    """One pool for the process, beside the thread that calls; kernels and NumPy release the GIL."""
    return ThreadPoolExecutor(max_workers=max(cores() - 1, 1), thread_name_prefix="thermodiff")


_OWN = threading.local()


def workspace(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this thread, not initialised, that the next request of the same name overwrites.

    Fresh memory of this size comes as untouched pages, and touching them first costs more than the work done on them.
    """
    size = math.prod(shape)
    buffer = getattr(_OWN, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size)
        setattr(_OWN, name, buffer)
    return buffer[:size].reshape(shape)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Any], T],
    count: int,
    executor: Executor | None,
    *,
    concurrent: bool = True,
    inputs: Callable[[int], Any] | None = None,
) -> Generator[T, None, None]:
    """Yield ``function(0) ... function(count - 1)`` in order, computed by ``executor`` (None: threads, this one among them).

    ``inputs(k)``, made here when task k is handed out, takes the place of k: only a task's own data travels.  A few tasks
    per worker of an executor are under way at a time, so memory does not grow with ``count``.  Without ``concurrent`` the
    calls are made here, one by one.  Where a worker process dies, a new pool takes over what is missing.
    """
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r:.60}.")
    given = inputs or _same
    if not concurrent or count == 1 or (executor is None and cores() == 1):
        yield from (function(given(k)) for k in range(count))
    elif executor is None:
        yield from _with_helpers(function, count, given)
    else:
        yield from _submitted(function, count, executor, given)


def _same(k: int) -> int:
    return k


def _with_helpers(function: Callable[[Any], T], count: int, given: Callable[[int], Any]) -> Iterator[T]:
    """Work here too: a thread that only waits is often woken on the core of a worker, which then stands still."""
    results: list[Future[T] | None] = [Future() for _ in range(count)]
    unclaimed = iter(range(count))
    claimed = handed_on = 0
    ahead, wanted = 4 * cores(), min(cores(), count) - 1
    helping: list[Future[None]] = []

    def work() -> bool:
        nonlocal claimed
        k = next(unclaimed, None)
        if k is None:
            return False
        claimed = k + 1
        result = results[k]
        assert result is not None
        try:
            result.set_result(function(given(k)))
        except BaseException as error:  # also sys.exit: what waits for this result must hear of it
            result.set_exception(error)
        return True

    def help_out() -> None:
        # A helper that is far ahead leaves, so that results do not pile up; it never waits.
        while claimed - handed_on < ahead and work():
            pass

    try:
        for k in range(count):
            helping = [helper for helper in helping if not helper.done()]
            while len(helping) < wanted and claimed < count:
                helping.append(_helpers().submit(help_out))
            result = results[k]
            assert result is not None
            while not result.done() and work():
                pass
            value = result.result()
            # What has been handed on is not kept.
            results[k] = result = None
            handed_on = k + 1
            yield value
            del value
    finally:
        # Whatever ends this early leaves nothing to claim.
        deque(unclaimed, maxlen=0)


UNKNOWN_WORKERS = 256
"""Taken for an executor that does not say how many it has."""
MOST_FINISHED = 16
"""Results of such an executor that may wait to be handed on before no more tasks are begun than are handed on."""
MOST_DEATHS = 20
"""Pools of processes that are replaced before giving up."""
MOST_IDLE_DEATHS = 2
"""Pools in a row that die before they have finished a task: workers that cannot start would die again."""


def _submitted(function: Callable[[Any], T], count: int, executor: Executor, given: Callable[[int], Any]) -> Iterator[T]:
    pool, losses, told = executor, _Losses(), _workers(executor)
    ahead = 4 * (told or max(cores(), UNKNOWN_WORKERS))
    waiting: dict[int, Future[T]] = {}
    try:
        k = 0
        while k < count:
            try:
                for j in _wanted(waiting, range(k, min(k + ahead, count)), None if told else MOST_FINISHED):
                    waiting[j] = pool.submit(function, given(j))
                value = waiting[k].result()
            except BrokenExecutor as error:
                waiting = {j: future for j, future in waiting.items() if _finished(future)}
                losses.count(error, k + len(waiting))
                pool = _replacement(pool, executor)
                continue
            del waiting[k]
            k += 1
            yield value
    finally:
        for future in waiting.values():
            future.cancel()
        if pool is not executor:
            pool.shutdown(wait=False, cancel_futures=True)


def _wanted(waiting: dict[int, Future[Any]], tasks: range, most: int | None) -> Iterator[int]:
    """Those of ``tasks`` to be submitted now: the first, and the others while fewer than ``most`` finished ones wait."""
    finished = 0 if most is None else sum(future.done() for future in waiting.values())
    for j in tasks:
        if most is not None and j > tasks[0] and finished >= most:
            return
        if j not in waiting:
            yield j
            # An executor may run a task at once.
            finished += waiting[j].done()


class _Losses:
    """Pools that died, and how many of them in a row before anything was finished."""

    def __init__(self) -> None:
        self.deaths = self.idle = self.done = 0

    def count(self, error: BrokenExecutor, done: int) -> None:
        """Another has died, after ``done`` tasks in all; raises where another would not help."""
        self.idle = self.idle + 1 if done == self.done else 0
        self.deaths, self.done = self.deaths + 1, done
        if isinstance(error, BrokenProcessPool) and self.idle >= MOST_IDLE_DEATHS:
            raise BrokenProcessPool(_LATER if done else _NEVER) from error
        if self.deaths > MOST_DEATHS:
            raise error


_NEVER = (
    "the worker processes end before they have finished a task.  Where processes are spawned, the program must be a file, "
    'and what it calls must stand under `if __name__ == "__main__":`; a program from standard input needs threads, or a '
    'pool with mp_context=multiprocessing.get_context("fork").  If the pool has an initializer, it may have failed: see its '
    "error."
)
_LATER = (
    "the worker processes die again and again before they finish another task: a task may end its process, or the system "
    "does, for want of memory; use fewer workers, or smaller tasks (chunk=1)."
)


def _workers(executor: Executor) -> int:
    """How many there are; 0 where an executor does not say."""
    told = getattr(executor, "_max_workers", None) or getattr(executor, "num_workers", None)
    with suppress(Exception):  # Dask's client has a method for it
        told = told or sum(executor._client.nthreads().values())  # pyright: ignore[reportAttributeAccessIssue]
    return told if isinstance(told, int) and told > 0 else 0


def _finished(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _replacement(pool: Executor, first: Executor) -> Executor:
    """A new pool of processes like the broken one."""
    if not isinstance(pool, ProcessPoolExecutor):
        raise RuntimeError("the executor lost its workers and cannot be replaced; start it again.")
    if pool is not first:
        pool.shutdown(wait=False, cancel_futures=True)
    old: Any = pool
    return ProcessPoolExecutor(
        old._max_workers, old._mp_context, old._initializer, old._initargs, max_tasks_per_child=old._max_tasks_per_child
    )
