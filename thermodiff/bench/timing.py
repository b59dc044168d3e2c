"""Measuring: thermodiff and one rival in turn, the least of several runs of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from thermodiff.bench.problems import Verdict
from thermodiff.bench.rivals import Absent
from thermodiff.bench.works import Way, Work

PAUSE = 0.05
"""Seconds before each run: threads of BLAS and OpenMP spin for a while after their work, on cores that the next needs."""


@dataclass(frozen=True)
class Timing:
    """One way to do one work.

    Attributes
    ----------
    work, way, threads, unit
        What was done, how, on how many threads, and what ``cost`` is given in.
    seconds : float
        The least of ``runs``; for the first way of a work, of its runs beside all rivals.
    runs : list of float
        Seconds of each run.
    first : float
        Seconds of the run before, which compiles.
    cost : float
        The time in ``unit``.
    ratio : float
        Seconds of this way by those of the first way, measured in turn with it.
    goal : float
        What the ratio should be at least; 0 for nothing.
    verdict : Verdict or None
        Deviation of the result from the truth.
    skipped : str
        Why it was not done; all numbers are 0 then.
    """

    work: str
    way: str
    threads: int
    unit: str
    seconds: float = 0.0
    runs: tuple[float, ...] = ()
    first: float = 0.0
    cost: float = 0.0
    ratio: float = 0.0
    goal: float = 0.0
    verdict: Verdict | None = None
    skipped: str = ""

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {name: value for name, value in asdict(self).items() if value not in ("", None)}
        if self.skipped:
            return {name: found[name] for name in ("work", "way", "threads", "skipped")}
        return {**found, "verdict": self.verdict._asdict()} if self.verdict is not None else found


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and its result.  A call that measures itself says so with an attribute ``timed``."""
    if getattr(work, "timed", False):
        return work(), None
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def in_turn(works: list[Callable[[], Any]], rounds: int, pause: float = PAUSE) -> list[tuple[float, ...]]:
    """Seconds of each call in each round: one, the other, one, the other."""
    runs: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, found in zip(works, runs, strict=True):
            time.sleep(pause)
            found.append(seconds_of(work)[0])
    return [tuple(found) for found in runs]


def run(work: Work, size: str, rounds: int, pause: float = PAUSE) -> list[Timing]:
    """Do a work in all its ways; a rival that is absent or fails is skipped, with the reason.

    Parameters
    ----------
    work : Work
    size : str
        One of the names in ``work.sizes``.
    rounds : int
        Runs of each way.
    pause : float
        Seconds of rest before each run.

    Returns
    -------
    list of Timing
        In the order of ``work.ways``.
    """
    problem = work.problem(**work.sizes[size])
    base, *others = work.ways
    ours, first, verdict = _prepared(work, base, problem)
    own: tuple[float, ...] = (first, *in_turn([ours], rounds - 1, pause)[0]) if work.apart else ()
    found = []
    for way in others:
        try:
            theirs, began, judged = _prepared(work, way, problem)
        except Absent as reason:
            found.append(_skipped(work, way, str(reason)))
            continue
        except Exception as error:
            # Other people's packages change; what one of them does must not cost the results of all.
            text = (str(error).splitlines() or [""])[0]
            found.append(_skipped(work, way, f"{way.name} failed: {type(error).__name__}: {text:.200}"))
            continue
        if work.apart:
            # The first run of a process is like any other, and processes do not disturb each other.
            runs, beside = (began, *in_turn([theirs], rounds - 1, pause)[0]), own
        else:
            beside, runs = in_turn([ours, theirs], rounds, pause)
            own += beside
        found.append(_timing(work, way, problem, runs, began, judged, min(runs) / min(beside)))
    own = own or in_turn([ours], rounds, pause)[0]
    return [_timing(work, base, problem, own, first, verdict, 1.0), *found]


def _prepared(work: Work, way: Way, problem: Any) -> tuple[Callable[[], Any], float, Verdict | None]:
    """The call, the seconds of its first run, and what is said of its result."""
    call = way.make(problem)
    first, result = seconds_of(call)
    return call, first, None if result is None or work.judge is None else work.judge(problem, result)


def _timing(
    work: Work, way: Way, problem: Any, runs: tuple[float, ...], first: float, verdict: Verdict | None, ratio: float
) -> Timing:
    least, unit = min(runs), work.unit
    size = 1.0 if not unit.per_size else problem.size if way.size is None else way.size(problem)
    cost = unit.factor * least / size
    return Timing(work.name, way.name, way.threads, unit.name, least, runs, first, cost, ratio, way.goal, verdict)


def _skipped(work: Work, way: Way, reason: str) -> Timing:
    return Timing(work.name, way.name, way.threads, work.unit.name, goal=way.goal, skipped=reason)
