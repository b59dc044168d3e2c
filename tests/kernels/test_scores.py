"""Scores, divergences, log-densities and component rows against plain NumPy and against finite differences."""

import numpy as np
import pytest
from packed_laws import LAWS, Packed, full, isotropic
from truths import mixture_oracle

from thermodiff.kernels.tasks import at_points
from thermodiff.schedules import VP, StraightLine

# (alpha, sigma) from clean to noisy; clouds need some width.
KERNELS = [(0.99, 0.2), (0.7, 0.5), (0.2, 0.98), (1e-3, 1.0), (1.0, 3.0)]

laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
kernels = pytest.mark.parametrize(("alpha", "sigma"), KERNELS)


def points(law: Packed, n: int = 300, seed: int = 7) -> np.ndarray:
    """Points over and beyond the law; n is no multiple of the block."""
    return np.random.default_rng(seed).normal(0.0, 2.0, (n, law.dim))


def field(law: Packed, x: np.ndarray, alpha: float, sigma: float, a: float, c: float, rows: int) -> np.ndarray:
    return at_points(law.score, law.params, (alpha, sigma**2, a, c), x, rows)


def log_prob(law: Packed, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    return at_points(law.density, law.params, (alpha, sigma**2, 0.0, 0.0), x, 2)[:, 0]


def oracle(law: Packed, x: np.ndarray, alpha: float, sigma: float):
    return mixture_oracle(x, law.weights, law.means, law.covs, alpha, sigma)


@laws
@kernels
def test_score_equals_plain_numpy(law: Packed, alpha: float, sigma: float) -> None:
    x = points(law)
    expected = oracle(law, x, alpha, sigma).score
    found = field(law, x, alpha, sigma, 0.0, 1.0, law.dim)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@laws
@kernels
def test_divergence_and_log_density_rows_equal_plain_numpy(law: Packed, alpha: float, sigma: float) -> None:
    x = points(law)
    expected = oracle(law, x, alpha, sigma)
    found = field(law, x, alpha, sigma, 0.0, 1.0, law.dim + 2)
    size = np.abs(expected.score).max() ** 2 + law.dim / sigma**2
    np.testing.assert_allclose(found[:, law.dim], expected.divergence, rtol=1e-12, atol=1e-12 * size)
    np.testing.assert_allclose(found[:, law.dim + 1], expected.log_prob, rtol=1e-12, atol=1e-12)


@laws
@kernels
def test_density_field_gives_log_density_and_entropy_of_responsibilities(law: Packed, alpha: float, sigma: float) -> None:
    x = points(law)
    expected = oracle(law, x, alpha, sigma)
    found = at_points(law.density, law.params, (alpha, sigma**2, 0.0, 0.0), x, 2)
    r = expected.responsibilities
    np.testing.assert_allclose(found[:, 0], expected.log_prob, rtol=1e-12, atol=1e-12)
    surprise = -np.sum(np.where(r > 0.0, r * np.log(np.maximum(r, 1e-300)), 0.0), axis=1)
    # A cloud forms log total - mean exponent, whose terms grow with the distance: rounding is relative to them.
    np.testing.assert_allclose(found[:, 1], surprise, rtol=1e-10, atol=1e-13 * (1.0 + np.abs(expected.log_prob).max()))


@pytest.mark.parametrize("name", [name for name in LAWS if not name.startswith("cloud")])
@kernels
def test_component_rows_equal_plain_numpy(name: str, alpha: float, sigma: float) -> None:
    law = LAWS[name]
    x, d, k = points(law), law.dim, law.weights.size
    expected = oracle(law, x, alpha, sigma)
    rows = field(law, x, alpha, sigma, 0.0, 1.0, d + 2 + 2 * k)[:, d + 2 :]
    np.testing.assert_allclose(rows[:, 0::2], expected.responsibilities - law.weights, rtol=0.0, atol=1e-12)
    size = np.abs(expected.squares).max()
    np.testing.assert_allclose(rows[:, 1::2], expected.responsibilities * expected.squares, rtol=0.0, atol=1e-12 * size)


@laws
def test_score_is_the_gradient_of_the_log_density(law: Packed) -> None:
    """Fourth-order central differences, step 1e-3."""
    alpha, sigma, h, x = 0.6, 0.8, 1e-3, points(law)
    gradient = np.zeros_like(x)
    for i in range(law.dim):
        for offset, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            gradient[:, i] += weight * log_prob(law, x + offset * h * np.eye(law.dim)[i], alpha, sigma) / (12.0 * h)
    np.testing.assert_allclose(field(law, x, alpha, sigma, 0.0, 1.0, law.dim), gradient, rtol=0.0, atol=1e-9)


@laws
def test_divergence_is_the_divergence_of_the_score(law: Packed) -> None:
    alpha, sigma, h, x = 0.6, 0.8, 1e-3, points(law)
    divergence = np.zeros(x.shape[0])
    for i in range(law.dim):
        for offset, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            shifted = field(law, x + offset * h * np.eye(law.dim)[i], alpha, sigma, 0.0, 1.0, law.dim)
            divergence += weight * shifted[:, i] / (12.0 * h)
    found = field(law, x, alpha, sigma, 0.0, 1.0, law.dim + 1)[:, law.dim]
    np.testing.assert_allclose(found, divergence, rtol=0.0, atol=1e-8)


@laws
def test_field_is_affine_in_the_two_scalars(law: Packed) -> None:
    """a x + c s, with divergence a d + c div s."""
    x, a, c = points(law), 0.7, -1.3
    plain = field(law, x, 0.6, 0.8, 0.0, 1.0, law.dim + 1)
    mixed = field(law, x, 0.6, 0.8, a, c, law.dim + 1)
    np.testing.assert_allclose(mixed[:, :-1], a * x + c * plain[:, :-1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(mixed[:, -1], a * law.dim + c * plain[:, -1], rtol=1e-13, atol=1e-12)


@laws
def test_score_does_not_depend_on_the_rows_asked_for(law: Packed) -> None:
    x = points(law)
    whole = field(law, x, 0.6, 0.8, 0.0, 1.0, law.dim + 2)
    np.testing.assert_array_equal(field(law, x, 0.6, 0.8, 0.0, 1.0, law.dim + 1), whole[:, : law.dim + 1])
    # Without further rows the isotropic kernel forms the same sums in another order.
    alone = field(law, x, 0.6, 0.8, 0.0, 1.0, law.dim)
    np.testing.assert_allclose(alone, whole[:, : law.dim], rtol=1e-12, atol=1e-13 * np.abs(whole[:, : law.dim]).max())


@laws
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), StraightLine(scale=0.1)], ids=lambda noise: noise.name)
@pytest.mark.parametrize("end", [0, 1], ids=["noise", "data"])
def test_everything_is_finite_far_out_and_at_both_ends_of_the_window(law: Packed, noise, end: int) -> None:
    row = noise.at(noise.window()[end])
    far = np.concatenate([1e3 * np.eye(law.dim), -1e3 * np.eye(law.dim), 1e3 * np.ones((1, law.dim)), law.means])
    extra = 2 + (0 if np.all(law.covs == 0.0) else 2 * law.weights.size)
    rows = field(law, far, float(row.alpha), float(row.sigma), 0.0, 1.0, law.dim + extra)
    assert np.all(np.isfinite(rows))
    assert np.all(
        np.isfinite(at_points(law.density, law.params, (float(row.alpha), float(row.sigma) ** 2, 0.0, 0.0), far, 2))
    )


@laws
def test_far_out_the_score_points_to_the_nearest_component(law: Packed) -> None:
    """At |x| = 1e3 one component has it all, and the score is its own to rounding."""
    alpha, sigma = 0.6, 0.8
    far = 1e3 * np.eye(law.dim)
    expected = oracle(law, far, alpha, sigma)
    assert np.all(expected.responsibilities.max(axis=1) > 1.0 - 1e-12)
    np.testing.assert_allclose(field(law, far, alpha, sigma, 0.0, 1.0, law.dim), expected.score, rtol=1e-10, atol=1e-9)


def test_a_component_of_vanishing_weight_has_no_effect() -> None:
    ghost = isotropic([0.4, 1e-300, 0.6], [[-1.5], [0.2], [1.0]], [0.3, 0.01, 0.5])
    plain = LAWS["isotropic, two components, d = 1"]
    x = points(plain)
    np.testing.assert_array_equal(field(ghost, x, 0.6, 0.8, 0.0, 1.0, 3), field(plain, x, 0.6, 0.8, 0.0, 1.0, 3))


def test_full_and_isotropic_kernels_agree_on_the_same_law() -> None:
    law = LAWS["isotropic, three components, d = 3"]
    same, x = full(law.weights, law.means, law.covs), points(law)
    rows = law.dim + 2 + 2 * law.weights.size
    np.testing.assert_allclose(
        field(same, x, 0.6, 0.8, 0.0, 1.0, rows), field(law, x, 0.6, 0.8, 0.0, 1.0, rows), rtol=1e-12, atol=1e-12
    )
