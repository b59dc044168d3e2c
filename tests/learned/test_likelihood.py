"""Log-densities: the exact score through the Torch path, probes, bits, the lower bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learned_models import LAW, Peaks
from torch import nn
from truths import BIM1

from thermodiff._check import DivergenceError
from thermodiff.densities import Gaussian, GaussianMixture
from thermodiff.learned.bound import lower_bound
from thermodiff.learned.images import Images
from thermodiff.learned.likelihood import LogDensity, dormand_prince, log_prob
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VE, VP, CondOT, Cosine, Schedule, StraightLine


class Score(nn.Module):
    """The exact score of a mixture in Torch, in the type of its weights."""

    double_time = True

    def __init__(
        self, law: GaussianMixture, noise: Schedule, dtype: torch.dtype = torch.float64, factor: float = 1.0
    ) -> None:
        super().__init__()
        part = law.parts()
        self.noise, self.factor = noise, factor
        self.means = nn.Parameter(torch.as_tensor(part.means, dtype=dtype))
        self.variances = nn.Parameter(torch.as_tensor(part.variances[:, 0], dtype=dtype))
        self.logs = nn.Parameter(torch.as_tensor(np.log(part.weights), dtype=dtype))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = self.noise.at(self.noise.lam(float(t[0])))
        v = float(row.alpha) ** 2 * self.variances + float(row.sigma) ** 2
        gaps = float(row.alpha) * self.means - x[:, None, :]
        share = torch.softmax(self.logs - gaps.square().sum(2) / (2.0 * v) - 0.5 * x.shape[1] * torch.log(v), 1)
        return self.factor * (share[:, :, None] * gaps / v[:, None]).sum(1)


BIM = GaussianMixture(**BIM1.columns)
WIDE = GaussianMixture(np.random.default_rng(0).uniform(-2, 2, (4, 6)), stds=[0.4, 0.6, 0.8, 1.0])


def model_of(law: GaussianMixture, noise: Schedule, dtype: torch.dtype = torch.float64) -> LearnedDiffusion:
    return LearnedDiffusion(Score(law, noise, dtype), law, noise, predicts="score")


@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), StraightLine(), Cosine(scale=2.0)], ids=lambda noise: noise.name)
@pytest.mark.parametrize("law", [BIM, WIDE], ids=["bim", "wide"])
def test_exact_score_gives_the_density(law: GaussianMixture, noise: Schedule) -> None:
    """To 1e-5 nats, with the default arguments."""
    x = law.sample(40, 0)
    found = log_prob(model_of(law, noise), x)
    np.testing.assert_allclose(found.values, law.log_prob(x), rtol=0.0, atol=1e-5)
    assert not found.errors.any()


@pytest.mark.parametrize("noise", [VE(), CondOT()], ids=lambda noise: noise.name)
def test_schedules_without_equilibrium(noise: Schedule) -> None:
    x = BIM.sample(20, 0)
    found = log_prob(model_of(BIM, noise), x, prior="marginal", lam=(-7.0, 20.0))
    np.testing.assert_allclose(found.values, BIM.log_prob(x), rtol=0.0, atol=1e-5)


def test_values_of_the_theory_sheet() -> None:
    """theory.md 6.8, with the exact p_T and with the prior."""
    x = np.array([[0.7], [-0.4]])
    exact = log_prob(model_of(BIM, VP()), x, prior="marginal", tol=1e-9)
    np.testing.assert_allclose(exact.values, [-0.916616976408, -4.59137549492], atol=3e-8)
    model = log_prob(model_of(BIM, VP()), x, prior="equilibrium", tol=1e-9)
    np.testing.assert_allclose(model.values, [-0.9165105866, -4.5912724978], atol=3e-8)


def test_float32_network() -> None:
    x = WIDE.sample(30, 0)
    found = log_prob(model_of(WIDE, VP(), torch.float32), x, prior="marginal", tol=1e-5)
    np.testing.assert_allclose(found.values, WIDE.log_prob(x), rtol=0.0, atol=1e-3)


def test_a_score_that_is_wrong_is_seen() -> None:
    x = BIM.sample(20, 0)
    model = LearnedDiffusion(Score(BIM, VP(), factor=1.01), BIM, VP(), predicts="score")
    assert np.max(np.abs(log_prob(model, x, prior="marginal").values - BIM.log_prob(x))) > 1e-3


@pytest.mark.parametrize("number", [2, 3, 4])
def test_probes_are_unbiased_and_their_errors_true(number: int) -> None:
    """Z of 200 points against the exact divergence."""
    x, model = WIDE.sample(200, 1), model_of(WIDE, VP())
    options = {"divergence": "hutchinson", "count_probes": number, "rng": 3, "tol": 1e-3}
    exact = log_prob(model, x, prior="marginal", tol=1e-3)
    found = log_prob(model, x, prior="marginal", **options)
    z = (found.values - exact.values) / found.errors
    assert 0.75 < np.sqrt(np.mean(z**2)) < 1.25
    assert abs(z.mean()) < 5.0 / np.sqrt(200)
    assert np.mean(np.abs(z) > 4.0) < 0.01
    np.testing.assert_array_equal(found.values, log_prob(model, x, prior="marginal", **options).values)


def test_as_many_probes_as_dimensions_are_exact() -> None:
    """Random signs in d = 2 coincide up to sign half of the time, and then seemed to have no error."""
    x, model = WIDE.sample(20, 1), model_of(WIDE, VP())
    found = log_prob(model, x, divergence="hutchinson", count_probes=6, rng=3)
    np.testing.assert_array_equal(found.values, log_prob(model, x).values)
    assert not found.errors.any()


def test_one_point_needs_more_probes() -> None:
    x, model = WIDE.sample(1, 1), model_of(WIDE, VP())
    with pytest.raises(ValueError, match="count_probes=4 leaves the errors unknown for so few points as 1; take 5 probes"):
        log_prob(model, x, divergence="hutchinson", count_probes=4)
    assert log_prob(model, x, divergence="hutchinson", count_probes=5, tol=1e-3).errors > 0.0


def test_order_of_the_integrator() -> None:
    """The error of y' = -y, V' = y falls with the tolerance."""
    gaps = []
    for tol in (1e-4, 1e-6, 1e-8):
        y, volume = dormand_prince(
            lambda lam, y: (-y, y[:, 0]), lambda dy, dv, v, tol=tol: float(np.abs(dy).max()) / tol, np.ones((3, 1)), 0.0, 5.0
        )
        gaps.append(abs(float(y[0, 0]) - np.exp(-5.0)) + abs(float(volume[0]) - 1.0 + np.exp(-5.0)))
    assert gaps[0] > 10.0 * gaps[1] > 100.0 * gaps[2]
    assert gaps[2] < 1e-6


# Bits and grey levels


def test_bits_per_dimension_of_grey_levels() -> None:
    """Noise alone: each of 256 levels costs 8 bits, whatever the units."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    for span in ((0.0, 1.0), (-1.0, 1.0)):
        images = Images(levels, span=span, dequantise=True)
        width = span[1] - span[0]
        density = LogDensity(np.full(40, -16.0 * np.log(width)), np.zeros(40), 0.0, 16, (-8.0, 8.0), images.cell)
        assert density.bits_per_dim().value == pytest.approx(8.0, rel=1e-12)


def test_images_are_dequantised() -> None:
    law = Gaussian(np.full(4, 0.5), std=0.2)
    levels = np.clip(256 * law.sample(30, 0), 0, 255).astype(np.uint8).reshape(30, 1, 2, 2)

    class Picture(nn.Module):
        double_time = True

        def __init__(self) -> None:
            super().__init__()
            self.flat = Score(law, VP())

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.flat(x.flatten(1), t).reshape(x.shape)

    images = Images(levels, span=(0.0, 1.0), dequantise=True)
    model = LearnedDiffusion(Picture(), images, VP(), predicts="score")
    found = log_prob(model, images, lam=(-8.0, 16.0), rng=5)
    # log p of each level lies within what its cell spans.
    corners = [law.log_prob((levels.reshape(30, 4) + u) / 256.0) for u in (0.0, 1.0)]
    slack = 4 * 0.5 / 0.2**2 / 256.0 + 1e-3
    assert np.all(found.values > np.minimum(*corners) - slack)
    assert np.all(found.values < np.maximum(*corners) + slack)
    # The code length of a Gaussian of deviation 0.2: its entropy and 8 bits.
    bits = found.bits_per_dim()
    expected = 0.5 * np.log2(2 * np.pi * np.e * 0.04) + 8.0
    assert abs(bits.value - expected) < 4.0 * bits.error + 0.01
    with pytest.raises(ValueError, match=r"grey levels have no density; pass Images\(..., dequantise=True\)"):
        log_prob(model, Images(levels), lam=(-8.0, 16.0))


def test_a_tensor_with_a_gradient() -> None:
    x = WIDE.sample(3, 0)
    given = torch.tensor(x, requires_grad=True)
    np.testing.assert_array_equal(log_prob(model_of(WIDE, VP()), given).values, log_prob(model_of(WIDE, VP()), x).values)


def test_grey_levels_of_an_array_are_refused() -> None:
    """They were taken for data units: 67264 bits per dimension."""
    levels = np.random.default_rng(0).integers(0, 256, (30, 1, 2, 2)).astype(np.uint8)
    model = LearnedDiffusion(lambda x, t: -x, Images(levels, dequantise=True), VP(), predicts="score")
    for x in (levels, levels.reshape(30, 4), torch.from_numpy(levels), levels.astype(int)):
        for function in (log_prob, lower_bound):
            with pytest.raises(TypeError, match=r"type u?int\d+, whose scale is not said; pass Images\(.*dequantise=True\)"):
                function(model, x, lam=(-4.0, 4.0))


@pytest.mark.parametrize("function", [log_prob, lower_bound, lambda model, x, lam: model.score(x, 0.5)])
def test_images_of_another_span_are_refused(function: Any) -> None:
    """The same images were measured as others, without a word; more levels on the same span are other images."""
    levels = np.random.default_rng(0).integers(0, 17, (30, 1, 2, 2)).astype(np.uint8)
    data = Images(levels, span=(0, 1), levels=17, dequantise=True)
    model = LearnedDiffusion(Peaked(), data, VP(), predicts="score")
    with pytest.raises(ValueError, match=r"the images have span \(-1, 1\), the model's data \(0, 1\): .* pass Images\("):
        function(model, Images(levels, levels=17, dequantise=True), lam=(-4.0, 4.0))
    function(model, Images(levels, span=(0, 1), dequantise=True), lam=(-4.0, 4.0))
    function(model, Images(levels / 17.0), lam=(-4.0, 4.0))  # in units of the caller


class Peaked(nn.Module):
    """The score of N(0, 1) in any shape."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = VP().at(VP().lam(float(t[0])))
        return -x / float(row.alpha**2 + row.sigma**2)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_network_without_a_graph_is_refused(divergence: str) -> None:
    """Its divergence seemed to be zero, and the log-density was 9 nats off with an error of zero."""
    law = Gaussian(np.zeros(5), std=0.5)

    class Eps(nn.Module):
        @torch.no_grad()
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            row = VP().at(VP().lam(float(t[0])))
            return x * float(row.sigma / (0.25 * row.alpha**2 + row.sigma**2))

    with pytest.raises(ValueError, match="changes with x, but not for autograd"):
        log_prob(LearnedDiffusion(Eps(), law, VP(), predicts="eps"), law.sample(9, 0), divergence=divergence, count_probes=2)


@pytest.mark.filterwarnings("ignore:the output of function is finite at none")
def test_errors() -> None:
    model = model_of(BIM, VP())
    with pytest.raises(ValueError, match=r'takes d = 65 backward passes; pass divergence="hutchinson"'):
        log_prob(LearnedDiffusion(Peaks(VP()), np.zeros((3, 65)), VP()), np.zeros((2, 65)))
    with pytest.raises(ValueError, match="x must have shape"):
        log_prob(model, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="count_probes must be at least 2"):
        log_prob(model, np.zeros((2, 1)), divergence="hutchinson", count_probes=1)
    with pytest.raises(ValueError, match=r'prior="marginal" needs data whose law is known'):
        log_prob(LearnedDiffusion(Score(BIM, VP()), BIM.sample(9, 0), VP()), np.zeros((2, 1)), prior="marginal")
    with pytest.raises(DivergenceError, match="the steps of the flow shrank"):
        log_prob(LearnedDiffusion(lambda x, t: x * torch.nan, LAW, VP()), np.zeros((2, 2)))
