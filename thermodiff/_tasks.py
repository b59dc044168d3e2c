"""Independent tasks on any `concurrent.futures.Executor`, results in order."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

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


def in_order(function: Callable[[int], T], count: int, executor: Executor | None, *, concurrent: bool = True) -> Iterator[T]:
    """Yield ``function(0) ... function(count - 1)`` in order, computed by ``executor`` (None: threads, this one among them).

    A few tasks per worker of an executor are under way at a time, so memory does not grow with ``count``.  Without
    ``concurrent`` the calls are made here, one by one.
    """
    if not concurrent or count == 1 or (executor is None and cores() == 1):
        yield from map(function, range(count))
    elif executor is None:
        yield from _with_helpers(function, count)
    else:
        yield from _submitted(function, count, executor)


def _with_helpers(function: Callable[[int], T], count: int) -> Iterator[T]:
    """Work here too: a thread that only waits is often woken on the core of a worker, which then stands still."""
    results: list[Future[T]] = [Future() for _ in range(count)]
    unclaimed = iter(range(count))

    def work() -> bool:
        k = next(unclaimed, None)
        if k is None:
            return False
        try:
            results[k].set_result(function(k))
        except Exception as error:
            results[k].set_exception(error)
        return True

    def help_out() -> None:
        while work():
            pass

    for _ in range(min(cores(), count) - 1):
        _helpers().submit(help_out)
    try:
        for result in results:
            while not result.done() and work():
                pass
            yield result.result()
    finally:
        # Whatever ends this early leaves nothing to claim.
        deque(unclaimed, maxlen=0)


def _submitted(function: Callable[[int], T], count: int, executor: Executor) -> Iterator[T]:
    ahead = 4 * (getattr(executor, "_max_workers", None) or cores())
    waiting: deque[Future[T]] = deque()
    try:
        for k in range(count):
            waiting.append(executor.submit(function, k))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
