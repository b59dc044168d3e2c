"""The works by thermodiff give right results, on any number of threads the same."""

from __future__ import annotations

import numpy as np
import pytest

from thermodiff._tasks import cores
from thermodiff.bench import ours
from thermodiff.bench.problems import Cloud, DoubleWell, Entropy, Mixture


def test_double_well() -> None:
    problem = DoubleWell(20_000, 30, dt=0.01)
    states = ours.double_well(problem)()
    verdict = problem.judge(states)
    assert abs(verdict.deviation) < 4.0 * verdict.error
    np.testing.assert_array_equal(states, ours.double_well(problem, threads=1)())


def test_reverse_and_flows() -> None:
    problem = Mixture(4000, 200)
    verdict = problem.judge(ours.reverse(problem)())
    assert abs(verdict.deviation) < 4.0 * verdict.error + 0.01
    assert problem.judge_flow(ours.flow_rk4(problem)()).deviation < 1e-5
    assert problem.judge_flow(ours.flow(problem)()).deviation < 1e-3


def test_entropy() -> None:
    problem = Entropy(48, 2000)
    verdict = problem.judge(ours.entropy(problem)())
    assert abs(verdict.deviation) < 4.0 * verdict.error


def test_cloud() -> None:
    problem = Cloud(200, 10, 20)
    assert problem.judge(ours.cloud(problem)()).deviation < 1e-12


def test_pieces_of_the_scaling_work() -> None:
    assert ours.ring(30, 4, 3)().shape == (30, 3)
    assert ours.components(30, 10, 4)().shape == (30, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    executor = ours.on(threads)
    assert (executor is None) == (threads == cores())
    assert ours.on(threads) is executor
