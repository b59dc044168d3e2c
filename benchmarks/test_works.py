"""All works in all ways, with the accuracy stored beside the time.

The works and rivals are those of ``thermodiff bench``, which measures ratios in turn and is what the published results come
from; here pytest-benchmark measures each way by itself.  What is not installed is skipped.  Run with

    pytest benchmarks --benchmark-only -m "" --benchmark-group-by=group

The sizes are the quick ones; THERMODIFF_BENCH=full takes the published ones, THERMODIFF_BENCH=tiny shows that all works.
"""

from __future__ import annotations

import os

import pytest

from thermodiff.bench.rivals import Absent
from thermodiff.bench.works import WORKS

SIZE = os.environ.get("THERMODIFF_BENCH", "quick")
ROUNDS = {"full": 9, "quick": 3, "tiny": 1}[SIZE]
TOGETHER = [(work, way) for work in WORKS if not work.apart for way in work.ways]
APART = [(work, way) for work in WORKS if work.apart for way in work.ways]


def label(pair):
    work, way = pair
    return f"{work.name}: {way.name}, {way.threads} thread{'s' * (way.threads > 1)}"


def made(work, way):
    problem = work.problem(**work.sizes[SIZE])
    try:
        return problem, way.make(problem)
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("pair", TOGETHER, ids=label)
@pytest.mark.filterwarnings("default")
def test_work(benchmark, pair):
    work, way = pair
    problem, call = made(work, way)
    benchmark.group = work.name
    result = call()
    benchmark.pedantic(call, rounds=ROUNDS)
    benchmark.extra_info.update({"threads": way.threads, "problem": dict(work.sizes[SIZE])})
    if work.unit.per_size:
        size = problem.size if way.size is None else way.size(problem)
        benchmark.extra_info[work.unit.name] = work.unit.factor * benchmark.stats.stats.min / size
    if work.judge is not None:
        benchmark.extra_info["verdict"] = work.judge(problem, result)._asdict()


@pytest.mark.parametrize("pair", APART, ids=label)
def test_process(benchmark, pair):
    """Here the time is that of the whole process; what the process itself measured stands beside it."""
    work, way = pair
    _, call = made(work, way)
    benchmark.group = work.name
    call()
    benchmark.extra_info["seconds that count, last run"] = benchmark.pedantic(call, rounds=ROUNDS)
