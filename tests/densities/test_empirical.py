"""PointCloud, the empirical law with its exact score, and Samples, which has none."""

import numpy as np
import pytest
from truths import mixture_oracle

from thermodiff import VP, Diffusion, PointCloud, Samples
from thermodiff.densities import empirical

POINTS = np.random.default_rng(0).normal(size=(37, 2)) * [1.0, 2.0]


def test_moments_are_those_of_the_points() -> None:
    for law in (PointCloud(POINTS), Samples(POINTS)):
        np.testing.assert_allclose(law.mean(), POINTS.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(law.covariance(), np.cov(POINTS.T, bias=True), rtol=1e-13)
        assert law.dim == 2
    assert PointCloud(POINTS).second_moment == pytest.approx(np.mean(np.sum(POINTS**2, axis=1)), rel=1e-13)


def test_score_and_log_prob_equal_plain_numpy() -> None:
    x = np.random.default_rng(1).normal(0, 2, (300, 2))
    exact = mixture_oracle(x, np.full(37, 1 / 37), POINTS, np.zeros((37, 2, 2)), 0.8, 0.3)
    cloud = PointCloud(POINTS)
    size = np.abs(exact.score).max()
    np.testing.assert_allclose(cloud.score(x, alpha=0.8, sigma=0.3), exact.score, rtol=1e-12, atol=1e-12 * size)
    np.testing.assert_allclose(cloud.log_prob(x, alpha=0.8, sigma=0.3), exact.log_prob, rtol=1e-12, atol=1e-12)
    found = cloud.score_divergence(x, alpha=0.8, sigma=0.3)
    np.testing.assert_allclose(found, exact.divergence, rtol=1e-11, atol=1e-12 * size**2)


@pytest.mark.parametrize("law", [PointCloud(POINTS), Samples(POINTS)], ids=["PointCloud", "Samples"])
def test_samples_are_points_drawn_uniformly(law) -> None:
    x = law.sample(37_000, rng=0)
    chosen = np.array([np.flatnonzero(np.all(row == POINTS, axis=1))[0] for row in x])
    counts = np.bincount(chosen, minlength=37)
    chi2 = np.sum((counts - 1000.0) ** 2 / 1000.0)
    assert abs(chi2 - 36.0) < 4.0 * np.sqrt(72.0)


def test_the_cloud_is_singular_and_asks_for_a_width() -> None:
    cloud = PointCloud(POINTS)
    assert cloud.singular
    for call in (cloud.log_prob, cloud.score, cloud.score_divergence):
        with pytest.raises(ValueError, match="density only after smoothing; pass sigma > 0"):
            call(POINTS)
    with pytest.raises(ValueError, match="entropy: a point cloud"):
        cloud.entropy()


def test_entropy_of_well_separated_points_is_that_of_the_kernel_plus_ln_n() -> None:
    cloud, sigma = PointCloud([[0.0], [10.0], [20.0], [35.0]]), 0.1
    expected = np.log(4.0) + 0.5 * np.log(2.0 * np.pi * np.e * sigma**2)
    assert cloud.entropy(sigma=sigma).value == pytest.approx(expected, abs=1e-10)


def test_one_point_is_a_gaussian_once_smoothed() -> None:
    entropy = PointCloud([[1.0, 2.0]]).entropy(sigma=0.5)
    assert entropy.value == pytest.approx(np.log(2.0 * np.pi * np.e * 0.25), rel=1e-14)
    assert entropy.error == 0.0


def test_conditional_moment_of_points_is_the_dimension() -> None:
    assert PointCloud(POINTS).conditional_moment(0.3, 0.7) == pytest.approx(2.0, rel=1e-14)


def test_labels() -> None:
    assert PointCloud(POINTS).label == "PointCloud: 37 points in d = 2"
    assert Samples(POINTS).label == "Samples: 37 points in d = 2"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PointCloud([]), ValueError, r"points must have shape \(n, d\), got \(0,\)"),
        (lambda: PointCloud(np.zeros((0, 2))), ValueError, "points is empty"),
        (lambda: PointCloud([1.0, 2.0]), ValueError, r"points must have shape \(n, d\)"),
        (lambda: PointCloud([[np.nan]]), ValueError, "points holds 1 values that are nan"),
        (lambda: Samples([[1.0]]), ValueError, "Samples: got one point; errors need at least two"),
        (lambda: Samples(np.zeros((0, 2))), ValueError, "points is empty"),
        (lambda: Diffusion(Samples(POINTS), VP()), TypeError, "Samples have no score; use PointCloud"),
    ],
)
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("sigma", [0.3, 1.5, 30.0])
@pytest.mark.parametrize("n", [1, 700])
def test_products_and_differences_give_the_same_score(sigma: float, n: int, monkeypatch) -> None:
    """In d = 40 by matrix products, 600 queries in three pieces; against the kernel that forms differences."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(n, 40))
    x = 0.8 * points[rng.integers(n, size=600)] + sigma * rng.normal(size=(600, 40))
    cloud = PointCloud(points)
    called = []
    monkeypatch.setattr(empirical, "HELD", 250 * n)
    original = PointCloud._score_by_products
    monkeypatch.setattr(PointCloud, "_score_by_products", lambda *args: called.append(1) or original(*args))
    found = cloud.score(x, alpha=0.8, sigma=sigma)
    assert called
    expected = super(PointCloud, cloud).score(x, alpha=0.8, sigma=sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("dim", [2, 20])
def test_a_cloud_keeps_its_points(dim: int) -> None:
    """Whatever becomes of the array that they came from; score by the kernel (d = 2) and by products."""
    given = np.random.default_rng(5).normal(size=(40, dim))
    cloud, x = PointCloud(given), np.ones((3, dim))
    before = cloud.score(x, sigma=0.9), cloud.log_prob(x, sigma=0.9), cloud.covariance()
    given += 1.0
    after = cloud.score(x, sigma=0.9), cloud.log_prob(x, sigma=0.9), cloud.covariance()
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="read-only"):
        cloud.points += 1.0


def test_fine_noise_is_left_to_differences(monkeypatch) -> None:
    """Where |x|^2 / sigma^2 is 1e14, products would know nothing of the distance."""
    monkeypatch.setattr(PointCloud, "_score_by_products", None)
    points = np.random.default_rng(4).normal(size=(5, 20))
    score = PointCloud(points).score(points + 1e-7, sigma=1e-6)
    np.testing.assert_allclose(score, np.full((5, 20), -1e5), rtol=1e-8)
