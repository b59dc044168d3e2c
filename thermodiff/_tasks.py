"""Independent tasks on any `concurrent.futures.Executor`, results in order."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from contextvars import copy_context
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")

SHORT = 0.1
"""Seconds of a task up to which the main thread works too: what interrupts it must wait until a kernel comes back."""
GLANCE = 0.2
"""Seconds after which a wait looks up, where an interrupt does not end it."""


class _Helpers:
    """Threads beside the caller's, as many as are at work at a time; kernels and NumPy release the GIL.

    They end with the program.  Those of a `ThreadPoolExecutor` would be waited for, however long their tasks are.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def call(self, function: Callable[[], object]) -> None:
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="thermodiff", daemon=True).start()
        self._calls.put(function)

    def _serve(self) -> None:
        while True:
            self._calls.get()()
            self._idle.release()


_POOL = [_Helpers()]
_OWN = threading.local()
_ENDED: deque[str] = deque(maxlen=256)
"""Names of the last calls of `in_order` that ended early, of which tasks may still be at work."""

if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=lambda: _POOL.__setitem__(0, _Helpers()))


class _Task(Generic[T]):
    """A function for the tasks of one call, which come to nothing once it has ended."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.name = function, os.urandom(8).hex()

    def __call__(self, given: Any) -> T:
        outer, _OWN.name = getattr(_OWN, "name", ""), self.name
        try:
            pause()
            return self.function(given)
        except KeyboardInterrupt:
            # The task that a worker process has been handed beside this one is not begun.
            self.end()
            raise
        finally:
            _OWN.name = outer

    def end(self) -> None:
        """Nobody waits for the rest."""
        _ENDED.append(self.name)


def pause() -> None:
    """To be called by long tasks a few times a second: an interrupt is heard here, or that nobody waits for them any more.

    Raises
    ------
    CancelledError
        In a task of a call of `in_order` that has ended.
    """
    if getattr(_OWN, "name", "") in _ENDED:
        raise CancelledError


def workspace(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this thread, not initialised, that the next request of the same name overwrites.

    Fresh memory of this size comes as untouched pages, and touching them first costs more than the work done on them.
    """
    size = math.prod(shape)
    buffer = getattr(_OWN, name, None)
    if buffer is None or buffer.size < size:
        # From a line of the cache on, as `thermodiff.kernels.jit.lanes`.
        memory = np.empty(size + 8)
        first = -memory.ctypes.data % 64 // 8
        buffer = memory[first : first + size]
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
    calls are made here, one by one.  Where a worker process dies, a new pool takes over what is missing.  An interrupt is
    heard at once, however long the tasks are, and those that have not begun never do.
    """
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r:.60}.")
    given = inputs or _same
    if not concurrent:
        yield from (function(given(k)) for k in range(count))
    elif executor is None or count == 1:
        yield from _with_helpers(function, count, given)
    else:
        yield from _submitted(_Task(function), count, executor, given)


def _same(k: int) -> int:
    return k


def _with_helpers(function: Callable[[Any], T], count: int, given: Callable[[int], Any]) -> Iterator[T]:
    shared = _Shared(_Task(function), count, given)
    try:
        for k in range(count):
            value = shared.result(k)
            yield value
            del value
    finally:
        shared.end()


class _Shared(Generic[T]):
    """Tasks that this thread and helpers take from one row.

    This one works too: a thread that only waits is often woken on the core of a worker, which then stands still.  The main
    thread does so only while tasks are seen to be short, and a helper stands in for it until then.
    """

    def __init__(self, task: _Task[T], count: int, given: Callable[[int], Any]) -> None:
        self.task, self.count, self.given = task, count, given
        self.results: list[Future[T] | None] = [Future() for _ in range(count)]
        self.unclaimed = iter(range(count))
        self.claimed = self.handed_on = 0
        self.ahead, self.workers = 4 * cores(), min(cores(), count)
        self.helping: set[object] = set()
        self.patient = threading.current_thread() is threading.main_thread()
        self.works = not self.patient
        """Whether the thread that waits for the results works too."""

    def result(self, k: int) -> T:
        """That of task k, once: what has been handed on is not kept."""
        future = self.results[k]
        assert future is not None
        while not future.done():
            while len(self.helping) < self.workers - self.works and self.claimed < self.count:
                self.hire()
            if not (self.works and self.work()):
                _glance(future)
        self.results[k], self.handed_on = None, k + 1
        return future.result()

    def hire(self) -> None:
        """One helper more, in the context of this thread."""
        me, context = object(), copy_context()
        self.helping.add(me)
        _POOL[0].call(lambda: context.run(self.help_out, me))

    def work(self) -> bool:
        """Do the next task; whether there was one."""
        k = next(self.unclaimed, None)
        if k is None:
            return False
        self.claimed = k + 1
        future = self.results[k]
        assert future is not None
        try:
            future.set_result(self.timed(k))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # also sys.exit: what waits for this result must hear of it
            future.set_exception(error)
            if threading.current_thread() is threading.main_thread():
                raise
        return True

    def timed(self, k: int) -> T:
        since = time.monotonic()
        value = self.task(self.given(k))
        if self.patient:
            self.works = time.monotonic() - since < SHORT
        return value

    def help_out(self, me: object) -> None:
        # A helper that is far ahead leaves, so that results do not pile up, and one too many; it never waits.
        while self.claimed - self.handed_on < self.ahead and len(self.helping) <= self.workers - self.works and self.work():
            pass
        self.helping.discard(me)

    def end(self) -> None:
        """Whatever ends this early leaves nothing to claim."""
        deque(self.unclaimed, maxlen=0)
        if self.handed_on < self.count:
            self.task.end()


def _glance(future: Future[Any]) -> None:
    """Wait, but not for long."""
    with suppress(TimeoutError, CancelledError):
        future.exception(GLANCE)


UNKNOWN_WORKERS = 256
"""Taken for an executor that does not say how many it has."""
MOST_FINISHED = 16
"""Results of such an executor that may wait to be handed on before no more tasks are begun than are handed on."""
MOST_DEATHS = 20
"""Pools of processes that are replaced before giving up."""
STUCK = 2.0
"""Seconds that a pool has to notice that a worker is dead."""
MOST_IDLE_DEATHS = 2
"""Pools in a row that die before they have finished a task: workers that cannot start would die again."""


def _submitted(task: _Task[T], count: int, executor: Executor, given: Callable[[int], Any]) -> Iterator[T]:
    pool, losses, told = executor, _Losses(), _workers(executor)
    ahead = 4 * (told or max(cores(), UNKNOWN_WORKERS))
    waiting: dict[int, Future[T]] = {}
    try:
        k = 0
        while k < count:
            try:
                for j in _wanted(waiting, range(k, min(k + ahead, count)), None if told else MOST_FINISHED):
                    waiting[j] = pool.submit(task, given(j))
                while not waiting[k].done():
                    _glance(waiting[k])
                    if not waiting[k].done():
                        losses.look(pool)
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
        if waiting:
            task.end()
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
        self.seen = math.inf
        """When a dead worker was first seen in a pool that goes on."""

    def look(self, pool: Executor) -> None:
        """End a pool that has a dead worker and does not notice.

        It waits for the rest of a result if the worker was killed while it wrote one, and the others cannot write theirs.
        Once nothing can write there any more, it learns that it is broken.
        """
        workers: Any = list((getattr(pool, "_processes", None) or {}).values())
        if not isinstance(pool, ProcessPoolExecutor) or not wait([worker.sentinel for worker in workers], 0.0):
            self.seen = math.inf
            return
        self.seen = min(self.seen, time.monotonic())
        if time.monotonic() - self.seen > STUCK:
            results: Any = pool._result_queue
            for worker in workers:
                worker.kill()
            results._writer.close()
            self.seen = math.inf

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
