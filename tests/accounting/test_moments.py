"""Rows from inner products, and control variates that do not bias."""

import numpy as np
import pytest
from truths import BIM1, mixture_oracle

from thermodiff.accounting.moments import Node, controls, reduce_variance, rows

ALPHA, SIGMA, GROWTH = 0.8, 0.6, 0.18
Q = -2.0 * GROWTH / SIGMA


def sample(n: int, seed: int = 0, learned: bool = False) -> tuple[dict[str, np.ndarray], Node]:
    """Inner products of BIM-1 made in plain NumPy."""
    rng = np.random.default_rng(seed)
    weights, means, stds = (np.array(values) for values in (BIM1.weights, BIM1.means, BIM1.stds))
    k = rng.choice(2, size=n, p=weights)
    x = ALPHA * (means[k] + stds[k] * rng.standard_normal(n)) + SIGMA * rng.standard_normal(n)
    variance = ALPHA**2 * stds**2 + SIGMA**2
    c = -SIGMA * (x - ALPHA * means[k]) / variance[k]
    exact = mixture_oracle(x[:, None], weights, means[:, None], (stds**2)[:, None, None], ALPHA, SIGMA)
    b = SIGMA * exact.score[:, 0]
    gram = {
        "xx": x * x, "xc": x * c, "cc": c * c, "xb": x * b, "bb": b * b, "cb": c * b,
        "div": SIGMA**2 * exact.divergence, "logp": exact.log_prob, "zero": (exact.responsibilities - weights).T,
    }  # fmt: skip
    if learned:
        e = 0.9 * b + 0.05 * x
        gram |= {"xe": x * e, "ee": e * e, "eb": e * b, "ediv": 0.9 * gram["div"] + 0.05 * SIGMA}
    moment = ALPHA**2 * BIM1.second_moment + SIGMA**2
    return gram, Node(SIGMA, Q, 1, moment, float(weights @ (SIGMA**2 / variance)))


def test_total_is_system_plus_medium_for_every_sample() -> None:
    gram, node = sample(500)
    found = rows(gram, node)
    np.testing.assert_allclose(found["system"] + found["medium"], found["total"], rtol=1e-13, atol=1e-14)


def test_learned_rows_are_their_definitions() -> None:
    """neural = |a - e|^2 / 2 and mismatch = |e - b|^2 / 2 with a = q x; the residual is v.s + div v of the learned score."""
    gram, node = sample(500, learned=True)
    x = np.sqrt(gram["xx"])
    b, e = gram["xb"] / x, gram["xe"] / x
    a, found = Q * x, rows(gram, node)
    expected = {
        "neural": 0.5 * (a - e) ** 2, "mismatch": 0.5 * (e - b) ** 2, "residual": 0.5 * ((a - e) * e + SIGMA * Q - gram["ediv"]),
    }  # fmt: skip
    assert set(found) == {"total", "system", "medium", *expected}
    for row, values in expected.items():
        np.testing.assert_allclose(found[row], values, rtol=1e-11, atol=1e-12, err_msg=row)


def test_exact_rows_have_the_mean_of_their_definitions() -> None:
    """total = |a - b|^2 / 2, system = b.(b - a) / 2, medium = a.(a - b) / 2, each with what is known in closed form put in."""
    gram, node = sample(400_000)
    xx, xb, bb, found = gram["xx"], gram["xb"], gram["bb"], rows(gram, node)
    expected = {
        "total": 0.5 * (Q * Q * xx - 2.0 * Q * xb + bb),
        "system": 0.5 * (bb - Q * xb),
        "medium": 0.5 * (Q * Q * xx - Q * xb),
        "residual": 0.5 * (Q * xb - bb + SIGMA * Q - gram["div"]),
    }
    for row, values in expected.items():
        gap = found[row] - values
        assert abs(gap.mean()) <= 4.0 * gap.std() / np.sqrt(gap.size) + 1e-14, row


@pytest.mark.parametrize("known", [True, False], ids=["moment known", "moment unknown"])
def test_without_a_score_only_the_medium_is_there(known: bool) -> None:
    gram, node = sample(500)
    moment = gram["xx"]
    if known:
        moment = np.full(500, node.mean_xx)
    else:
        node = node._replace(mean_xx=None)
    found = rows({"xx": gram["xx"], "xc": gram["xc"], "cc": gram["cc"]}, node)
    assert set(found) == {"medium"}
    np.testing.assert_allclose(found["medium"], 0.5 * (Q * Q * moment + Q * SIGMA), rtol=1e-13, atol=1e-15)


def test_controls_have_mean_zero() -> None:
    gram, node = sample(400_000)
    for k, (control, size) in enumerate(controls(gram, node)):
        assert size > 0.0
        assert abs(control.mean()) < 4.0 * control.std() / np.sqrt(control.size), k


def test_fewer_controls_where_less_is_known() -> None:
    gram, node = sample(100)
    plain = {"xx": gram["xx"], "xc": gram["xc"], "cc": gram["cc"]}
    counts = [
        len(controls(known, place)) for known, place in ((plain, node._replace(mean_xx=None)), (plain, node), (gram, node))
    ]
    assert counts[:2] == [2, 3]
    assert counts[2] > 3 + 2 + 5


def test_the_reduced_error_is_smaller() -> None:
    gram, node = sample(10_000)
    values = np.array([rows(gram, node)["total"]])
    assert reduce_variance(values, controls(gram, node)).std() < 0.5 * values.std()


def test_the_reduced_value_agrees_with_the_plain_one_within_its_error() -> None:
    """Over 200 seeds the RMS deviation from a long run is the reported error."""
    gram, node = sample(400_000, seed=999)
    truth = np.mean(rows(gram, node)["total"] - _fit_on_itself(rows(gram, node)["total"], controls(gram, node)))
    z = []
    for seed in range(200):
        gram, node = sample(1000, seed)
        adjusted = reduce_variance(np.array([rows(gram, node)["total"]]), controls(gram, node))[0]
        z.append((adjusted.mean() - truth) / (adjusted.std(ddof=1) / np.sqrt(1000)))
    assert 0.85 < np.sqrt(np.mean(np.square(z))) < 1.25
    assert abs(np.mean(z)) < 4.0 / np.sqrt(200)


def _fit_on_itself(values: np.ndarray, zero_mean) -> np.ndarray:
    matrix = np.array([control for control, _ in zero_mean])
    coefficients = np.linalg.lstsq(
        np.vstack([np.ones(values.size), matrix]).T, values, rcond=1e-9
    )[0][1:]  # fmt: skip
    return coefficients @ matrix


def test_a_control_that_explains_everything_leaves_next_to_nothing() -> None:
    """Up to the ridge, a part in ten thousand."""
    u = np.random.default_rng(0).standard_normal(1000)
    adjusted = reduce_variance(np.array([3.0 + 2.0 * u]), [(u, 1.0)])
    assert np.abs(adjusted - 3.0).max() < 1.2e-4 * 2.0 * np.abs(u).max()


def test_controls_without_spread_or_resting_on_one_sample_are_left_out() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 1000))
    spike = np.zeros(1000)
    spike[[3, 700]] = 50.0
    rounding = 1e-14 * rng.standard_normal(1000)
    for control in (spike, rounding, np.zeros(1000)):
        np.testing.assert_array_equal(reduce_variance(values, [(control, 1.0)]), values)


def test_few_samples_take_few_controls() -> None:
    gram, node = sample(30)
    values = np.array([rows(gram, node)["total"]])
    np.testing.assert_array_equal(reduce_variance(values, controls(gram, node)), values)


@pytest.mark.parametrize("copies", [2, 5])
def test_dependent_controls_do_no_harm(copies: int) -> None:
    """They share one coefficient; only the effect of the ridge differs, a part in ten thousand of the control."""
    rng = np.random.default_rng(1)
    u = rng.standard_normal(2000)
    values = np.array([u + 0.1 * rng.standard_normal(2000)])
    once = reduce_variance(values, [(u, 1.0)])
    many = reduce_variance(values, [(u, 1.0)] * copies)
    assert np.abs(many - once).max() < 1.2e-4 * np.abs(u).max()
