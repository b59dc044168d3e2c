"""Independent tasks on any `concurrent.futures.Executor`, results in order."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread: its own threads inside ours fight for the cores (ten times slower on a busy machine)."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _threads() -> ThreadPoolExecutor:
    """One pool for the process; kernels and NumPy release the GIL."""
    return ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="thermodiff")


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
    """Yield ``function(0) ... function(count - 1)`` in order, computed by ``executor`` (None: threads).

    A few tasks per worker are under way at a time, so memory does not grow with ``count``.  Without ``concurrent`` the
    calls are made here, one by one.
    """
    if not concurrent or count == 1:
        yield from map(function, range(count))
        return
    pool = executor or _threads()
    ahead = 4 * (getattr(pool, "_max_workers", None) or cores())
    waiting: deque[Future[T]] = deque()
    try:
        for k in range(count):
            waiting.append(pool.submit(function, k))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
