"""Paired differences between ledgers."""

import json
from dataclasses import replace

import numpy as np
import pytest

import thermodiff as td
from thermodiff.accounting import ratio

NEAR = td.GaussianMixture([[-2.0], [1.0]], stds=[0.6, 0.8], weights=[0.3, 0.7])
SHIFTED = td.GaussianMixture([[-2.0], [1.01]], stds=[0.6, 0.8], weights=[0.3, 0.7])


def measure(data: td.Density, rng: int = 0, **keywords) -> td.Ledger:
    return td.account(td.Diffusion(data, td.VP()), **{"nodes": 32, "samples": 2000, **keywords}, rng=rng)


@pytest.fixture(scope="module")
def pair() -> tuple[td.Ledger, td.Ledger]:
    return measure(NEAR), measure(SHIFTED)


def test_differences_are_second_minus_first_sample_by_sample(pair) -> None:
    comparison = td.compare(*pair)
    for row in ("total", "system", "medium"):
        gap = pair[1].samples[row] - pair[0].samples[row]
        assert comparison.differences[row].value == pytest.approx(gap.mean(), rel=1e-12)
        error = np.hypot(gap.std(ddof=1) / np.sqrt(gap.size), np.hypot(*(ledger.quadrature[row] for ledger in pair)))
        assert comparison.differences[row].error == pytest.approx(error, rel=1e-9)


def test_pairing_reduces_the_error(pair) -> None:
    paired = td.compare(*pair).differences["total"]
    unpaired = pair[1].total("total") - pair[0].total("total")
    assert paired.error < 0.3 * unpaired.error


def test_the_paired_difference_is_the_true_one(pair) -> None:
    truth = td.oracle(td.Diffusion(SHIFTED, td.VP())).value - td.oracle(td.Diffusion(NEAR, td.VP())).value
    found = td.compare(*pair).differences["total"]
    assert abs(found.value - truth) < 4.0 * found.error
    assert abs(found.value) > 4.0 * found.error


def test_few_nodes_are_part_of_the_error_on_different_laws() -> None:
    sharp = td.GaussianMixture([[-2.0], [1.0]], stds=[0.06, 0.08], weights=[0.3, 0.7])
    one, two = (measure(law, nodes=16, samples=10_000) for law in (NEAR, sharp))
    truth = td.oracle(td.Diffusion(sharp, td.VP())).value - td.oracle(td.Diffusion(NEAR, td.VP())).value
    found, gap = td.compare(one, two).differences, two.samples["total"] - one.samples["total"]
    assert abs(found["total"].value - truth) > 4.0 * gap.std() / np.sqrt(gap.size)
    assert abs(found["total"].value - truth) < 4.0 * found["total"].error
    assert found["medium"].error == pytest.approx(np.hypot(one.quadrature["medium"], two.quadrature["medium"]), rel=1e-9)


def test_nodes_err_alike_on_one_law() -> None:
    """On the same law they cancel, as far as rows are of one size."""
    one, two = measure(NEAR, nodes=16), learned(measure(NEAR, nodes=16), 0.9)
    three = learned(measure(NEAR, nodes=16), 0.8, 1)
    assert one.quadrature["total"] > 1e-3
    for ledgers, row, nodes in (
        ((one, two), "neural - total", 0.1 * one.quadrature["total"]),
        ((two, three), "neural", 0.1 * one.quadrature["total"]),
    ):
        difference = td.compare(*ledgers).differences[row]
        rows = [ledger.samples.get("neural", ledger.samples.get("total")) for ledger in ledgers]
        scatter = np.std(rows[1] - rows[0], ddof=1) / np.sqrt(2000)
        assert difference.error == pytest.approx(np.hypot(scatter, nodes), rel=1e-9)
    assert td.compare(one, measure(NEAR, nodes=16)).differences["total"].error == 0.0


def test_a_ledger_does_not_differ_from_itself(pair) -> None:
    for difference in td.compare(pair[0], pair[0]).differences.values():
        assert (difference.value, difference.error) == (0.0, 0.0)


def test_swapping_changes_the_sign(pair) -> None:
    one, two = td.compare(*pair).differences, td.compare(*pair[::-1]).differences
    for row in one:
        assert two[row].value == -one[row].value
        assert two[row].error == pytest.approx(one[row].error, rel=1e-12)


def test_the_common_samples_are_paired() -> None:
    few, many = measure(NEAR, samples=500), measure(SHIFTED, samples=800)
    gap = many.samples["total"][:500] - few.samples["total"]
    assert td.compare(few, many).differences["total"].value == pytest.approx(gap.mean(), rel=1e-12)


def test_unequal_keys_are_refused(pair) -> None:
    with pytest.raises(ValueError, match="different random keys .* pass the same integer rng="):
        td.compare(pair[0], measure(SHIFTED, rng=1))


@pytest.mark.parametrize("keywords", [{"nodes": 31}, {"lam": (-8.0, 19.0)}], ids=["nodes", "window"])
def test_unequal_nodes_are_refused(pair, keywords: dict) -> None:
    with pytest.raises(ValueError, match="different nodes .* use the same nodes= and window"):
        td.compare(pair[0], measure(SHIFTED, **keywords))


def test_unequal_dimensions_are_refused(pair) -> None:
    cube = measure(td.Gaussian([0.0, 0.0, 0.0], std=0.5), samples=100, lam=pair[0].window)
    with pytest.raises(ValueError, match=r"different dimensions, d = 1 and d = 3, so their samples are not pairs"):
        td.compare(pair[0], cube)
    # A ledger of an older file does not say.
    about = {name: value for name, value in pair[0].about.items() if name != "dim"}
    assert td.compare(replace(pair[0], about=about), pair[1]).differences


def test_two_exact_ledgers_have_no_efficiency(pair) -> None:
    comparison = td.compare(*pair)
    assert comparison.efficiency is None
    assert json.loads(json.dumps(comparison.to_dict()))["neural / total"] is None


def learned(exact: td.Ledger, factor: float, seed: int = 0) -> td.Ledger:
    """A stand-in for a learned ledger: neural = factor total + noise, sample by sample."""
    noise, left = 0.01 * np.random.default_rng(seed).standard_normal(exact.sample_count), exact.quadrature["total"]
    return td.Ledger(
        samples={"neural": factor * exact.samples["total"] + noise}, rates={}, rate_errors={}, lam=exact.lam,
        times=exact.times, weights=exact.weights, lam_per_time=exact.lam_per_time, window=exact.window, key=exact.key,
        about={**exact.about, "score": "learned"}, corrections=exact.corrections,
        quadrature={**exact.quadrature, "neural": factor * left, "neural - total": abs(factor - 1.0) * left},
    )  # fmt: skip


@pytest.mark.parametrize("order", [1, -1], ids=["exact first", "learned first"])
def test_efficiency_is_the_ratio_of_neural_to_total(pair, order: int) -> None:
    comparison = td.compare(*(pair[0], learned(pair[0], 0.9))[::order])
    assert abs(comparison.efficiency.value - 0.9) < 4.0 * comparison.efficiency.error
    assert 0.0 < comparison.efficiency.error < 0.001
    difference = comparison.differences["neural - total"]
    assert abs(difference.value + 0.1 * pair[0].total("total").value) < 4.0 * difference.error


def test_the_error_of_the_ratio_is_its_scatter(pair) -> None:
    found = [ratio(learned(pair[0], 0.9, seed), pair[0]) for seed in range(100)]
    scatter = np.std([estimate.value for estimate in found], ddof=1)
    # Only the added noise varies between seeds here; the spread of 0.1 * total is the rest of the error.
    noise_only = 0.01 / np.sqrt(2000) / pair[0].total("total").value
    assert scatter == pytest.approx(noise_only, rel=4.0 / np.sqrt(2 * 99))
    assert all(estimate.error >= 0.9 * noise_only for estimate in found)


def test_the_nodes_are_part_of_the_error_of_the_ratio(pair) -> None:
    """On one law they err in proportion and leave the ratio as it is, but for the rounding of the network."""
    exact = pair[0]
    model, left = learned(exact, 0.9), exact.quadrature["total"]
    value = ratio(model, exact).value

    def nodes(one: td.Ledger, two: td.Ledger) -> float:
        gap = one.samples["neural"] - ratio(one, two).value * two.samples["total"]
        return float(np.sqrt((ratio(one, two).error * two.total("total").value) ** 2 - gap.var(ddof=1) / gap.size))

    rounded = replace(model, quadrature={**model.quadrature, "neural - total": 0.1 * left + 0.5})
    assert nodes(rounded, exact) == pytest.approx(0.5 + abs(0.9 - value) * left, rel=1e-6)
    coarse = replace(model, quadrature={**model.quadrature, "total": 0.4, "neural": 0.3})
    assert nodes(coarse, exact) == pytest.approx(np.hypot(0.3, value * left), rel=1e-6)


def test_the_ratio_of_ledgers_that_are_no_pairs(pair) -> None:
    """Errors of both add where the data points of the samples are others."""
    exact, model = pair[0], replace(learned(pair[0], 0.9), clusters=500)
    one, two = model.total("neural"), exact.total("total")
    found = ratio(model, exact)
    assert found.value == pytest.approx(one.value / two.value, rel=1e-12)
    assert found.error == pytest.approx(found.value * np.hypot(one.error / one.value, two.error / two.value), rel=1e-9)
    assert found.error > 3.0 * ratio(learned(pair[0], 0.9), exact).error


def test_text_holds_both_ledgers_and_the_differences(pair) -> None:
    text = str(td.compare(*pair))
    assert "paired differences (nats)" in text
    assert str(pair[0]) in text
    assert str(pair[1]) in text


def test_only_ledgers_can_be_compared() -> None:
    with pytest.raises(TypeError, match="compare: it takes two ledgers made by account, got int"):
        td.compare(1, 2)
