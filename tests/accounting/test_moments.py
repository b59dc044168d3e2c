"""Rows from inner products, and control variates that do not bias."""

import numpy as np
import pytest
from truths import BIM1, mixture_oracle

from thermodiff.accounting.moments import Row, Scalars, controls, known_medium, plan, values
from thermodiff.kernels.controls import TERMS, adjust, in_blocks

Table = tuple[tuple[str, ...], np.ndarray]

ALPHA, SIGMA, GROWTH = 0.8, 0.6, 0.18
Q = -2.0 * GROWTH / SIGMA


def sample(n: int, seed: int = 0, learned: bool = False) -> tuple[Table, Scalars]:
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
        "div": SIGMA**2 * exact.divergence, "logp": exact.log_prob, "share": (exact.responsibilities - weights).T,
    }  # fmt: skip
    if learned:
        e = 0.9 * b + 0.05 * x
        gram |= {"xe": x * e, "ee": e * e, "eb": e * b, "ediv": 0.9 * gram["div"] + 0.05 * SIGMA}
    moment = ALPHA**2 * BIM1.second_moment + SIGMA**2
    shares = gram.pop("share")
    names = (*gram, *("share" for _ in shares))
    one = np.ones(1)
    scalars = Scalars(SIGMA * one, Q * one, 1, moment * one, float(weights @ (SIGMA**2 / variance)) * one)
    return (names, np.vstack([*gram.values(), *shares])), scalars


def only(table: Table, *kept: str) -> Table:
    names, rows = table
    chosen = [k for k, name in enumerate(names) if name in kept]
    return tuple(names[k] for k in chosen), rows[chosen]


def evaluate(row: Row, table: Table) -> np.ndarray:
    """What a row stands for, in plain NumPy."""
    names, rows = table
    if row.product is not None:
        one, two, rest = (evaluate(part, table) for part in row.product)
        return one * two + rest
    result = np.full(rows.shape[1], np.ravel(row.constant)[0])
    for name, factor in row.terms.items():
        result = result + np.ravel(factor)[0] * rows[names.index(name) if isinstance(name, str) else name]
    return result


def integrands(table: Table, scalars: Scalars) -> dict[str, np.ndarray]:
    return {name: evaluate(row, table) for name, row in values(table[0], scalars).items()}


def adjusted(table: Table, scalars: Scalars) -> dict[str, np.ndarray]:
    """The values as an account has them."""
    n = table[1].shape[1]
    layout = plan(table[0], scalars, n)
    out, statistics = np.empty((len(layout.values), n)), np.empty((len(layout.values), 2))
    adjust(in_blocks(table[1]), n, *layout.arguments(0), out, statistics)
    return dict(zip(layout.values, out, strict=True))


def test_learned_rows_are_their_definitions() -> None:
    """neural = |a - e|^2 / 2 and mismatch = |e - b|^2 / 2 with a = q x; the residual is v.s + div v of the learned score."""
    table, scalars = sample(500, learned=True)
    gram = dict(zip(*table, strict=True))
    x = np.sqrt(gram["xx"])
    b, e = gram["xb"] / x, gram["xe"] / x
    a, found = Q * x, integrands(table, scalars)
    expected = {
        "total": 0.5 * (a - b) ** 2, "neural": 0.5 * (a - e) ** 2, "mismatch": 0.5 * (e - b) ** 2,
        "residual": 0.5 * ((a - e) * e + SIGMA * Q - gram["ediv"]),
    }  # fmt: skip
    assert set(found) == set(expected)
    for row, expectation in expected.items():
        np.testing.assert_allclose(found[row], expectation, rtol=1e-11, atol=1e-12, err_msg=row)


def test_exact_rows_have_the_mean_of_their_definitions() -> None:
    """total = |a - b|^2 / 2, system = b.(b - a) / 2, medium = a.(a - b) / 2; the medium is put in in closed form."""
    table, scalars = sample(400_000)
    gram, found = dict(zip(*table, strict=True)), integrands(table, scalars)
    xx, xb, bb, medium = gram["xx"], gram["xb"], gram["bb"], known_medium(scalars)
    expected = {
        "total": (found["total"], 0.5 * (Q * Q * xx - 2.0 * Q * xb + bb)),
        "system": (found["total"] - medium, 0.5 * (bb - Q * xb)),
        "medium": (medium, 0.5 * (Q * Q * xx - Q * xb)),
        "residual": (found["residual"], 0.5 * (Q * xb - bb + SIGMA * Q - gram["div"])),
    }
    for row, (got, definition) in expected.items():
        gap = got - definition
        assert abs(gap.mean()) <= 4.0 * gap.std() / np.sqrt(gap.size) + 1e-14, row


def test_without_a_score_only_the_medium_is_there() -> None:
    """A constant where the moment is known, else from the samples."""
    table, scalars = sample(500)
    plain = only(table, "xx", "xc", "cc")
    assert integrands(plain, scalars) == {}
    np.testing.assert_allclose(known_medium(scalars), 0.5 * (Q * Q * scalars.mean_xx + Q * SIGMA), rtol=1e-13)
    unknown = scalars._replace(mean_xx=None)
    assert known_medium(unknown) is None
    found = integrands(plain, unknown)
    assert set(found) == {"medium"}
    np.testing.assert_allclose(found["medium"], 0.5 * (Q * Q * plain[1][0] + Q * SIGMA), rtol=1e-13, atol=1e-15)


def test_controls_have_mean_zero() -> None:
    table, scalars = sample(400_000)
    for k, row in enumerate(controls(table[0], scalars)):
        control = evaluate(row, table)
        assert np.all(np.ravel(row.size) > 0.0)
        assert abs(control.mean()) < 4.0 * control.std() / np.sqrt(control.size), k


def test_the_shares_of_components_come_before_what_they_make_superfluous() -> None:
    """Few samples take the first controls only; after Stein's first the shares stand for |c|^2 (decision 3)."""
    table, scalars = sample(100)
    found = controls(table[0], scalars)
    stein = [k for k, row in enumerate(found) if set(row.terms) == {"bb", "div"}]
    shares = [k for k, row in enumerate(found) if any(isinstance(name, int) for name in row.terms)]
    products = [k for k, row in enumerate(found) if row.product is not None]
    assert len(stein) == 1
    assert shares == [stein[0] + 1, stein[0] + 2]
    assert products[0] == shares[-1] + 1


def test_fewer_controls_where_less_is_known() -> None:
    table, scalars = sample(100)
    plain, unknown = only(table, "xx", "xc", "cc"), scalars._replace(mean_xx=None)
    counts = [len(controls(names, place)) for (names, _), place in ((plain, unknown), (plain, scalars), (table, scalars))]
    assert counts[:2] == [2, 3]
    assert counts[2] > 3 + 2 + 5


def test_components_called_rare_are_no_controls() -> None:
    (names, _), scalars = sample(100)
    fewer = tuple("rare" if name == "share" else name for name in names)
    assert len(controls(fewer, scalars)) == len(controls(names, scalars)) - names.count("share")


def test_the_reduced_error_is_smaller() -> None:
    table, scalars = sample(10_000)
    assert adjusted(table, scalars)["total"].std() < 0.5 * integrands(table, scalars)["total"].std()


def test_the_residual_stays_as_drawn() -> None:
    table, scalars = sample(3000)
    np.testing.assert_allclose(
        adjusted(table, scalars)["residual"], integrands(table, scalars)["residual"], rtol=1e-12, atol=1e-13
    )


def test_the_reduced_value_agrees_with_the_plain_one_within_its_error() -> None:
    """Over 200 seeds the RMS deviation from a long run is the reported error."""
    table, scalars = sample(400_000, seed=999)
    matrix = np.array([evaluate(row, table) for row in controls(table[0], scalars)])
    total = integrands(table, scalars)["total"]
    fit = np.linalg.lstsq(np.vstack([np.ones(total.size), matrix]).T, total, rcond=1e-9)[0][1:]
    truth = np.mean(total - fit @ matrix)
    z = []
    for seed in range(200):
        reduced = adjusted(*sample(1000, seed))["total"]
        z.append((reduced.mean() - truth) / (reduced.std(ddof=1) / np.sqrt(1000)))
    assert 0.85 < np.sqrt(np.mean(np.square(z))) < 1.25
    assert abs(np.mean(z)) < 4.0 / np.sqrt(200)


def test_few_samples_are_balanced_and_not_fitted() -> None:
    """The known part of total, with its coefficient in the total, in place of a fit."""
    table, scalars = sample(30)
    gram = dict(zip(*table, strict=True))
    known = 0.5 * Q * Q * (gram["xx"] - scalars.mean_xx) - Q * (gram["xb"] + SIGMA)
    np.testing.assert_allclose(adjusted(table, scalars)["total"], integrands(table, scalars)["total"] - known, rtol=1e-11)


@pytest.mark.parametrize("samples", [39, 40, 100, 5000])
def test_each_control_has_twenty_samples_of_a_half(samples: int) -> None:
    (names, _), scalars = sample(10)
    assert plan(names, scalars, samples).sizes.shape[1] == min(samples // 40, len(controls(names, scalars)))


def test_the_plan_has_the_shape_that_the_kernel_takes() -> None:
    (names, _), scalars = sample(10, learned=True)
    layout = plan(names, scalars, 1000)
    assert layout.columns.shape[1] == TERMS
    assert layout.factors.shape[2] == TERMS + 1


def test_the_plan_is_what_the_rows_say() -> None:
    """The table of the kernel, row by row, against plain NumPy: adjust with no control does nothing else."""
    table, scalars = sample(700, learned=True)
    layout = plan(table[0], scalars, 700)
    _, columns, factors, products, sizes, limits = layout.arguments(0)
    expected = [evaluate(row, table) for row in controls(table[0], scalars)][: sizes.size]
    assert len(expected) == 13
    out, statistics = np.empty((sizes.size, 700)), np.empty((sizes.size, 2))
    # With no controls declared, rows 1 ... C of the table are the values.
    adjust(in_blocks(table[1]), 700, 0, columns, factors, products, sizes[:0], limits, out, statistics)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-11)
