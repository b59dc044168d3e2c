"""Draws of x_t with their component scores, and the fused kernel against plain NumPy on the same draws."""

import numpy as np
import pytest
from packed_laws import LAWS, Packed, isotropic
from truths import mixture_oracle

from thermodiff.kernels.integrands import CONDITIONAL, FEW, GRAM, as_rows, draws, gram
from thermodiff.kernels.jit import LANES

KEY = np.array([2024, 7], dtype=np.uint32)
ALPHA, SIGMA = 0.8, 0.6
PAIRS = (*GRAM, *CONDITIONAL)
DEVIATIONS = 4.0

laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
mixtures = pytest.mark.parametrize("name", [name for name in LAWS if not name.startswith("cloud")])


def drawn(law: Packed, blocks: int, node: int = 3, first: int = 0, key: np.ndarray = KEY) -> tuple[np.ndarray, np.ndarray]:
    """x and c as (n, d)."""
    x = np.empty((law.dim, blocks * LANES))
    c = np.empty_like(x)
    draws(law.draw, key, first, first + blocks, node, np.array([[ALPHA, SIGMA]]), law.params, x, c)
    return x.T, c.T


def fused(law: Packed, blocks: int, extra: int, node: int = 3, first: int = 0) -> np.ndarray:
    return products(law, np.array([[ALPHA, SIGMA]]), first, first + blocks, extra, node)[0]


def products(
    law: Packed, scalars: np.ndarray, first: int, last: int, extra: int, node: int, conditional: bool = True
) -> np.ndarray:
    """Rows (m, rows, n) of some blocks; nothing that was there before is left in them."""
    rows = extra + len(GRAM) + conditional * len(CONDITIONAL)
    out = np.full((len(scalars), law.dim + (last - first) * rows, LANES), np.nan)
    gram(law.draw, law.score, conditional, KEY, first, last, node, scalars, law.params, out)
    return as_rows(out, law.dim, rows)


def extra_rows(law: Packed) -> int:
    return 2 + (2 * law.weights.size if np.any(law.covs) else 0)


def named(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The rows but those of components."""
    return dict(zip(("div", "logp", *PAIRS), [*rows[:2], *rows[-len(PAIRS) :]], strict=True))


@laws
def test_fused_products_equal_plain_numpy_on_the_same_draws(law: Packed) -> None:
    x, c = drawn(law, 3)
    exact = mixture_oracle(x, law.weights, law.means, law.covs, ALPHA, SIGMA)
    b = SIGMA * exact.score
    found = named(fused(law, 3, extra_rows(law)))
    expected = {
        "xx": x * x, "xc": x * c, "cc": c * c, "xb": x * b, "bb": b * b, "cb": c * b,
    }  # fmt: skip
    for name, terms in expected.items():
        np.testing.assert_allclose(
            found[name], terms.sum(axis=1), rtol=1e-11, atol=1e-11 * np.abs(terms).max(), err_msg=name
        )
    size = (b * b).sum(axis=1).max() + law.dim
    np.testing.assert_allclose(found["div"], SIGMA**2 * exact.divergence, rtol=0.0, atol=1e-11 * size)
    np.testing.assert_allclose(found["logp"], exact.log_prob, rtol=1e-11, atol=1e-11)


@laws
def test_without_c_the_other_rows_are_the_same_bits(law: Packed) -> None:
    scalars = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 1.0]])
    with_c, without = (products(law, scalars, 0, 2, extra_rows(law), 1, wanted) for wanted in (True, False))
    np.testing.assert_array_equal(without, with_c[:, : -len(CONDITIONAL)])


@mixtures
def test_component_rows_follow(name: str) -> None:
    law = LAWS[name]
    x, _ = drawn(law, 2)
    exact = mixture_oracle(x, law.weights, law.means, law.covs, ALPHA, SIGMA)
    rows = fused(law, 2, extra_rows(law))[2 : -len(PAIRS)]
    np.testing.assert_allclose(rows[0::2].T, exact.responsibilities - law.weights, rtol=0.0, atol=1e-12)
    size = np.abs(exact.squares).max()
    np.testing.assert_allclose(rows[1::2].T, exact.responsibilities * exact.squares, rtol=0.0, atol=1e-12 * size)


@mixtures
def test_component_rows_have_mean_zero(name: str) -> None:
    rows = fused(LAWS[name], 80, extra_rows(LAWS[name]))[2 : -len(PAIRS)]
    spread = rows.std(axis=1, ddof=1) / np.sqrt(rows.shape[1])
    # One component: r - w is zero identically.
    z = np.divide(rows.mean(axis=1), spread, out=np.zeros_like(spread), where=spread > 1e-13)
    assert np.all(np.abs(rows.mean(axis=1)[spread <= 1e-13]) < 1e-12)
    assert np.abs(z).max() < DEVIATIONS


@laws
def test_draws_have_the_mean_and_covariance_of_the_law(law: Packed) -> None:
    n = 400 * LANES
    x, _ = drawn(law, 400)
    mean = ALPHA * law.weights @ law.means
    gaps = ALPHA * law.means - mean
    cov = np.einsum("k,kij->ij", law.weights, ALPHA**2 * law.covs) + np.einsum("k,ki,kj->ij", law.weights, gaps, gaps)
    cov = cov + SIGMA**2 * np.eye(law.dim)
    z = (x.mean(axis=0) - mean) / np.sqrt(np.diag(cov) / n)
    assert np.abs(z).max() < DEVIATIONS
    centred = x - mean
    for i in range(law.dim):
        for j in range(i + 1):
            products = centred[:, i] * centred[:, j]
            assert abs(products.mean() - cov[i, j]) < DEVIATIONS * products.std() / np.sqrt(n)


@laws
def test_c_is_the_score_given_the_component(law: Packed) -> None:
    """c equals sigma times the score of one component of the mixture, for every sample."""
    x, c = drawn(law, 2)
    options = np.stack([
        -SIGMA * np.linalg.solve(ALPHA**2 * cov + SIGMA**2 * np.eye(law.dim), (x - ALPHA * mean).T).T
        for mean, cov in zip(law.means, law.covs, strict=True)
    ])  # fmt: skip
    distance = np.abs(options - c).max(axis=2).min(axis=0)
    assert distance.max() < 1e-12 * (1.0 + np.abs(options).max())


@laws
def test_the_conditional_mean_of_c_is_b(law: Packed) -> None:
    """E c = E b and E x.c = E x.b: the control variates rest on this."""
    x, c = drawn(law, 200)
    b = SIGMA * mixture_oracle(x, law.weights, law.means, law.covs, ALPHA, SIGMA).score
    for gap in [*(c - b).T, np.sum(x * (c - b), axis=1), np.sum(b * (c - b), axis=1)]:
        assert abs(gap.mean()) <= DEVIATIONS * gap.std() / np.sqrt(gap.size) + 1e-14


@laws
def test_the_conditional_mean_of_the_square_of_c_is_made_of_other_rows(law: Packed) -> None:
    """E[|c|^2 | x] = |b|^2 + sigma div b + sum_j r_j tr(sigma^2 V_j^-1): beside those, c has nothing to say of x."""
    x, c = drawn(law, 200)
    exact = mixture_oracle(x, law.weights, law.means, law.covs, ALPHA, SIGMA)
    traces = [np.trace(np.linalg.inv(ALPHA**2 * cov + SIGMA**2 * np.eye(law.dim))) for cov in law.covs]
    known = np.sum(exact.score**2, axis=1) + exact.divergence + exact.responsibilities @ traces
    gap = np.sum(c * c, axis=1) - SIGMA**2 * known
    for weight in (np.ones(len(x)), np.sum(x * x, axis=1), np.sum(exact.score**2, axis=1), exact.log_prob):
        product = gap * weight
        assert abs(product.mean()) <= DEVIATIONS * product.std() / np.sqrt(gap.size) + 1e-12 * np.abs(known * weight).max()


@laws
def test_components_are_chosen_by_their_weights(law: Packed) -> None:
    """Chi-squared of the number of draws that each component owns; ownership read off c."""
    if law.weights.size == 1:
        np.testing.assert_array_equal(law.weights, [1.0])
        return
    n = 100 * LANES
    x, c = drawn(law, 100)
    options = np.stack([
        -SIGMA * np.linalg.solve(ALPHA**2 * cov + SIGMA**2 * np.eye(law.dim), (x - ALPHA * mean).T).T
        for mean, cov in zip(law.means, law.covs, strict=True)
    ])  # fmt: skip
    owner = np.abs(options - c).max(axis=2).argmin(axis=0)
    counts = np.bincount(owner, minlength=law.weights.size)
    expected = n * law.weights
    chi2, freedom = np.sum((counts - expected) ** 2 / expected), law.weights.size - 1
    assert abs(chi2 - freedom) < DEVIATIONS * np.sqrt(2.0 * freedom) + 4.0


@pytest.mark.parametrize("count", [1, 2, 5, FEW])
def test_few_components_are_drawn_as_many_are(count: int) -> None:
    """By comparisons and by a look into a table: with components that no uniform finds behind them, the same bits."""
    rng = np.random.default_rng(count)
    weights, means, stds = rng.dirichlet(np.ones(count)), rng.normal(size=(count, 3)), rng.uniform(0.1, 1.0, count)
    more = FEW + 1 - count
    few = isotropic(weights, means, stds)
    many = isotropic(
        np.append(weights, np.full(more, 1e-300)),
        np.concatenate([means, np.full((more, 3), 99.0)]),
        np.append(stds, np.full(more, 99.0)),
    )
    for one, two in zip(drawn(few, 20), drawn(many, 20), strict=True):
        np.testing.assert_array_equal(one, two)


def test_nodes_and_blocks_give_independent_draws() -> None:
    law = LAWS["isotropic, two components, d = 1"]
    first, other = drawn(law, 200, node=0)[0][:, 0], drawn(law, 200, node=1)[0][:, 0]
    scale = np.sqrt(first.size) / (first.std() * other.std())
    assert abs(np.mean((first - first.mean()) * (other - other.mean())) * scale) < DEVIATIONS
    shifted = drawn(law, 200, node=0, first=200)[0][:, 0]
    assert abs(np.mean((first - first.mean()) * (shifted - shifted.mean())) * scale) < DEVIATIONS


@laws
@pytest.mark.parametrize("node", [0, 2, 3])
def test_nodes_together_are_what_they_are_one_by_one(law: Packed, node: int) -> None:
    """Consecutive nodes share counters of the random numbers, and nothing else."""
    scalars = np.array([[0.9, 0.2], [0.8, 0.6], [0.5, 0.8], [0.1, 1.0], [0.05, 1.1]])
    together = products(law, scalars, 0, 2, extra_rows(law), node)
    for j in range(5):
        alone = products(law, scalars[j : j + 1].copy(), 0, 2, extra_rows(law), node + j)
        np.testing.assert_array_equal(together[j], alone[0])


@laws
def test_a_range_of_blocks_is_a_slice_of_the_whole(law: Packed) -> None:
    whole = fused(law, 6, extra_rows(law))
    parts = [fused(law, size, extra_rows(law), first=first) for first, size in ((0, 1), (1, 3), (4, 2))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
