"""What every law offers, by definition."""

import numpy as np
import pytest
from scipy.linalg import block_diag
from truths import BIM1

from thermodiff import VP, Density, Diffusion, Gaussian, GaussianMixture, PointCloud, account, oracle, paper_mixture

FULL = GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], covs=[[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]], weights=[0.35, 0.65]
)
LAWS = {
    "BIM-1": GaussianMixture(**BIM1.columns),
    "full": FULL,
    "Gaussian": Gaussian([1.0, 0.0, 2.0], std=0.4),
    "paper": paper_mixture(3),
    "cloud": PointCloud(np.random.default_rng(0).normal(size=(9, 2))),
}
each = pytest.mark.parametrize("name", LAWS)


@each
def test_a_law_is_a_density(name: str) -> None:
    assert isinstance(LAWS[name], Density)
    assert LAWS[name].singular == (name == "cloud")


@each
def test_conditional_moment_is_the_mean_square_of_the_component_score(name: str) -> None:
    law, alpha, sigma, n = LAWS[name], 0.8, 0.6, 100_000
    part, rng = law.parts(), np.random.default_rng(1)
    k = rng.choice(part.weights.size, size=n, p=part.weights)
    variances = np.broadcast_to(alpha**2 * part.variances + sigma**2, (part.weights.size, law.dim))
    # sigma times the score of N(0, v) at a draw of it: variance sigma^2 / v on each principal axis.
    squares = np.sum(sigma**2 / variances[k] * rng.standard_normal((n, law.dim)) ** 2, axis=1)
    z = (squares.mean() - law.conditional_moment(alpha, sigma)) / (squares.std() / np.sqrt(n))
    assert abs(z) < 4.0


@each
def test_scales_describe_the_whole_and_the_components(name: str) -> None:
    law, part = LAWS[name], LAWS[name].parts()
    (one, spectrum), (weights, eigenvalues), pairs = law.scales
    np.testing.assert_array_equal(one, [1.0])
    np.testing.assert_allclose(np.sort(spectrum[0]), np.linalg.eigvalsh(law.covariance()), rtol=1e-10, atol=1e-14)
    assert weights.sum() == pytest.approx(1.0, rel=1e-14)
    assert eigenvalues.shape == (weights.size, law.dim)
    assert weights @ eigenvalues.sum(axis=1) == pytest.approx(
        part.weights @ np.broadcast_to(part.variances, part.means.shape).sum(axis=1)
    )
    # All pairs together hold the entropy of the choice of a component.
    choice = -float(np.sum(part.weights * np.log(part.weights)))
    assert pairs.weights.sum() * np.log(2.0) == pytest.approx(choice, abs=1e-14)


def test_pairs_lie_along_the_line_between_components() -> None:
    apart = np.array([2.0, 0.5])
    along = [
        apart @ np.array(cov) @ apart / (apart @ apart) for cov in ([[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]])
    ]
    pairs = FULL.scales.pairs
    assert pairs.signals == pytest.approx([apart @ apart / 4.0])
    assert pairs.variances == pytest.approx([np.mean(along)], rel=1e-12)


def test_pairs_are_of_the_heaviest_components() -> None:
    weights = np.linspace(1.0, 3.0, 40)
    law = GaussianMixture(np.arange(40.0)[:, None], stds=[0.1] * 40, weights=weights / weights.sum())
    assert law.scales.pairs.weights.size == 120
    assert np.max(law.scales.pairs.signals) == 0.25 * 15**2


def test_coincident_components_make_no_pair() -> None:
    assert GaussianMixture([[0.0], [0.0]], stds=[0.1, 1.0]).scales.pairs.weights.size == 0


def test_parts_rebuild_the_covariances() -> None:
    part = FULL.parts()
    rebuilt = np.einsum("kja,kj,kjb->kab", part.axes, part.variances, part.axes)
    np.testing.assert_allclose(rebuilt, [[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]], atol=1e-14)
    np.testing.assert_allclose(part.axes @ part.axes.transpose(0, 2, 1), np.tile(np.eye(2), (2, 1, 1)), atol=1e-14)


@each
def test_smoothing_twice_is_smoothing_once(name: str) -> None:
    """log p of alpha x_0 + sigma z at alpha = 1 is that of the law with broader components."""
    law = LAWS[name]
    if law.singular:
        broader = GaussianMixture(law.parts().means, stds=0.5)
    else:
        part = law.parts()
        axes = np.tile(np.eye(law.dim), (part.weights.size, 1, 1)) if part.axes is None else part.axes
        variances = np.broadcast_to(part.variances, part.means.shape) + 0.25
        broader = GaussianMixture(part.means, covs=np.einsum("kja,kj,kjb->kab", axes, variances, axes), weights=part.weights)
    x = np.random.default_rng(2).normal(0, 2, (50, law.dim))
    np.testing.assert_allclose(law.log_prob(x, sigma=0.5), broader.log_prob(x), rtol=1e-12, atol=1e-12)


def test_independent_coordinates_add_up() -> None:
    a, b = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.2]])
    joint = Gaussian([1.0, 0.0, 2.0], cov=block_diag(a, b))
    x = np.random.default_rng(3).normal(size=(40, 3))
    parts = Gaussian([1.0, 0.0], cov=a).log_prob(x[:, :2]) + Gaussian([2.0], cov=b).log_prob(x[:, 2:])
    np.testing.assert_allclose(joint.log_prob(x), parts, rtol=1e-12)


@pytest.mark.parametrize("size", [1e160, 1e200, 1.7e308])
def test_a_second_moment_that_overflows_is_refused(size: float) -> None:
    """By account and oracle too, with one sentence and no warning."""
    for law in (Gaussian([size], std=1.0), GaussianMixture([[size], [-size]], stds=1.0), PointCloud([[size], [0.0]])):
        for call in (account, oracle):
            with pytest.raises(ValueError, match="the second moment of .* overflows; rescale the data"):
                call(Diffusion(law, VP()), lam=(-8.0, 8.0))


def test_c_serves_where_there_are_no_rows_of_components() -> None:
    assert GaussianMixture(**BIM1.columns).conditional_names == ()
    many = GaussianMixture(np.arange(17.0)[:, None], stds=0.5)
    for law in (many, PointCloud([[0.0], [1.0]]), Gaussian([0.0], std=1.0)):
        assert law.component_names == ()
        assert law.conditional_names == ("xc", "cc", "cb")


def test_rare_components_get_no_control_variates() -> None:
    law = GaussianMixture([[0.0], [1.0], [2.0]], stds=0.5, weights=[0.6, 0.395, 0.005])
    assert law.law.component_rows == 6
    assert law.component_names == ("share", "square", "share", "square", "rare", "rare")
    assert Gaussian([0.0], std=1.0).component_names == ()
