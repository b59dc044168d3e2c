"""Every rival that is installed solves the same problem as thermodiff."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thermodiff.bench import ours, rivals
from thermodiff.bench.problems import Cloud, DoubleWell, Entropy, Mixture
from thermodiff.bench.rivals import Absent

pytestmark = pytest.mark.filterwarnings("default")

WELL, MIXTURE = DoubleWell(5000, 20, dt=0.01), Mixture(3000, 80)


def result(module: str, work: str, problem: Any) -> Any:
    try:
        return rivals.load(module, work)(problem)()
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("module", "work"),
    [
        ("numpy_", "double_well"), ("numba_", "double_well"), ("numba_", "double_well_alone"),
        pytest.param("numba_", "double_well_hash", marks=pytest.mark.slow), ("jax_", "double_well"), ("diffrax_", "double_well"),
        ("diffrax_", "double_well_vmap"), ("torchsde_", "double_well"), ("pyito_", "double_well"), ("c", "double_well"),
    ],
)  # fmt: skip
def test_double_well(module: str, work: str) -> None:
    states = np.asarray(result(module, work, WELL))
    assert states.size == WELL.paths
    verdict = WELL.judge(states)
    assert abs(verdict.deviation) < 4.0 * verdict.error
    assert np.unique(states).size > 0.999 * WELL.paths


@pytest.mark.parametrize("module", ["numpy_", pytest.param("numba_", marks=pytest.mark.slow), "jax_"])
def test_reverse(module: str) -> None:
    """The same step error: against many paths of thermodiff rather than against the truth."""
    states = np.asarray(result(module, "reverse", MIXTURE))
    assert states.shape == (MIXTURE.paths, 2)
    many = ours.reverse(Mixture(60_000, MIXTURE.steps))()
    for power in (1, 2):
        gap = (states**power).mean(axis=0) - (many**power).mean(axis=0)
        error = (states**power).std(axis=0) * np.sqrt(1.0 / len(states) + 1.0 / len(many))
        assert np.all(np.abs(gap) < 4.0 * error)


def test_azula() -> None:
    """Another rule, 10 % low in 80 steps: against the truth, with steps so many that its step error is below the noise."""
    problem = Mixture(MIXTURE.paths, 1600)
    verdict = problem.judge(result("azula_", "reverse", problem))
    assert abs(verdict.deviation) < 4.0 * verdict.error


@pytest.mark.parametrize(("module", "work"), [("jax_", "flow"), ("torchdiffeq_", "flow_rk4")])
def test_fixed_steps(module: str, work: str) -> None:
    problem = Mixture(200, 400)
    verdict = problem.judge_flow(result(module, work, problem))
    assert verdict.deviation < 1e-6


@pytest.mark.parametrize(
    ("module", "work"), [("diffrax_", "flow"), ("diffrax_", "flow_vmap"), ("torchdiffeq_", "flow"), ("scipy_", "flow")]
)
def test_adaptive_steps(module: str, work: str) -> None:
    problem = Mixture(200, 1)
    verdict = problem.judge_flow(result(module, work, problem))
    assert verdict.deviation < 5e-5


@pytest.mark.parametrize("module", ["numpy_", "jax_"])
def test_entropy(module: str) -> None:
    problem = Entropy(48, 2000)
    verdict = problem.judge(result(module, "entropy", problem))
    assert abs(verdict.deviation) < 4.0 * verdict.error


def test_cloud() -> None:
    problem = Cloud(300, 20, 600)
    found = result("numpy_", "cloud", problem)
    assert problem.judge(found).deviation < 1e-11
    np.testing.assert_allclose(found, ours.cloud(problem)(), rtol=1e-8, atol=1e-10)


def test_a_rival_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyito", None)
    monkeypatch.delitem(sys.modules, "thermodiff.bench.rivals.pyito_", raising=False)
    with pytest.raises(Absent, match="pyito is not installed"):
        rivals.load("pyito_", "double_well")


def test_versions() -> None:
    found = rivals.versions()
    assert found["numpy"] == np.__version__
    assert {"numba", "scipy"} <= set(found)
