"""The Gaussian part of the law of points: its bias is gone, its error true, its memory bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.accounting import account
from thermodiff.diffusion import medium_integral
from thermodiff.learned import gaussian
from thermodiff.learned.gaussian import gaussian_production
from thermodiff.learned.measurement import gaussian_part
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VP

NOISE = VP()
WINDOW = (-8.0, 8.36)


class Linear(nn.Module):
    """The exact noise of a Gaussian along the axes: S_NN is its Gaussian part, whatever the points."""

    double_time = True

    def __init__(self, spectrum: np.ndarray) -> None:
        super().__init__()
        self.spectrum = torch.from_numpy(spectrum)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = NOISE.at(NOISE.lam(float(t[0])))
        return float(row.sigma) * x.double() / (float(row.alpha) ** 2 * self.spectrum + float(row.sigma) ** 2)


def truth(spectrum: np.ndarray) -> float:
    low, high = (NOISE.at(edge) for edge in WINDOW)
    logs = np.log((low.alpha**2 * spectrum + low.sigma**2) / (high.alpha**2 * spectrum + high.sigma**2))
    return medium_integral(NOISE, WINDOW, float(spectrum.sum()), spectrum.size) + 0.5 * float(logs.sum())


@pytest.mark.parametrize(("dim", "size", "seeds"), [(5, 80, 24), (8, 30, 24), (20, 400, 16), (64, 1000, 4)])
def test_parts_of_a_gaussian(dim: int, size: int, seeds: int) -> None:
    """Z of the Gaussian part against the law, and of the remainder against 0; uncorrected, 9 for d = 64."""
    spectrum, z = np.geomspace(1.0, 0.05, dim), []
    for seed in range(seeds):
        points = np.random.default_rng(seed).standard_normal((size, dim)) * np.sqrt(spectrum)
        model = LearnedDiffusion(Linear(spectrum), points, NOISE, predicts="eps")
        ledger = account(model, nodes=12, samples=size, rng=seed, lam=WINDOW)
        part, rest = gaussian_part(model, ledger)
        z.append([(part.value - truth(spectrum)) / part.error, rest.value / rest.error])
    assert np.all(np.abs(np.mean(z, axis=0)) < 1.0), np.mean(z, axis=0)
    rms = np.sqrt(np.mean(np.square(z), axis=0))
    assert np.all((rms > (0.5 if seeds > 8 else 0.2)) & (rms < 1.35)), rms


def test_points_of_a_law_with_tails() -> None:
    """No Gaussian is assumed: a scale mixture, with more of fourth moments."""
    spectrum, z, rng = np.geomspace(1.0, 0.05, 10), [], np.random.default_rng(0)
    for _ in range(40):
        scales = np.where(rng.random(300) < 0.2, 2.0, 0.5) / np.sqrt(0.2 * 4.0 + 0.8 * 0.25)
        points = rng.standard_normal((300, 10)) * np.sqrt(spectrum) * scales[:, None]
        found = gaussian_production(points, NOISE, WINDOW).estimate
        z.append((found.value - truth(spectrum)) / found.error)
    assert abs(np.mean(z)) < 0.7
    assert 0.65 < np.sqrt(np.mean(np.square(z))) < 1.35


def test_one_point_left_out_is_one_point_left_out() -> None:
    """The closed form of the jackknife, against the covariance of the other points."""
    points = np.random.default_rng(3).standard_normal((9, 3)) * [1.0, 0.3, 0.01] + 1.0

    def production(chosen: np.ndarray) -> float:
        spectrum = np.linalg.eigvalsh(np.cov(chosen, rowvar=False, bias=True))
        return truth(spectrum) + medium_integral(NOISE, WINDOW, float(np.sum(chosen.mean(axis=0) ** 2)), 3) - _without_data()

    def _without_data() -> float:
        return medium_integral(NOISE, WINDOW, 0.0, 3)

    left = [production(np.delete(points, k, axis=0)) for k in range(9)]
    found = gaussian_production(points, NOISE, WINDOW)
    assert found.value == pytest.approx(9 * production(points) - 8 * np.mean(left), rel=1e-9)
    np.testing.assert_allclose(found.influence, -8 * (left - np.mean(left)), rtol=1e-7, atol=1e-8)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(4).standard_normal((50, 4))
    whole = gaussian_production(points, NOISE, WINDOW)
    monkeypatch.setattr(gaussian, "PART", 12)
    parts = gaussian_production(points, NOISE, WINDOW)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parts.influence, whole.influence, rtol=1e-9)


def test_fewer_points_than_dimensions() -> None:
    """The covariance is that of the points; what a jackknife cannot know is in the error."""
    spectrum = np.geomspace(1.0, 0.05, 60)
    for seed in range(4):
        points = np.random.default_rng(seed).standard_normal((40, 60)) * np.sqrt(spectrum)
        found = gaussian_production(points, NOISE, WINDOW).estimate
        assert abs(found.value - truth(spectrum)) < 4.0 * found.error


@pytest.mark.parametrize("points", [np.ones((5, 3)), np.array([[0.0, 1.0], [0.5, 1.0]])], ids=["equal", "two"])
def test_points_without_spread(points: np.ndarray) -> None:
    found = gaussian_production(points, NOISE, WINDOW)
    assert np.isfinite([found.value, found.bias, *found.influence]).all()
