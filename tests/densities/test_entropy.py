"""Entropy of smoothed mixtures: closed form, quadrature, quasi-Monte Carlo."""

import numpy as np
import pytest
from scipy import special, stats
from scipy.integrate import quad
from truths import BIM1, BIM2, Mixture

from thermodiff import Gaussian, GaussianMixture, PointCloud, paper_mixture
from thermodiff.densities.entropy import smoothed_entropy

FULL = GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], covs=[[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]], weights=[0.35, 0.65]
)


def narrow_in_broad(width: float) -> GaussianMixture:
    return GaussianMixture([[0.0], [0.3]], stds=[1.0, width], weights=[0.5, 0.5])


def by_quad(law: GaussianMixture, alpha: float, sigma: float) -> float:
    """h of a one-dimensional law by SciPy's quadrature, split at the centres."""
    parts = law.parts()
    centres = alpha * parts.means[:, 0]
    widths = np.sqrt(alpha**2 * parts.variances[:, 0] + sigma**2)

    def surprise(x: float) -> float:
        log_p = float(law.log_prob([[x]], alpha=alpha, sigma=sigma)[0])
        return -np.exp(log_p) * log_p

    edges = np.unique(np.concatenate([centres + k * widths for k in (-12, -6, -3, 0, 3, 6, 12)]))
    return sum(quad(surprise, a, b, epsabs=1e-13, epsrel=1e-12)[0] for a, b in zip(edges[:-1], edges[1:], strict=True))


@pytest.mark.parametrize("mixture", [BIM1, BIM2], ids=["BIM-1", "BIM-2"])
def test_entropy_of_the_bimodal_mixtures(mixture: Mixture) -> None:
    found = GaussianMixture(**mixture.columns).entropy()
    assert found.value == pytest.approx(mixture.entropy, abs=1e-9)
    assert found.error < 1e-8


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.9, 0.3), (0.2, 0.98), (1.0, 5.0)])
@pytest.mark.parametrize(
    "law",
    [GaussianMixture(**BIM1.columns), narrow_in_broad(0.1), narrow_in_broad(0.01), narrow_in_broad(1e-3)],
    ids=["BIM-1", "0.1 in 1", "0.01 in 1", "0.001 in 1"],
)
def test_quadrature_equals_scipy_quad(law: GaussianMixture, alpha: float, sigma: float) -> None:
    assert law.entropy(alpha=alpha, sigma=sigma).value == pytest.approx(by_quad(law, alpha, sigma), abs=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.7, 0.7)])
def test_full_covariances_against_monte_carlo(alpha: float, sigma: float) -> None:
    rng, n = np.random.default_rng(0), 200_000
    x = alpha * FULL.sample(n, rng=rng) + sigma * rng.standard_normal((n, 2))
    surprise = -FULL.log_prob(x, alpha=alpha, sigma=sigma)
    found = FULL.entropy(alpha=alpha, sigma=sigma)
    assert found.error < 1e-8
    assert abs(surprise.mean() - found.value) < 4.0 * surprise.std() / np.sqrt(n)


def test_a_narrow_component_inside_a_broad_one_in_the_plane() -> None:
    law = GaussianMixture([[0.0, 0.0], [0.3, 0.2]], stds=[1.0, 0.01], weights=[0.5, 0.5])
    surprise = -law.log_prob(law.sample(400_000, rng=3))
    assert abs(surprise.mean() - law.entropy().value) < 4.0 * surprise.std() / np.sqrt(surprise.size)


def test_a_gaussian_is_closed_form() -> None:
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    found = Gaussian([1.0, 2.0], cov=cov).entropy(alpha=0.5, sigma=0.3)
    expected = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * (0.25 * cov + 0.09 * np.eye(2)))[1]
    assert found.value == pytest.approx(expected, rel=1e-14)
    assert found.error == 0.0


def test_quasi_monte_carlo_agrees_with_quadrature_within_its_error() -> None:
    """A two-dimensional mixture embedded in three dimensions, where the third coordinate is independent and Gaussian."""
    means = np.array([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]])
    flat = GaussianMixture(means, covs=0.36 * np.tile(np.eye(2), (3, 1, 1)), weights=[0.2, 0.3, 0.5])
    tall = GaussianMixture(np.hstack([means, np.zeros((3, 1))]), stds=0.6, weights=[0.2, 0.3, 0.5])
    expected = flat.entropy().value + 0.5 * np.log(2.0 * np.pi * np.e * 0.36)
    z = []
    for seed in range(20):
        found = tall.entropy(rng=seed)
        assert 0.0 < found.error < 1e-4
        z.append((found.value - expected) / found.error)
    assert np.abs(z).max() < 4.0
    assert 0.6 < np.sqrt(np.mean(np.square(z))) < 1.4


def test_full_and_isotropic_agree_by_quasi_monte_carlo() -> None:
    law = paper_mixture(3)
    parts = law.parts()
    same = GaussianMixture(parts.means, covs=parts.variances[:, :, None] * np.eye(3), weights=parts.weights)
    one, two = law.entropy(rng=1), same.entropy(rng=2)
    assert abs(one.deviation(two)) < 4.0


def test_quasi_monte_carlo_is_reproducible() -> None:
    law = paper_mixture(3)
    assert law.entropy(rng=5) == law.entropy(rng=5)
    assert law.entropy(rng=5) != law.entropy(rng=6)


def test_a_component_far_away_adds_the_entropy_of_the_choice() -> None:
    law = GaussianMixture([[0.0, 0.0], [100.0, 0.0]], stds=[1.0, 2.0], weights=[0.25, 0.75])
    each = np.array([np.log(2 * np.pi * np.e), np.log(2 * np.pi * np.e * 4.0)])
    choice = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert law.entropy().value == pytest.approx(0.25 * each[0] + 0.75 * each[1] + choice, abs=1e-10)


def test_a_small_cloud_in_the_plane_against_monte_carlo() -> None:
    """Six overlapping components: once 50 s of quadrature that did not converge."""
    cloud, rng, n = PointCloud(np.random.default_rng(0).normal(size=(6, 2))), np.random.default_rng(1), 400_000
    surprise = -cloud.log_prob(0.7 * cloud.sample(n, rng=rng) + 0.7 * rng.standard_normal((n, 2)), alpha=0.7, sigma=0.7)
    found = cloud.entropy(alpha=0.7, sigma=0.7)
    assert found.error < 1e-4
    assert abs(surprise.mean() - found.value) < 4.0 * np.hypot(found.error, surprise.std() / np.sqrt(n))


def test_identical_components_count_as_one() -> None:
    law = GaussianMixture([[0.3], [0.3]], stds=[0.7, 0.7], weights=[0.1, 0.9])
    assert law.entropy().value == pytest.approx(Gaussian([0.3], std=0.7).entropy().value, abs=1e-10)


def test_the_overlap_is_asked_for_at_points_of_the_mixture() -> None:
    """An overlap of zero leaves the separate entropies and the choice."""
    part = GaussianMixture(**BIM1.columns).parts()
    found = smoothed_entropy(part, lambda x, alpha, sigma: np.zeros(x.shape[0]), 1.0, 0.0, 0)
    weights = np.array(BIM1.weights)
    expected = np.sum(weights * (0.5 * np.log(2 * np.pi * np.e * np.array(BIM1.stds) ** 2) - np.log(weights)))
    assert found.value == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("means", "covs"),
    [
        ([[0.0, 0.0], [0.7, 0.4]], [[[4.0, 0.0], [0.0, 1e-4]], [[1e-4, 0.0], [0.0, 4.0]]]),
        ([[0.0, 0.0], [0.3, 0.1]], [[[2.00005, 1.99995], [1.99995, 2.00005]], [[4.0, 0.0], [0.0, 1e-4]]]),
    ],
    ids=["crossed", "at 45 degrees"],
)
def test_needles_that_cross_are_not_stepped_over(means: list, covs: list) -> None:
    """E H(r), the only term that is computed, against plain Monte Carlo with SciPy's densities."""
    law = GaussianMixture(means, covs=covs, weights=[0.5, 0.5])
    rng, n = np.random.default_rng(0), 400_000
    x = law.sample(n, rng)
    parts = [stats.multivariate_normal(mean, cov).logpdf(x) for mean, cov in zip(means, covs, strict=True)]
    r = special.softmax(np.array(parts), axis=0)
    shared = special.entr(r).sum(axis=0)
    separate = np.log(2.0) + np.mean(
        [stats.multivariate_normal(mean, cov).entropy() for mean, cov in zip(means, covs, strict=True)]
    )
    found = law.entropy()
    error = np.hypot(found.error, shared.std() / np.sqrt(n))
    assert shared.mean() > 10.0 * error
    assert abs(separate - found.value - shared.mean()) < 4.0 * error
