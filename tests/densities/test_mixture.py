"""Gaussians and mixtures: moments, samples, log-densities, scores, refusals."""

import numpy as np
import pytest
from scipy import stats
from truths import BIM1, BIM2, PUBLISHED, Mixture, mixture_oracle, mixture_total

from thermodiff import Gaussian, GaussianMixture, paper_mixture

COVS = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]])
MEANS = np.array([[-2.0, 0.0], [2.0, 1.0]])
WEIGHTS = np.array([0.4, 0.6])

MIXTURES = {
    "isotropic": GaussianMixture(MEANS, stds=[0.3, 0.5], weights=WEIGHTS),
    "full": GaussianMixture(MEANS, covs=COVS, weights=WEIGHTS),
    "Gaussian": Gaussian([1.0, -1.0], cov=COVS[0]),
}
COVARIANCES = {"isotropic": np.array([0.09, 0.25])[:, None, None] * np.eye(2), "full": COVS, "Gaussian": COVS[:1]}

each = pytest.mark.parametrize("name", MIXTURES)


@each
def test_moments_are_those_of_the_formula(name: str) -> None:
    law, covs = MIXTURES[name], COVARIANCES[name]
    weights, means = law.parts().weights, law.parts().means
    mean = weights @ means
    second = np.einsum("k,kij->ij", weights, covs + means[:, :, None] * means[:, None, :])
    np.testing.assert_allclose(law.mean(), mean, rtol=1e-14)
    np.testing.assert_allclose(law.covariance(), second - np.outer(mean, mean), rtol=1e-13, atol=1e-14)
    assert law.second_moment == pytest.approx(np.trace(second), rel=1e-14)


@each
def test_log_prob_score_and_divergence_equal_plain_numpy(name: str) -> None:
    law = MIXTURES[name]
    x = np.random.default_rng(0).normal(0, 2, (500, 2))
    for alpha, sigma in ((1.0, 0.0), (0.7, 0.4)):
        exact = mixture_oracle(x, law.parts().weights, law.parts().means, COVARIANCES[name], alpha, sigma)
        np.testing.assert_allclose(law.log_prob(x, alpha=alpha, sigma=sigma), exact.log_prob, rtol=1e-12, atol=1e-12)
        size = np.abs(exact.score).max()
        np.testing.assert_allclose(law.score(x, alpha=alpha, sigma=sigma), exact.score, rtol=1e-12, atol=1e-12 * size)
        found = law.score_divergence(x, alpha=alpha, sigma=sigma)
        np.testing.assert_allclose(found, exact.divergence, rtol=1e-12, atol=1e-12 * size**2)


@each
def test_samples_have_mean_and_covariance(name: str) -> None:
    law, n = MIXTURES[name], 100_000
    x = law.sample(n, rng=1)
    assert x.shape == (n, 2)
    centred = x - law.mean()
    assert np.all(np.abs(centred.mean(axis=0)) < 4.0 * np.sqrt(np.diag(law.covariance()) / n))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        products = centred[:, i] * centred[:, j]
        assert abs(products.mean() - law.covariance()[i, j]) < 4.0 * products.std() / np.sqrt(n)


def test_samples_follow_the_density() -> None:
    law = GaussianMixture(**BIM1.columns)
    x = law.sample(50_000, rng=2)[:, 0]

    def cdf(values: np.ndarray) -> np.ndarray:
        return sum(w * stats.norm.cdf(values, m, s) for w, m, s in zip(BIM1.weights, BIM1.means, BIM1.stds, strict=True))

    assert stats.kstest(x, cdf).pvalue > 1e-4


@each
def test_the_same_rng_gives_the_same_samples(name: str) -> None:
    law = MIXTURES[name]
    np.testing.assert_array_equal(law.sample(50, rng=3), law.sample(50, rng=3))
    assert not np.array_equal(law.sample(50, rng=3), law.sample(50, rng=4))


@pytest.mark.parametrize("mixture", [BIM1, BIM2])
def test_second_moment_of_the_bimodal_mixtures(mixture: Mixture) -> None:
    assert GaussianMixture(**mixture.columns).second_moment == pytest.approx(mixture.second_moment, rel=1e-14)


def test_equal_weights_are_the_default() -> None:
    np.testing.assert_array_equal(GaussianMixture(MEANS, stds=0.3).weights, [0.5, 0.5])


def test_a_component_of_zero_weight_changes_nothing() -> None:
    ghost = GaussianMixture([[-1.5], [0.0], [1.0]], stds=[0.3, 1e-3, 0.5], weights=[0.4, 0.0, 0.6])
    plain = GaussianMixture(**BIM1.columns)
    x = np.linspace(-3, 3, 41)[:, None]
    for sigma in (0.0, 0.5):
        np.testing.assert_array_equal(ghost.log_prob(x, sigma=sigma), plain.log_prob(x, sigma=sigma))
        np.testing.assert_array_equal(ghost.score(x, sigma=sigma), plain.score(x, sigma=sigma))
        np.testing.assert_array_equal(ghost.score_divergence(x, sigma=sigma), plain.score_divergence(x, sigma=sigma))
    assert ghost.entropy() == plain.entropy()
    np.testing.assert_array_equal(ghost.sample(100, rng=0), plain.sample(100, rng=0))


def test_gaussian_is_a_mixture_of_one() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    np.testing.assert_array_equal(
        Gaussian([1.0, 2.0], std=0.5).log_prob(x), GaussianMixture([[1.0, 2.0]], stds=[0.5]).log_prob(x)
    )
    np.testing.assert_allclose(
        Gaussian([1.0, 2.0], cov=COVS[0]).log_prob(x), stats.multivariate_normal([1.0, 2.0], COVS[0]).logpdf(x), rtol=1e-12
    )


def test_a_diagonal_covariance_is_the_isotropic_component() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    full, plain = Gaussian([1.0, 2.0], cov=0.25 * np.eye(2)), Gaussian([1.0, 2.0], std=0.5)
    np.testing.assert_allclose(full.score(x, sigma=0.3), plain.score(x, sigma=0.3), rtol=1e-13)


@pytest.mark.parametrize("dim", PUBLISHED)
def test_published_mixtures(dim: int) -> None:
    """Entropy and KL to the two equilibria, within four errors and one unit of the last printed digit."""
    law = paper_mixture(dim)
    entropy, second_moment, kl_standard, kl_narrow = PUBLISHED[dim]
    found = law.entropy(rng=0)
    assert law.dim == dim
    assert found.error < 3e-4
    assert law.second_moment == pytest.approx(second_moment, abs=6e-7)
    assert abs(found.value - entropy) < 4.0 * found.error + 6e-6
    assert abs(mixture_total(found.value, law.second_moment, dim, 1.0) - kl_standard) < 4.0 * found.error + 1e-5
    assert abs(mixture_total(found.value, law.second_moment, dim, 0.01) - kl_narrow) < 4.0 * found.error + 1e-4


def test_labels_name_components_and_dimension() -> None:
    assert MIXTURES["isotropic"].label == "GaussianMixture: 2 components in d = 2, isotropic"
    assert MIXTURES["full"].label == "GaussianMixture: 2 components in d = 2, full covariances"
    assert MIXTURES["Gaussian"].label == "Gaussian in d = 2"


REFUSED = [
    (lambda: GaussianMixture(np.zeros((0, 2)), stds=1.0), ValueError, "means is empty"),
    (lambda: GaussianMixture([0.0, 1.0], stds=1.0), ValueError, r"means must have shape \(K, d\), got \(2,\)"),
    (lambda: GaussianMixture([[0.0, np.nan]], stds=1.0), ValueError, "means holds 1 values that are nan"),
    (lambda: GaussianMixture([["a"]], stds=1.0), TypeError, "means must be an array of numbers"),
    (lambda: GaussianMixture(MEANS), ValueError, "give either stds= .* or covs="),
    (lambda: GaussianMixture(MEANS, stds=1.0, covs=COVS), ValueError, "give either stds= .* or covs="),
    (lambda: GaussianMixture(MEANS, stds=[1.0]), ValueError, r"stds must have shape \(2,\)"),
    (lambda: GaussianMixture(MEANS, stds=[1.0, 0.0]), ValueError, "stds must be positive, got 0; .*PointCloud"),
    (lambda: GaussianMixture(MEANS, stds=-0.5), ValueError, "stds must be positive, got -0.5"),
    (lambda: GaussianMixture(MEANS, stds=[1.0, np.inf]), ValueError, "stds holds 1 values"),
    (lambda: GaussianMixture(MEANS, covs=COVS[:1]), ValueError, r"covs must have shape \(2, 2, 2\)"),
    (lambda: GaussianMixture(MEANS, covs=COVS[0]), ValueError, r"covs must have shape \(K, d, d\)"),
    (lambda: GaussianMixture(MEANS, covs=COVS + [[0, 0.1], [0, 0]]), ValueError, "covs must be symmetric; .* 0.1"),
    (
        lambda: GaussianMixture(MEANS, covs=-COVS),
        ValueError,
        "covs must be positive definite, beyond rounding, got an eigenvalue",
    ),
    (lambda: GaussianMixture([[0.0, 0.0]], covs=[[[1.0, 3.0], [3.0, 9.0]]]), ValueError, "covs must be positive definite"),
    (lambda: GaussianMixture([[0.0] * 2] * 2, covs=[1e10 * np.eye(2), [[1.0, 0.9], [0.0, 1.0]]]), ValueError, "symmetric"),
    (lambda: GaussianMixture(MEANS, covs=np.zeros((2, 2, 2))), ValueError, "covs must be positive definite"),
    (lambda: GaussianMixture(MEANS, stds=1.0, weights=[0.5, 0.6]), ValueError, "weights must sum to one, got a sum of 1.1"),
    (lambda: GaussianMixture(MEANS, stds=1.0, weights=[1.5, -0.5]), ValueError, "weights must not be negative, got -0.5"),
    (lambda: GaussianMixture(MEANS, stds=1.0, weights=[1.0]), ValueError, r"weights must have shape \(2,\)"),
    (lambda: GaussianMixture(MEANS, stds=1.0, weights=[0.5, np.nan]), ValueError, "weights holds 1 values"),
    (lambda: Gaussian([0.0]), ValueError, "give either std= or cov="),
    (lambda: Gaussian([0.0], std=1.0, cov=[[1.0]]), ValueError, "give either std= or cov="),
    (lambda: Gaussian([], std=1.0), ValueError, "mean is empty"),
    (lambda: Gaussian([[0.0]], std=1.0), ValueError, r"mean must have shape \(d,\)"),
    (lambda: Gaussian([0.0], std=0.0), ValueError, "must be positive"),
    (lambda: Gaussian([0.0, 0.0], std=[1.0, 2.0]), ValueError, "std"),
    (lambda: Gaussian([0.0], cov=1.0), ValueError, r"cov must have shape \(d, d\)"),
    (lambda: paper_mixture(4), ValueError, r"got dim=4; the published mixtures have dim \[2, 3, 6, 9\]"),
    (lambda: MIXTURES["full"].sample(0), ValueError, "n must be at least 1"),
    (lambda: MIXTURES["full"].score(np.zeros((3, 1))), ValueError, r"x must have shape \(n, 2\), got \(3, 1\)"),
    (lambda: MIXTURES["full"].log_prob(np.zeros(2)), ValueError, r"x must have shape \(n, d\)"),
    (lambda: MIXTURES["full"].score(np.full((1, 2), np.nan)), ValueError, "x holds 2 values that are nan"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
