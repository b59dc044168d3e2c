"""Tasks over executors: order, laziness, failures."""

import contextvars
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from user_dynamics import process_id
from worker_deaths import DiesOnce, DiesWhileItWrites

from thermodiff import _tasks
from thermodiff._tasks import cores, in_order, pause, workspace


def slow_first(k: int) -> int:
    """Later tasks finish first."""
    time.sleep(0.02 if k % 3 == 0 else 0.0)
    return k * k


@pytest.mark.parametrize("workers", [None, 1, 2, 3])
def test_results_come_in_order(workers: int | None) -> None:
    executor = None if workers is None else ThreadPoolExecutor(workers)
    try:
        assert list(in_order(slow_first, 20, executor)) == [k * k for k in range(20)]
    finally:
        if executor is not None:
            executor.shutdown()


def test_without_concurrency_the_calls_are_made_here_one_by_one() -> None:
    here, seen = threading.get_ident(), []
    results = in_order(lambda k: seen.append(threading.get_ident()), 5, None, concurrent=False)
    next(results)
    assert seen == [here]
    list(results)
    assert seen == [here] * 5


def test_only_a_few_tasks_are_under_way() -> None:
    started = []
    with ThreadPoolExecutor(1) as executor:
        results = in_order(started.append, 1000, executor)
        next(results)
        time.sleep(0.05)
        assert 1 <= len(started) <= 6
        results.close()
    assert len(started) <= 6


def test_a_failure_reaches_the_caller() -> None:
    def fail(k: int) -> int:
        if k == 3:
            raise ArithmeticError("third")
        return k

    with pytest.raises(ArithmeticError, match="third"):
        list(in_order(fail, 10, None))


def test_there_is_a_core() -> None:
    assert cores() >= 1


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_inputs_take_the_place_of_the_number(workers: int | None) -> None:
    executor = None if workers is None else ThreadPoolExecutor(workers)
    try:
        assert list(in_order(slow_first, 20, executor, inputs=lambda k: 10 * k)) == [100 * k * k for k in range(20)]
        assert list(in_order(slow_first, 1, executor, inputs=lambda k: 7)) == [49]
        assert list(in_order(slow_first, 0, executor)) == []
    finally:
        if executor is not None:
            executor.shutdown()


def test_inputs_are_made_when_a_task_is_handed_out() -> None:
    made = []

    def given(k: int) -> int:
        made.append(k)
        return k

    with ThreadPoolExecutor(1) as executor:
        results = in_order(slow_first, 1000, executor, inputs=given)
        next(results)
        assert made == list(range(len(made)))
        assert 1 <= len(made) <= 6
        results.close()


def test_helpers_do_not_run_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that nobody has taken yet do not pile up; what is left is still done."""
    monkeypatch.setattr(_tasks, "cores", lambda: 2)
    started = []

    def task(k: int) -> int:
        started.append(k)
        return k

    results = in_order(task, 200, None)
    for taken in range(10):
        assert next(results) == taken
        time.sleep(0.02)
        assert len(started) <= taken + 12
    assert list(results) == list(range(10, 200))
    assert sorted(started) == list(range(200))


def test_closing_early_stops_what_has_not_begun() -> None:
    started = []

    def task(k: int) -> int:
        started.append(k)
        time.sleep(0.002)
        return k

    results = in_order(task, 10_000, None)
    assert next(results) == 0
    results.close()
    time.sleep(0.05)
    seen = len(started)
    time.sleep(0.05)
    assert len(started) == seen < 100
    # The helpers are free again.
    assert list(in_order(slow_first, 6, None)) == [k * k for k in range(6)]


def test_results_that_were_handed_on_are_not_kept() -> None:
    class Result:
        pass

    for executor in (None, ThreadPoolExecutor(2)):
        alive = []
        for value in in_order(lambda k: Result(), 50, executor):
            alive.append(weakref.ref(value))
            del value
            assert sum(reference() is not None for reference in alive[:-1]) == 0
        if executor is not None:
            executor.shutdown()


FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("k", [0, 7, 29])
def test_the_death_of_a_worker_loses_nothing(k: int, tmp_path) -> None:
    with ProcessPoolExecutor(2, mp_context=FORK) as executor:
        found = list(in_order(DiesOnce(k, str(tmp_path / "mark")), 30, executor))
        assert found == [j * j for j in range(30)]
        assert (tmp_path / "mark").exists()
        # The pool that broke is not mended, but taken over again at the next call.
        assert list(in_order(slow_first, 5, executor)) == [j * j for j in range(5)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_death_of_a_worker_in_the_middle_of_a_result_loses_nothing(method: str, tmp_path, monkeypatch) -> None:
    """The pool of the standard library would wait for the other half for ever."""
    monkeypatch.setattr(_tasks, "STUCK", 0.5)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as executor:
        found = list(in_order(DiesWhileItWrites(7, str(tmp_path / "mark")), 30, executor))
        assert found == [j * j for j in range(30)]
        assert (tmp_path / "mark").exists()


def test_a_task_that_always_kills_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tasks, "MOST_DEATHS", 2)
    pools, replacement = [], _tasks._replacement

    def counted(*given):
        pools.append(replacement(*given))
        return pools[-1]

    monkeypatch.setattr(_tasks, "_replacement", counted)
    with ProcessPoolExecutor(1, mp_context=FORK) as executor, pytest.raises(BrokenProcessPool):
        list(in_order(always_dies, 5, executor))
    assert len(pools) == 2


def always_dies(k: int) -> None:
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def cannot_start() -> None:
    raise ValueError("module not found")


@pytest.mark.parametrize(
    ("task", "initializer", "message", "most"),
    [
        (slow_first, cannot_start, "before they have finished a task.*if __name__ == .*standard input.*initializer", 1),
        (always_dies, None, "again and again before they finish another task.*fewer workers, or smaller tasks", 3),
    ],
    ids=["never starts", "always dies"],
)
@pytest.mark.filterwarnings("ignore")
def test_pools_that_get_nowhere_are_given_up_soon(task, initializer, message: str, most: int, monkeypatch) -> None:
    pools, replacement = [], _tasks._replacement

    def counted(*given):
        pools.append(replacement(*given))
        return pools[-1]

    monkeypatch.setattr(_tasks, "_replacement", counted)
    with (
        ProcessPoolExecutor(1, mp_context=FORK, initializer=initializer) as executor,
        pytest.raises(BrokenProcessPool, match=message),
    ):
        list(in_order(task, 5, executor))
    assert 1 <= len(pools) <= most


def test_the_new_pool_is_like_the_old_one() -> None:
    old = ProcessPoolExecutor(3, multiprocessing.get_context("spawn"), print, ("started",), max_tasks_per_child=7)
    new = _tasks._replacement(old, old)
    names = ("_max_workers", "_mp_context", "_initializer", "_initargs", "_max_tasks_per_child")
    assert [getattr(new, name) for name in names] == [getattr(old, name) for name in names]
    old.shutdown()
    new.shutdown()


class Dead(Executor):
    """An executor that is not a pool of processes, and lost its workers."""

    def submit(self, function, /, *arguments, **keywords) -> Future:
        raise BrokenExecutor("gone")


def test_other_executors_cannot_be_replaced() -> None:
    with pytest.raises(RuntimeError, match="the executor lost its workers and cannot be replaced; start it again"):
        list(in_order(slow_first, 5, Dead()))


def test_tasks_run_in_the_processes() -> None:
    with ProcessPoolExecutor(2, mp_context=FORK) as executor:
        assert os.getpid() not in set(in_order(process_id, 6, executor))


def test_a_failure_in_a_process_reaches_the_caller() -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as executor, pytest.raises(ZeroDivisionError):
        list(in_order(divided, 5, executor))


def divided(k: int) -> float:
    return 1 / (k - 3)


class Silent(ThreadPoolExecutor):
    """Does not say how many workers it has, as Dask's and MPI's."""

    def __init__(self) -> None:
        super().__init__(2)
        self.given, self._max = 0, self._max_workers

    def submit(self, *arguments, **keywords):
        self.given += 1
        self._max_workers = self._max
        future = super().submit(*arguments, **keywords)
        self._max_workers = None
        return future


def test_an_executor_that_does_not_say_its_size_gets_many_tasks() -> None:
    done = threading.Event()
    with Silent() as executor:
        executor._max_workers = None
        # Only the first ends, so that no result is in the way of further tasks.
        results = in_order(lambda k: done.wait() if k else None, 2000, executor)
        next(results)
        assert executor.given >= 512
        done.set()
        results.close()
        executor._max_workers = 2


class AtOnce(Executor):
    """Runs a task when it is submitted."""

    def submit(self, function, /, *arguments, **keywords) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments, **keywords))
        return future


def test_finished_results_do_not_pile_up() -> None:
    class Result:
        pass

    made = []

    def task(k: int) -> Result:
        result = Result()
        made.append(weakref.ref(result))
        return result

    most = 0
    for _ in in_order(task, 400, AtOnce()):
        most = max(most, sum(reference() is not None for reference in made))
    assert len(made) == 400
    assert most <= _tasks.MOST_FINISHED + 2


def test_a_thread_that_ends_the_program_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task would else be waited for without end."""
    here = threading.get_ident()

    def leave(k: int) -> None:
        time.sleep(0.01)
        if threading.get_ident() != here:
            raise SystemExit(3)

    monkeypatch.setattr(_tasks, "cores", lambda: 2)
    with pytest.raises(SystemExit):
        list(in_order(leave, 100, None))


def deaf(k: int) -> int:
    """As a kernel it releases the interpreter, and comes back only when it is done, after some seconds."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 8_000_000)
    return k


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("workers", [None, 1])
def test_an_interrupt_is_heard_while_tasks_are_under_way(count: int, workers: int | None) -> None:
    finished, executor = [], None if workers is None else ThreadPoolExecutor(workers)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(lambda k: finished.append(deaf(k)), count, executor))
    assert finished == []
    timer.join()
    if executor is not None:
        executor.shutdown(wait=False)


def test_the_main_thread_works_while_tasks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for short, most in ((60.0, 39), (0.0, 0)):
        monkeypatch.setattr(_tasks, "SHORT", short)
        here = [thread == threading.get_ident() for thread in in_order(lambda k: threading.get_ident(), 40, None)]
        assert min(most, 1) <= sum(here) <= most


@pytest.mark.parametrize("workers", [None, 2])
def test_tasks_of_a_call_that_has_ended_stop(workers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tasks, "SHORT", 0.0)  # the endless ones are for helpers
    begun, stopped, executor = [], [], None if workers is None else ThreadPoolExecutor(workers)

    def endless(k: int) -> int:
        begun.append(k)
        try:
            while k > 0:
                time.sleep(0.005)
                pause()
        except CancelledError:
            stopped.append(k)
            raise
        return k

    results = in_order(endless, 100, executor)
    assert next(results) == 0
    results.close()
    since = time.monotonic()
    while set(begun) - {0} != set(stopped) and time.monotonic() - since < 20.0:
        time.sleep(0.01)
    assert set(begun) - {0} == set(stopped)
    pause()  # nothing has ended here


def test_a_worker_that_was_interrupted_does_not_begin_what_it_was_handed_beside() -> None:
    made = []

    def task(k: int) -> None:
        made.append(k)
        raise KeyboardInterrupt

    tasks = _tasks._Task(task)
    with pytest.raises(KeyboardInterrupt):
        tasks(0)
    with pytest.raises(CancelledError):
        tasks(1)
    assert made == [0]
    with pytest.raises(KeyboardInterrupt):
        _tasks._Task(task)(2)


def test_a_forked_process_has_helpers_of_its_own() -> None:
    assert list(in_order(slow_first, 20, None)) == [k * k for k in range(20)]
    child = FORK.Process(target=lambda: sys.exit(list(in_order(slow_first, 20, None)) != [k * k for k in range(20)]))
    child.start()
    child.join(60.0)
    assert child.exitcode == 0


VALUE = contextvars.ContextVar("value", default=0)


def test_helpers_work_in_the_context_of_the_caller() -> None:
    token = VALUE.set(3)
    try:
        assert set(in_order(lambda k: time.sleep(0.001) or VALUE.get(), 40, None)) == {3}
    finally:
        VALUE.reset(token)


PROGRAM = """
import _thread, hashlib, threading
from thermodiff._tasks import in_order

def deaf(k):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000)
    print("finished", flush=True)

threading.Timer(0.3, _thread.interrupt_main).start()
try:
    list(in_order(deaf, 4, None))
except KeyboardInterrupt:
    print("heard", flush=True)
"""


def test_a_program_does_not_wait_for_helpers_when_it_ends() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, found.stdout) == (0, "heard\n")


def test_a_workspace_begins_with_a_cache_line_and_is_used_again() -> None:
    for size in (3, 1000, 100_000):
        first = workspace("test", (size, 2))
        assert first.ctypes.data % 64 == 0
        assert first.shape == (size, 2)
        assert np.shares_memory(first, workspace("test", (size,)))
