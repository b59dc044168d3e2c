"""Random signs that differ, unbiased, with errors that hold for few of them."""

from __future__ import annotations

import numpy as np
import pytest

from thermodiff._check import seed_words
from thermodiff.learned.probes import probe_errors, rows, sign_probes

KEY = seed_words(0)


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 17, 100])
def test_probes_of_a_point_differ_also_in_sign(dim: int) -> None:
    number = min(dim, 16)
    signs = sign_probes(KEY, number, dim, 40, 0)
    assert signs.shape == (number, 40, dim)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    for point in range(40):
        gram = signs[:, point] @ signs[:, point].T
        assert np.all(np.abs(gram[~np.eye(number, dtype=bool)]) < dim)


def test_all_probes_are_exact() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 5))
    signs = sign_probes(KEY, rows(5), 5, 1, 0)[:, 0]
    assert np.mean(np.einsum("kd,de,ke->k", signs, matrix, signs)) == pytest.approx(np.trace(matrix), rel=1e-12)


def test_probes_are_independent_signs() -> None:
    """Mean 0, covariance 1, over points; other points and other keys have other ones."""
    signs = sign_probes(KEY, 1, 6, 20_000, 0)[0]
    assert np.max(np.abs(signs.mean(axis=0))) < 0.04
    assert np.max(np.abs(signs.T @ signs / 20_000 - np.eye(6))) < 0.04
    assert not np.array_equal(sign_probes(KEY, 1, 6, 256, 0), sign_probes(KEY, 1, 6, 256, 256))
    assert not np.array_equal(sign_probes(KEY, 1, 6, 256, 0), sign_probes(seed_words(1), 1, 6, 256, 0))


@pytest.mark.parametrize(("dim", "number"), [(3, 2), (8, 2), (8, 4), (16, 2), (16, 3), (16, 12), (64, 2), (64, 4), (64, 16)])
def test_errors_hold(dim: int, number: int) -> None:
    """Quadratic forms that differ from point to point: fewer than one in a hundred beyond four errors, none without error."""
    rng = np.random.default_rng(dim)
    factors = rng.standard_normal((1000, dim, 3)) * np.exp(0.5 * rng.standard_normal(1000))[:, None, None]
    signs = sign_probes(KEY, number, dim, 1000, 0)
    values = np.sum(np.einsum("knd,ndr->knr", signs, factors) ** 2, axis=2)
    errors = probe_errors(values, dim)
    z = (values.mean(axis=0) - np.sum(factors**2, axis=(1, 2))) / errors
    assert np.all(errors > 0.0)
    assert np.mean(np.abs(z) > 4.0) < 0.015
    assert 0.6 < np.sqrt(np.mean(z**2)) < 1.3
