"""Tasks over executors: order, laziness, failures."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from thermodiff._tasks import cores, in_order


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
