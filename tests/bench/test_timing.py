"""Timing: in turn, the least of the runs, and rivals that cannot run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from thermodiff.bench import timing
from thermodiff.bench.problems import Verdict
from thermodiff.bench.rivals import Absent
from thermodiff.bench.works import PATH_STEP, SECONDS, Unit, Way, Work


class Problem:
    size = 100.0


def way(name: str, seconds: float, log: list[str], **options: Any) -> Way:
    def make(problem: Any) -> Callable[[], float]:
        def call() -> float:
            log.append(name)
            time.sleep(seconds)
            return seconds

        return call

    return Way(name, 1, make, **options)


def work(*ways: Way, unit: Unit = PATH_STEP, **options: Any) -> Work:
    def judge(problem: Any, result: float) -> Verdict:
        return Verdict("seconds", result, 0.0)

    return Work("name", "statement", Problem, {"tiny": {}}, ways, unit, judge, **options)


def test_runs_are_in_turn() -> None:
    log: list[str] = []
    timing.run(work(way("a", 0.0, log), way("b", 0.0, log), way("c", 0.0, log)), "tiny", 3, 0.0)
    assert "".join(log) == "a" + "b" + "ab" * 3 + "c" + "ac" * 3


def test_numbers() -> None:
    log: list[str] = []
    slow = way("slow", 0.03, log, goal=2.0, size=lambda problem: 10.0)
    fast, other = timing.run(work(way("fast", 0.01, log), slow), "tiny", 3, 0.0)
    assert (fast.ratio, len(fast.runs), len(other.runs)) == (1.0, 3, 3)
    assert other.ratio == pytest.approx(other.seconds / fast.seconds)
    assert 2.0 < other.ratio < 3.2
    assert other.seconds == min(other.runs)
    assert fast.cost == pytest.approx(1e9 * fast.seconds / 100.0)
    assert other.cost == pytest.approx(1e9 * other.seconds / 10.0)
    assert other.verdict == ("seconds", 0.03, 0.0)
    assert json.loads(json.dumps(other.record()))["verdict"]["deviation"] == 0.03


def test_seconds_are_not_divided() -> None:
    (alone,) = timing.run(work(way("a", 0.01, []), unit=SECONDS), "tiny", 2, 0.0)
    assert alone.cost == alone.seconds
    assert len(alone.runs) == 2


def test_processes_apart_count_their_first_run() -> None:
    log: list[str] = []
    found = timing.run(work(way("a", 0.0, log), way("b", 0.0, log), apart=True), "tiny", 3, 0.0)
    assert "".join(log) == "aaabbb"
    assert [len(one.runs) for one in found] == [3, 3]


def test_absent_and_failing_rivals() -> None:
    def absent(problem: Any) -> Any:
        raise Absent("jax is not installed")

    def fails(problem: Any) -> Any:
        raise RuntimeError("their fault\nmore")

    found = timing.run(work(way("a", 0.0, []), Way("x", 1, absent), Way("y", 1, fails)), "tiny", 1, 0.0)
    assert [one.skipped for one in found] == ["", "jax is not installed", "y failed: RuntimeError: their fault"]
    assert found[1].record() == {"work": "name", "way": "x", "threads": 1, "skipped": "jax is not installed"}


def test_our_own_failure_is_not_hidden() -> None:
    def fails(problem: Any) -> Any:
        raise RuntimeError("our fault")

    with pytest.raises(RuntimeError, match="our fault"):
        timing.run(work(Way("a", 1, fails)), "tiny", 1, 0.0)


def test_a_call_that_times_itself() -> None:
    class Timed:
        timed = True

        def __call__(self) -> float:
            return 7.0

    assert timing.seconds_of(Timed()) == (7.0, None)
