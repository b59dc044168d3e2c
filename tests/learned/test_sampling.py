"""Generation: the paths of `thermodiff.reverse`, and a cost of control known from a linear equation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learned_models import LAW, Exact, z_score
from torch import nn

from thermodiff import probability_flow, reverse
from thermodiff._check import DivergenceError
from thermodiff.densities import Gaussian
from thermodiff.diffusion import Diffusion
from thermodiff.learned import model as model_module
from thermodiff.learned import sampling
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.sampling import generation_ledger, sample
from thermodiff.schedules import VP, Cosine, Schedule, StraightLine


def double(net: nn.Module) -> nn.Module:
    net.register_parameter("weight", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    return net


def model_of(noise: Schedule, law: Any = LAW, change: Any = None, **options: Any) -> LearnedDiffusion:
    return LearnedDiffusion(double(Exact(law, noise, change=change)), law, noise, **options)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("method", sampling.METHODS["reverse"])
@pytest.mark.parametrize("noise", [VP(), StraightLine(scale=0.5), Cosine(scale=2.0)], ids=lambda noise: noise.name)
def test_reverse_paths_are_those_of_the_exact_score(noise: Schedule, method: str, denoise: bool) -> None:
    options = {"steps": 60, "method": method, "lam": (-6.0, 6.0), "rng": 7, "denoise": denoise}
    exact = reverse(Diffusion(LAW, noise), 300, start="equilibrium", **options)
    path = sample(model_of(noise), 300, **options)
    np.testing.assert_allclose(path.states, exact.states, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(path.times, exact.times, rtol=1e-12)
    assert (path.key, path.denoised) == (exact.key, denoise)
    np.testing.assert_array_equal(model_of(noise).sample(300, **options), path.final)


@pytest.mark.parametrize("method", sampling.METHODS["flow"])
def test_flows_are_those_of_the_exact_score(method: str) -> None:
    options = {"steps": 60, "method": method, "lam": (-6.0, 6.0), "rng": 7}
    exact = probability_flow(Diffusion(LAW, VP()), 300, start="equilibrium", **options)
    path = sample(model_of(VP()), 300, process="flow", **options)
    np.testing.assert_allclose(path.states, exact.states, rtol=0.0, atol=1e-9)


def test_generated_data_have_the_law() -> None:
    """In float32: weight and mean of the two peaks."""
    x = LearnedDiffusion(Exact(LAW, VP()), LAW, VP()).sample(10_000, steps=120, rng=1)
    left = x[:, 0] < -0.4
    assert abs(left.mean() - 0.4) < 4.0 * np.sqrt(0.24 / 10_000) + 0.002  # and the peaks overlap a little
    assert np.all(np.abs(x.mean(0) - LAW.mean()) < 4.0 * x.std(0) / np.sqrt(10_000))


def test_parts_batches_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 10, "lam": (-6.0, 6.0)}
    whole = model_of(VP()).sample(600, rng=3, **options)
    monkeypatch.setattr(sampling, "DRAWN_TOGETHER", 600)
    np.testing.assert_allclose(model_of(VP(), batch=70).sample(600, rng=3, **options), whole, atol=1e-12)
    assert not np.allclose(model_of(VP()).sample(600, rng=4, **options), whole)


def test_images() -> None:
    law = Gaussian(np.full(12, 0.5), std=0.2)
    flat = Exact(law, VP())

    class Picture(nn.Module):
        double_time = True

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            assert x.shape[1:] == (3, 2, 2)
            return flat(x.flatten(1), t).reshape(x.shape)

    model = LearnedDiffusion(Picture(), law.sample(50, 0).reshape(50, 3, 2, 2), VP())
    path = sample(model, 20, steps=20, lam=(-6.0, 6.0), rng=0)
    assert path.states.shape == (2, 20, 3, 2, 2)
    assert model.sample(20, steps=20, lam=(-6.0, 6.0), rng=0).shape == (20, 3, 2, 2)


# S_gen


def cost_of_linear_control(noise: Schedule, variance: float, c: float, window: tuple[float, float]) -> float:
    """S_gen of N(0, variance) with the exact control times c, one dimension, from the equation of the variance in lam."""

    def rates(lam: float, state: np.ndarray) -> np.ndarray:
        row, v = noise.at(lam), state[0]
        q, exact = -2.0 * row.growth / row.sigma, row.sigma / (row.alpha**2 * variance + row.sigma**2)
        slope = q - c * (q + exact)  # b_theta = slope x
        change = 2.0 * (row.growth + row.sigma * slope) * v + row.sigma**2
        return np.array([change, 0.5 * (q - slope) ** 2 * v])

    steps = 4000
    h, state = (window[1] - window[0]) / steps, np.array([noise.equilibrium_std**2, 0.0])
    for lam in window[0] + h * np.arange(steps):
        k1 = rates(lam, state)
        k2 = rates(lam + h / 2, state + h / 2 * k1)
        k3 = rates(lam + h / 2, state + h / 2 * k2)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + rates(lam + h, state + h * k3))
    return float(state[1])


@pytest.mark.parametrize("c", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.8)], ids=lambda noise: noise.name)
def test_cost_of_a_scaled_control(noise: Schedule, c: float) -> None:
    law, window = Gaussian([0.0, 0.0], std=0.5), (-7.5, 8.0)
    model = model_of(noise, law, change=lambda e: c * e)
    ledger = generation_ledger(model, nodes=32, samples=16_000, steps=400, lam=window, rng=2)
    expected = 2.0 * cost_of_linear_control(noise, 0.25, c, window)
    # No allowance is made for the error of the steps.
    assert abs(z_score(ledger, "generated", expected)) < 4.0
    assert ledger.total("generated").error < 0.01 * expected
    assert ledger.cumulative("generated")[-1] == pytest.approx(ledger.total("generated").value, rel=0.01)
    assert ledger.rows == ("generated",)


def test_cost_of_no_control_is_nothing() -> None:
    ledger = generation_ledger(model_of(VP(), change=lambda e: 0.0 * e), nodes=8, samples=50, steps=30, rng=0)
    assert abs(ledger.total("generated").value) < 1e-12


def test_steps_pass_through_the_nodes() -> None:
    nodes = np.array([5.0, 1.0, -3.0])
    edges, places = sampling._through((-4.0, 6.0), nodes, 50)
    assert np.all(np.diff(edges) > 0.0)
    assert (edges[0], edges[-1]) == (-4.0, 6.0)
    for edge, node in places.items():
        assert edges[edge] == pytest.approx(nodes[node], abs=1e-14)
    assert sorted(places.values()) == [0, 1, 2]
    assert abs(edges.size - 51) <= 4


# Errors


def test_errors() -> None:
    model = model_of(VP())
    with pytest.raises(ValueError, match="method='rk4' is unknown; choose one of 'heun', 'euler', 'exponential'"):
        model.sample(5, method="rk4")
    with pytest.raises(ValueError, match="process='ddpm' is unknown"):
        model.sample(5, process="ddpm")
    with pytest.raises(ValueError, match="n must be at least 1"):
        model.sample(0)
    with pytest.raises(ValueError, match="state the window"):
        LearnedDiffusion(Exact(LAW, VP()), LAW.sample(9, 0), VP()).sample(5)
    with pytest.raises(ValueError, match="Pass predicts='eps'"):
        LearnedDiffusion(Exact(LAW, VP(), "eps"), LAW, VP(), predicts="score").sample(5)
    with pytest.raises(DivergenceError, match=r"10 of 10 paths left the finite numbers at lam = .*exponential"):
        LearnedDiffusion(lambda x, t: x * torch.nan, LAW, VP()).sample(10, steps=5)
    end = float(VP().time(5.99))
    late = LearnedDiffusion(lambda x, t: torch.where((t < end)[:, None], torch.nan, -x), LAW, VP(), predicts="score")
    with pytest.raises(DivergenceError, match=r"nan or infinite at 10 of 10 samples at the end, lam = 6 .*denoise=False"):
        late.sample(10, steps=5, lam=(-6.0, 6.0), method="euler")
    assert np.isfinite(late.sample(10, steps=5, lam=(-6.0, 6.0), method="euler", denoise=False)).all()
    assert model_module.DRAWN_TOGETHER % 256 == 0
