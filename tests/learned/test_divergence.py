"""Divergences of fields, against traces of their slopes."""

import numpy as np
import pytest
import torch

from thermodiff.learned.divergence import exact_divergence, hutchinson_divergence, reaches

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 4))
POINTS = RNG.standard_normal((50, 4))


def signs(seed: int, shape: tuple[int, ...] = POINTS.shape) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=shape)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.from_numpy(MATRIX).to(x.dtype).T + 1.0


def bent(x: torch.Tensor) -> torch.Tensor:
    """(sin x_i) |x|^2: divergence |x|^2 sum cos x_i + 2 sum x_i sin x_i."""
    return torch.sin(x) * x.square().sum(1, keepdim=True)


def test_linear_field() -> None:
    values, slopes = exact_divergence(linear, torch.from_numpy(POINTS))
    np.testing.assert_allclose(values, POINTS @ MATRIX.T + 1.0, rtol=1e-13)
    np.testing.assert_allclose(slopes, np.trace(MATRIX), rtol=1e-13)
    assert values.dtype == slopes.dtype == np.float64


def test_nonlinear_field() -> None:
    values, slopes = exact_divergence(bent, torch.from_numpy(POINTS))
    square = np.square(POINTS).sum(1)
    np.testing.assert_allclose(values, np.sin(POINTS) * square[:, None], rtol=1e-13)
    expected = square * np.cos(POINTS).sum(1) + 2.0 * (POINTS * np.sin(POINTS)).sum(1)
    np.testing.assert_allclose(slopes, expected, rtol=1e-12, atol=1e-12)


def test_one_dimension() -> None:
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    slopes = [exact_divergence(torch.sin, x)[1], hutchinson_divergence(torch.sin, x, signs(1, (9, 1)))[1]]
    for slope in slopes:  # a single sign squared is one
        np.testing.assert_allclose(slope, np.cos(x[:, 0].numpy()), rtol=1e-14)


def test_hutchinson_has_the_mean_and_spread_of_its_probes() -> None:
    """p'Ap with random signs: mean tr A, variance the sum over i < j of (A_ij + A_ji)^2."""
    n = 20_000
    points = torch.from_numpy(np.random.default_rng(1).standard_normal((n, 4)))
    values, slopes = hutchinson_divergence(linear, points, signs(6, (n, 4)))
    np.testing.assert_allclose(values, points.numpy() @ MATRIX.T + 1.0, rtol=1e-12, atol=1e-14)
    variance = np.sum(np.triu(MATRIX + MATRIX.T, 1) ** 2)
    assert abs(slopes.mean() - np.trace(MATRIX)) < 4.0 * np.sqrt(variance / n)
    assert slopes.var() == pytest.approx(variance, rel=0.05)


def test_hutchinson_is_unbiased_for_a_nonlinear_field() -> None:
    points = torch.from_numpy(np.random.default_rng(2).standard_normal((20_000, 3)))
    gap = hutchinson_divergence(bent, points, signs(4, (20_000, 3)))[1] - exact_divergence(bent, points)[1]
    assert abs(gap.mean()) < 4.0 * gap.std() / np.sqrt(gap.size)


def test_hutchinson_is_exact_for_a_diagonal_slope() -> None:
    slopes = hutchinson_divergence(lambda x: x**3, torch.from_numpy(POINTS), signs(9))[1]
    np.testing.assert_allclose(slopes, 3.0 * np.square(POINTS).sum(1), rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_fields(dtype: torch.dtype) -> None:
    """A module computes in float32 and answers in float64; the points may be of either type."""

    def field(x: torch.Tensor) -> torch.Tensor:
        return linear(x.to(torch.float32)).to(torch.float64)

    points = torch.from_numpy(POINTS).to(dtype)
    np.testing.assert_allclose(exact_divergence(field, points)[1], np.trace(MATRIX), rtol=1e-5)
    slopes = hutchinson_divergence(field, points, signs(3))[1]
    np.testing.assert_allclose(slopes, hutchinson_divergence(linear, torch.from_numpy(POINTS), signs(3))[1], atol=1e-5)


@pytest.mark.parametrize("method", [exact_divergence, lambda field, x: hutchinson_divergence(field, x, signs(0))])
def test_surroundings_are_left_alone(method) -> None:
    points = torch.from_numpy(POINTS.copy())
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.float64))
    with torch.no_grad():
        slopes = method(lambda x: x @ weight, points)[1]
        assert not torch.is_grad_enabled()
    np.testing.assert_allclose(slopes, 4.0, rtol=1e-14)
    assert weight.grad is None
    assert not points.requires_grad
    assert np.array_equal(points.numpy(), POINTS)


def test_whether_a_graph_leads_to_x() -> None:
    """Through views and other types, for a leaf and for what is formed from one; not through another leaf."""
    leaf = torch.from_numpy(POINTS.copy()).requires_grad_(True)
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.float64))
    for x in (leaf, leaf.reshape(-1, 2, 2)):
        assert reaches(torch.sin(x.to(torch.float32)).flatten(1).double() @ weight, x)
        assert not reaches(x.detach().flatten(1) @ weight, x)
        with torch.no_grad():
            assert not reaches(2.0 * x, x)
