"""The ledger: rates and integrals, files, missing rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from systems import LINE, PLANE
from truths import GAUSSIAN_RATES, START, gaussian_arc_total, gaussian_rate

import thermodiff as td
from thermodiff.accounting.ledger import standard_error


@pytest.fixture(scope="module")
def ledger() -> td.Ledger:
    return td.account(td.Diffusion(LINE, td.VP()), nodes=48, samples=2000, rng=1, divergence="exact")


@pytest.fixture(scope="module")
def gaussian() -> td.Ledger:
    """A Gaussian, whose rows have no scatter to speak of."""
    return td.account(td.Diffusion(td.Gaussian([START[0]], std=0.5), td.VP()), samples=1000, rng=1)


def test_rows(ledger: td.Ledger) -> None:
    assert set(ledger.rows) == {"total", "system", "medium", "residual", "excess", "housekeeping"}
    assert len(ledger.rows) == 6


def test_the_value_is_the_mean_of_the_samples_and_the_error_its_spread(ledger: td.Ledger) -> None:
    samples = ledger.samples["total"]
    found = ledger.total("total")
    assert samples.shape == (2000,)
    assert found.value == samples.mean()
    statistical = samples.std(ddof=1) / np.sqrt(2000)
    assert found.error == pytest.approx(np.hypot(statistical, ledger.quadrature["total"]), rel=1e-12)


def test_integral_of_the_rate_per_lam_is_the_total(ledger: td.Ledger) -> None:
    for row in ledger.samples:
        integral = ledger.weights @ ledger.rate(row, per="lam")
        correction = ledger.corrections.get(row, 0.0)
        assert integral + correction == pytest.approx(ledger.total(row).value, rel=1e-12, abs=1e-13)
        assert abs(correction) < 1e-7


def test_rates_per_time_and_per_lam_differ_by_the_clock(ledger: td.Ledger) -> None:
    noise = td.VP()
    clock = 2.0 * noise.diffusivity(ledger.times) / noise.sigma(ledger.times) ** 2
    for measure in (ledger.rate, ledger.error):
        np.testing.assert_allclose(measure("total"), measure("total", per="lam") * clock, rtol=1e-8)
    np.testing.assert_allclose(noise.lam(ledger.times), ledger.lam, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(("parameters", "truth"), GAUSSIAN_RATES)
def test_rate_of_a_gaussian_at_t_0_2(parameters: dict, truth: float) -> None:
    """The closed form of the rate against the printed value, and the ledger's rate against the closed form at its nodes."""
    noise = td.VP(**parameters)

    def exact(t: float) -> float:
        return gaussian_rate(
            *START,
            float(noise.alpha(t)),
            float(noise.sigma(t)) ** 2,
            float(noise.drift_rate(t)),
            float(noise.diffusivity(t)),
        )

    assert exact(0.2) == pytest.approx(truth, rel=1e-10)
    found = td.account(td.Diffusion(td.Gaussian([START[0]], std=0.5), noise), rng=2)
    gap = found.rate("total") - [exact(t) for t in found.times]
    z = gap / found.error("total")
    # One of 64 nodes may stray a little; together they must scatter as their errors say.
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3
    assert np.abs(z).max() < 5.0
    assert np.median(np.abs(gap) / found.rate("total")) < 1e-4


def test_rate_errors_are_standard_errors(ledger: td.Ledger) -> None:
    """Independent nodes: the errors of the integral add in quadrature."""
    combined = np.sqrt(np.sum((ledger.weights * ledger.error("residual", per="lam")) ** 2))
    samples = ledger.samples["residual"]
    # Across nodes the samples are independent, so both estimate one variance; relative spread of it below 10 %.
    assert combined == pytest.approx(samples.std(ddof=1) / np.sqrt(samples.size), rel=0.1)


def test_the_running_integral_of_the_closed_form_rate(gaussian: td.Ledger) -> None:
    """With the exact rate at the nodes it is the entropy produced so far, to the accuracy of the interpolant."""
    noise = td.VP()
    row = noise.at(gaussian.lam)
    per_time = [
        gaussian_rate(*START, float(a), float(s) ** 2, float(noise.drift_rate(t)), float(noise.diffusivity(t)))
        for a, s, t in zip(row.alpha, row.sigma, row.time, strict=True)
    ]
    exact = replace(gaussian, rates={"total": np.array(per_time) / gaussian.lam_per_time})
    high = gaussian.window[1]
    expected = [gaussian_arc_total(START[0], START[1], 1.0, (lam, high)) for lam in gaussian.lam]
    np.testing.assert_allclose(exact.cumulative("total"), expected, rtol=0.0, atol=3e-7)


def test_the_running_integral_ends_at_the_total(gaussian: td.Ledger) -> None:
    cumulative, total = gaussian.cumulative("total"), gaussian.total("total")
    first, last = (np.array([1.0, -1.0]) * (np.array(gaussian.window)[::-1] - gaussian.lam[[0, -1]])) * gaussian.rate(
        "total", per="lam"
    )[[0, -1]]
    # What is missing at either end is the last stretch of the window, at the rate of its node.
    assert abs(cumulative[0] - first) < 4.0 * total.error
    assert abs(cumulative[-1] + last - total.value) < 4.0 * total.error + 0.1 * last


def test_a_missing_row_names_the_rows_there_are(ledger: td.Ledger) -> None:
    for call in (ledger.total, ledger.rate, ledger.error, ledger.cumulative):
        with pytest.raises(KeyError, match=f"no row 'nonsense'; its rows are {', '.join(ledger.rows)}"):
            call("nonsense")
    with pytest.raises(KeyError, match="no row 'neural' .it needs a LearnedDiffusion"):
        ledger.total("neural")


def test_a_fixed_row_has_no_rate(ledger: td.Ledger) -> None:
    with pytest.raises(KeyError, match=f"row 'excess' has no rate; rows with a rate are {', '.join(ledger.rates)}"):
        ledger.rate("excess")


def test_per_is_t_or_lam(ledger: td.Ledger) -> None:
    with pytest.raises(ValueError, match="per='s' is unknown; choose one of 't', 'lam'"):
        ledger.rate("total", per="s")


def test_a_ledger_without_the_residual_says_how_to_get_it(ledger: td.Ledger) -> None:
    plain = replace(ledger, samples={"total": ledger.samples["total"]})
    with pytest.raises(KeyError, match=r"residual.* \(pass divergence=\"exact\" to account\); its rows are total"):
        plain.total("residual")


def test_oracle_carries_the_deviation_of_the_total(ledger: td.Ledger) -> None:
    oracle, total = ledger.oracle, ledger.total("total")
    assert oracle.z == pytest.approx((total.value - oracle.value) / np.hypot(total.error, oracle.error), rel=1e-12)
    assert ledger.oracle is oracle


def test_save_and_load_is_the_identity(ledger: td.Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger.save(path)
    again = td.Ledger.load(path)
    assert again.rows == ledger.rows
    for row in ledger.rows:
        assert again.total(row) == ledger.total(row)
    assert again.oracle == ledger.oracle
    assert (again.key, again.window, again.about) == (ledger.key, ledger.window, ledger.about)
    for row, values in ledger.samples.items():
        np.testing.assert_array_equal(again.samples[row], values)
        np.testing.assert_array_equal(again.rate(row), ledger.rate(row))
        np.testing.assert_array_equal(again.error(row, per="lam"), ledger.error(row, per="lam"))
        np.testing.assert_array_equal(again.cumulative(row), ledger.cumulative(row))
    assert str(again) == str(ledger)
    assert again.to_dict() == ledger.to_dict()


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        td.Ledger.load(tmp_path / "nothing.json")


def test_to_dict_is_plain_json(ledger: td.Ledger) -> None:
    record = ledger.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["totals"]["total"]["value"] == ledger.total("total").value


def test_clusters_are_the_units_of_the_error() -> None:
    """Sample i belongs to cluster i mod clusters: equal members make the error that of the clusters."""
    values = np.random.default_rng(0).standard_normal(50)
    repeated = np.tile(values, 20)
    assert standard_error(repeated, 50) == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-12)
    assert standard_error(repeated, None) == pytest.approx(repeated.std(ddof=1) / np.sqrt(1000), rel=1e-12)
    assert standard_error(values, 50) == standard_error(values, None)
    assert standard_error(values[:1], None) == np.inf


def test_the_key_is_recorded() -> None:
    words = np.random.SeedSequence(17).generate_state(2)
    assert td.account(td.Diffusion(PLANE, td.VP()), nodes=2, samples=10, rng=17).key == (int(words[0]), int(words[1]))
