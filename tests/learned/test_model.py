"""LearnedDiffusion: the ledger of a module whose error is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learned_models import (
    CASES,
    LAW,
    UNIT,
    Exact,
    Peaks,
    bound_of_mismatch,
    exact_ledger,
    learned_ledger,
    z_score,
)
from torch import nn
from truths import BIM1

from thermodiff import account, compare
from thermodiff.accounting.nodes import fine
from thermodiff.densities import Gaussian, GaussianMixture, Samples
from thermodiff.learned import Images, LearnedDiffusion
from thermodiff.learned.predict import PREDICTS
from thermodiff.schedules import VP, Schedule, StraightLine

# Networks with large known errors are measured all the same.
pytestmark = pytest.mark.filterwarnings("ignore:.*the network has learned little")

# The exact control


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize(("noise", "window"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_exact_control(noise: Schedule, window: tuple[float, float] | None, predicts: str) -> None:
    exact = exact_ledger(noise, window)
    learned = learned_ledger(Exact(LAW, noise, predicts), noise, window, predicts=predicts)
    wanted = {"total", "system", "medium", "neural", "mismatch", "neural - total", "prior", "kl_bound"}
    assert wanted <= set(learned.rows)
    assert not {"excess", "housekeeping"} & set(learned.rows)

    # Both paths have the same draws and one arithmetic; the fit of the control variates amplifies rounding.
    for row in ("total", "system", "medium"):
        size = np.abs(exact.samples[row]).max()
        np.testing.assert_allclose(learned.samples[row], exact.samples[row], rtol=0.0, atol=1e-7 * size)

    bound, total = bound_of_mismatch(noise, exact.window, predicts), exact.total("total")
    assert -1e-13 < learned.total("mismatch").value < bound
    difference = compare(exact, learned).differences["neural - total"]
    # | |e|^2 - |a|^2 | <= 2 |a| |e - a| + |e - a|^2 in the norm of theory.md 1.3.
    assert abs(difference.value) < 2.0 * np.sqrt(total.value * bound) + bound
    assert learned.total("neural").value == pytest.approx(total.value, rel=1e-5)
    assert learned.total("neural - total").value == pytest.approx(difference.value, abs=1e-9 * total.value)
    assert abs(learned.oracle.z) < 4.0
    assert learned.about["score"] == "learned"
    assert learned.about["predicts"] == predicts
    assert learned.about["network"] == "Exact"


def test_paired_error_is_far_below_the_unpaired() -> None:
    exact = exact_ledger(VP(), None)
    learned = learned_ledger(Exact(LAW, VP(), change=lambda e: 0.97 * e), VP())
    pair = compare(exact, learned)
    paired = pair.differences["neural - total"].error
    unpaired = (learned.total("neural") - exact.total("total")).error
    assert paired < unpaired / 10.0
    assert pair.efficiency.value == pytest.approx(0.97**2, rel=1e-6)
    assert pair.efficiency.error < 1e-6


# Known errors


@pytest.mark.parametrize("c", [0.0, 0.5, 0.8, 1.2])
@pytest.mark.parametrize(("noise", "window"), [CASES[0], CASES[1], CASES[4]], ids=lambda value: getattr(value, "name", ""))
def test_scaled_control(noise: Schedule, window: tuple[float, float] | None, c: float) -> None:
    """S_NN = c^2 S_tot and a mismatch of (1 - c)^2 S_tot, sample by sample."""
    exact = exact_ledger(noise, window)
    learned = learned_ledger(Exact(LAW, noise, change=lambda e: c * e), noise, window)
    rounding = 2.0 * np.sqrt(bound_of_mismatch(noise, exact.window, "entropy") / exact.total("total").value)
    for row, factor in (("neural", c**2), ("mismatch", (1.0 - c) ** 2)):
        gap = learned.samples[row] - factor * exact.samples["total"]
        assert abs(gap.mean()) < 2.0 * max(factor, c) * rounding * exact.total("total").value + 1e-12
        assert gap.std() < 1e-6 * exact.total("total").value + 1e-12


@pytest.mark.parametrize("c", [0.5, 0.8, 1.2])
@pytest.mark.parametrize(("noise", "total"), [(VP(), 0.570159781595), (VP(scale=0.1), 81.723883306)])
def test_scaled_control_against_the_closed_form(noise: Schedule, total: float, c: float) -> None:
    law = GaussianMixture(**BIM1.columns)
    learned = learned_ledger(Exact(law, noise, change=lambda e: c * e), noise, data=law, nodes=48, samples=2048)
    assert learned.total("neural").error < 0.02 * c**2 * total
    assert z_score(learned, "neural", c**2 * total) < 4.0
    assert z_score(learned, "mismatch", (1.0 - c) ** 2 * total) < 4.0


@pytest.mark.parametrize("predicts", PREDICTS)
def test_every_kind_against_the_closed_form(predicts: str) -> None:
    """In float32, the control of a mixture times 0.8: S_NN, mismatch and KL bound within four standard errors."""
    law = GaussianMixture(**BIM1.columns)
    net = Exact(law, VP(), predicts, control=0.8)
    learned = learned_ledger(net, VP(), data=law, predicts=predicts, nodes=48, samples=2048)
    total, prior = 0.570159781595, 1.198e-8
    assert z_score(learned, "neural", 0.64 * total) < 4.0
    assert z_score(learned, "mismatch", 0.04 * total) < 4.0
    assert z_score(learned, "kl_bound", 0.04 * total + prior) < 4.0
    assert learned.total("mismatch").error < 0.02 * 0.04 * total
    assert learned.total("neural").error < 0.02 * 0.64 * total


def test_paired_differences_are_true() -> None:
    """Over 60 seeds, learned less exact and model A less model B: RMS z near 1, errors far below those of the rows."""
    window, z, gain = (-6.0, 6.0), [], []
    for seed in range(60):
        options = {"rng": seed, "samples": 300, "nodes": 12}
        first, second = (learned_ledger(Exact(LAW, VP(), control=c), VP(), window, **options) for c in (0.9, 1.05))
        exact = exact_ledger(VP(), window, **options)
        differences = [compare(exact, first).differences["neural - total"]]
        differences += [compare(first, second).differences[row] for row in ("neural", "mismatch")]
        total = exact.oracle.value
        expected = np.array([0.9**2 - 1.0, 1.05**2 - 0.9**2, 0.05**2 - 0.1**2]) * total
        z.append([(d.value - e) / d.error for d, e in zip(differences, expected, strict=True)])
        unpaired = second.total("neural") - first.total("neural")
        gain.append(differences[1].error / unpaired.error)
    rms = np.sqrt(np.mean(np.square(z), axis=0))
    assert np.all((rms > 0.75) & (rms < 1.25)), rms
    assert np.max(gain) < 0.5


@pytest.mark.parametrize(
    ("c", "neural", "mismatch", "bound"),
    [
        (0.0, 0.0, 0.318147166238, 0.31814718056),
        (0.5, 0.0795367915596, 0.0795367915596, 0.0795368058812),
        (0.8, 0.203614186393, 0.0127258866495, 0.0127259009711),
        (1.2, 0.458131919383, 0.0127258866495, 0.0127259009711),
    ],
)
def test_imperfect_network_of_the_theory_sheet(c: float, neural: float, mismatch: float, bound: float) -> None:
    """theory.md 6.11: N(0, 0.25) under VP with the control times c."""
    law = Gaussian([0.0], std=0.5)
    learned = learned_ledger(Exact(law, VP(), change=lambda e: c * e), VP(), data=law, nodes=64, samples=4096)
    # The control variates leave next to no spread here: what remains is float32, 4u of the control's square.
    rounding = 4.0 * UNIT * 0.318147166238 + 1e-8
    assert z_score(learned, "total", 0.318147166238, rounding) < 4.0
    assert z_score(learned, "neural", neural, rounding) < 4.0
    assert z_score(learned, "mismatch", mismatch, rounding) < 4.0
    assert z_score(learned, "kl_bound", bound, rounding) < 4.0
    assert learned.total("prior").value == pytest.approx(1.43215715095e-8, rel=1e-6)
    total = learned.total("kl_bound").value
    assert total == pytest.approx(learned.total("mismatch").value + learned.total("prior").value, rel=1e-12)


@pytest.mark.parametrize(("noise", "window"), CASES[:3], ids=lambda value: getattr(value, "name", ""))
def test_independent_error(noise: Schedule, window: tuple[float, float] | None) -> None:
    """Independent normal errors of the predicted noise: both the mismatch and S_NN - S_tot are tau^2 d W / 2."""
    tau, generator = 0.1, np.random.default_rng(11)
    net = Exact(LAW, noise, "eps", change=lambda eps: eps + tau * generator.standard_normal(eps.shape))
    learned = learned_ledger(net, noise, window, predicts="eps", samples=2048)
    low, high = learned.window
    expected = 0.5 * tau**2 * 2 * (high - low)
    assert z_score(learned, "mismatch", expected) < 4.0
    assert learned.total("mismatch").error < 0.01 * expected
    assert z_score(learned, "neural - total", expected) < 4.0


def test_error_at_right_angles() -> None:
    """An error eta R b, R a quarter turn: the mismatch is eta^2 / 2 times the integral of d sigma^2 / v."""
    law, eta, noise = Gaussian([0.0, 0.0], std=0.5), 0.2, VP()
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    net = Exact(law, noise, "eps", change=lambda eps: eps + eta * eps @ turn)
    learned = learned_ledger(net, noise, data=law, predicts="eps", nodes=64, samples=4096)
    low, high = learned.window
    share = [edge - np.log1p(0.25 * np.exp(edge)) for edge in (low, high)]
    expected = 0.5 * eta**2 * 2 * (share[1] - share[0])
    rounding = 8.0 * UNIT * learned.total("total").value + 1e-9
    assert z_score(learned, "mismatch", expected, rounding) < 4.0
    assert z_score(learned, "neural", learned.total("total").value + expected, rounding) < 4.0
    assert learned.total("mismatch").value == pytest.approx(expected, rel=1e-4)


# Rounding

THREE = GaussianMixture([[-1.0], [0.2], [3.0]], stds=[0.22, 0.55, 0.7])


def shifted_outputs(predicts: str, noise: Schedule, shift: float) -> Exact:
    """The exact output in float32, with ``shift`` more in each coordinate of b."""
    net = Exact(THREE, noise, predicts)

    class Wrong:
        def score(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
            return THREE.score(x, alpha=alpha, sigma=sigma) + shift / sigma

    net.law = Wrong()  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("shift", [0.0, 0.24])
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), StraightLine()], ids=lambda noise: noise.name)
def test_the_error_of_the_mismatch_covers_float32(noise: Schedule, shift: float) -> None:
    """Near the data x0 is rounded alike in all samples; near t = 1 a rounded time is off by 1 %."""
    for predicts in PREDICTS:
        net = shifted_outputs(predicts, noise, shift)
        for net.double_time in (True, False):
            learned = learned_ledger(net, noise, data=THREE, predicts=predicts, nodes=48, samples=1000)
            expected = 0.5 * shift**2 * (learned.window[1] - learned.window[0])
            assert z_score(learned, "mismatch", expected) < 4.0
            assert z_score(learned, "kl_bound", expected + learned.total("prior").value) < 4.0
            assert learned.total("mismatch").error < 0.01 * expected + 1e-3


# Score at points


class Tilted(nn.Module):
    """Knows the shape of a sample: its rows differ."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(1.0, 1.0 + x.shape[-2], device=x.device)[:, None] * t.reshape(-1, 1, 1, 1).to(x.dtype)


def test_scores_of_images_have_their_shape() -> None:
    images = np.random.default_rng(0).random((3, 2, 4, 5))
    model = LearnedDiffusion(Tilted(), images, VP(), predicts="score")
    flat = model.score(images.reshape(3, 40), 0.5)
    assert flat.shape == (3, 40)
    for given in (images, images.tolist(), torch.from_numpy(images), Images(images)):
        found = model.score(given, 0.5)
        assert found.shape == images.shape
        np.testing.assert_allclose(found, flat.reshape(images.shape), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 39), (3, 2, 5, 4), (40,), (3, 8, 5), (0, 2, 4, 5)])
def test_scores_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    model = LearnedDiffusion(Tilted(), np.random.default_rng(0).random((3, 2, 4, 5)), VP(), predicts="score")
    needed = "x is empty" if shape[0] == 0 else r"x must have shape \(n, 40\) or \(n, 2, 4, 5\), got"
    with pytest.raises(ValueError, match=needed):
        model.score(np.ones(shape), 0.5)
    with pytest.raises(TypeError, match="x must be an array of numbers"):
        model.score([[[1.0], [2.0, 3.0]]], 0.5)
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\), got \(1, 1, 1, 2\)"):
        LearnedDiffusion(Exact(LAW, VP()), LAW, VP()).score(np.ones((1, 1, 1, 2)), 0.5)


# Residual


@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1)], ids=lambda noise: noise.name)
def test_residual_of_an_exact_score(noise: Schedule) -> None:
    window = (-6.0, 6.0) if noise.scale == 1.0 else (-2.0, 10.0)
    ledgers = {
        kind: learned_ledger(Peaks(noise), noise, window, predicts="score", divergence=kind, samples=2048, nodes=32)
        for kind in ("exact", "hutchinson")
    }
    system = exact_ledger(noise, window, divergence="exact", samples=2048, nodes=32)
    for ledger in ledgers.values():
        assert z_score(ledger, "residual", 0.0) < 4.0
    exact, probe = (ledgers[kind].total("residual") for kind in ("exact", "hutchinson"))
    assert exact.value == pytest.approx(system.total("residual").value, abs=1e-4 * exact.error + 1e-5)
    assert exact.error == pytest.approx(system.total("residual").error, rel=1e-4)
    gap = ledgers["exact"].samples["residual"] - ledgers["hutchinson"].samples["residual"]
    assert 0.0 < abs(gap.mean()) < 4.0 * gap.std(ddof=1) / np.sqrt(gap.size)
    assert exact.error < probe.error
    # The divergence has no part in the other rows.
    plain = learned_ledger(Peaks(noise), noise, window, predicts="score", samples=2048, nodes=32)
    np.testing.assert_allclose(plain.samples["neural"], ledgers["exact"].samples["neural"], rtol=1e-9, atol=1e-9)


def test_residual_is_of_the_network() -> None:
    """A learned ledger must not report the zero of the exact score for a network that is 10 % off."""
    ledger = learned_ledger(Peaks(VP(), 1.1), VP(), (-6.0, 6.0), predicts="score", samples=2000, nodes=16)
    assert "residual" not in ledger.rows or z_score(ledger, "residual", 0.0) > 4.0


def test_residual_without_divergence() -> None:
    neural = learned_ledger(Peaks(VP()), VP(), (-4.0, 4.0), data=Samples(LAW.sample(64, 0)), predicts="score")
    with pytest.raises(KeyError, match='divergence="exact"'):
        neural.total("residual")


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_residual_of_a_score_too_large(divergence: str) -> None:
    """b_theta = f b gives ((1 - f) q sigma d + (f - f^2) E|b|^2) / 2 per unit of lam."""
    noise, window, f = VP(), (-6.0, 6.0), 1.1
    learned = learned_ledger(Peaks(noise, f), noise, window, predicts="score", divergence=divergence, samples=2048, nodes=20)
    estimate = learned.total("residual")
    assert abs(estimate.value) > 4.0 * estimate.error
    # E|b|^2 from the row "system" of other draws: (E|b|^2 + q sigma d) / 2 per unit of lam.
    system, row = exact_ledger(noise, window, samples=4096, nodes=20, rng=9), noise.at(learned.lam)
    drift = -2.0 * row.growth * 2  # q sigma d
    square = 2.0 * system.rate("system", per="lam") - drift
    expected = float(learned.weights @ (0.5 * ((1.0 - f) * drift + (f - f * f) * square)))
    assert z_score(learned, "residual", expected, rounding=4.0 * f * (f - 1.0) * system.total("system").error) < 4.0


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_residual_of_a_module_that_ignores_x(divergence: str) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(x)

    ledger = learned_ledger(Constant(), VP(), (-4.0, 4.0), predicts="score", divergence=divergence, nodes=4)
    assert np.isfinite(ledger.total("residual").value)


@pytest.mark.parametrize("std", [1.0, 1.0 + 1e-9, 1.0 + 1e-5, 1.01])
def test_a_network_near_equilibrium_has_an_error_of_its_own_size(std: float) -> None:
    """The total vanishes there; measured by it, the error of the nodes on this network was once 3e4 nats."""

    class Tenth(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.1 * x

    ledger = account(LearnedDiffusion(Tenth(), Gaussian([0.0, 0.0], std=std), VP()), rng=0)
    rule = fine(*ledger.window)
    row = VP().at(rule[0])
    # S_NN per unit of lam is sigma^2 E|e|^2 / 2 with e = x / 10.
    exact = float(rule[1] @ (0.5 * row.sigma**2 * 0.01 * 2.0 * (row.alpha**2 * std**2 + row.sigma**2)))
    for name in ("neural", "mismatch"):
        assert ledger.total(name).error < 1e-4 * exact
    assert abs(ledger.total("neural").value - exact) < 4.0 * ledger.total("neural").error


def test_scores_are_asked_where_the_schedule_is() -> None:
    model = LearnedDiffusion(Exact(LAW, VP()), LAW, VP())
    assert np.isfinite(model.score(LAW.sample(3, rng=0), 1.0)).all()
    for t in (1.001, 2.0, -0.1):
        with pytest.raises(ValueError, match=r"t must lie between 0 \(data\) and 1 \(noise\), got"):
            model.score(LAW.sample(3, rng=0), t)
