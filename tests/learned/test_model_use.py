"""LearnedDiffusion: the ledger of a module whose error is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from learned_models import (
    CASES,
    LAW,
    MEANS,
    Exact,
    Peaks,
    Recording,
    learned_ledger,
    z_score,
)
from torch import nn
from truths import gaussian_kl

from thermodiff import account
from thermodiff._check import DivergenceError
from thermodiff.accounting import Ledger
from thermodiff.densities import Gaussian, PointCloud, Samples
from thermodiff.diffusion import Diffusion, medium_integral
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.predict import PREDICTS
from thermodiff.learned.training import train
from thermodiff.schedules import VE, VP, CondOT, Schedule, StraightLine, SubVP

# Networks with large known errors are measured all the same.
pytestmark = pytest.mark.filterwarnings("ignore:.*the network has learned little")

# Samples


def test_samples_have_medium_neural_and_denoising_only() -> None:
    points = LAW.sample(50, 0)
    ledger = learned_ledger(Peaks(VP()), VP(), (-8.0, 4.0), data=Samples(points), predicts="score", samples=500)
    assert set(ledger.rows) == {"medium", "neural", "denoising"}
    assert ledger.oracle is None
    assert ledger.clusters == 50
    with pytest.raises(
        KeyError, match=r"no row 'mismatch' \(it needs data whose score is known\); .* medium, neural, denoising"
    ):
        ledger.total("mismatch")
    for row in ("total", "prior", "kl_bound", "neural - total"):
        with pytest.raises(KeyError, match="its rows are medium, neural, denoising"):
            ledger.total(row)
    # An array is taken as Samples.
    same = learned_ledger(Peaks(VP()), VP(), (-8.0, 4.0), data=points, predicts="score", samples=500)
    assert np.array_equal(same.samples["neural"], ledger.samples["neural"])
    assert np.array_equal(same.samples["medium"], ledger.samples["medium"])


def test_denoising_is_mismatch_and_gap() -> None:
    """On points of the law itself: E|b_theta + z|^2 = E|b_theta - b|^2 + E|b + z|^2, the last integrates to I(X_0; X_lam)."""
    noise, window, law = VP(), (-6.0, 4.0), Gaussian([0.4, -0.3], std=0.6)
    net = Exact(law, noise, change=lambda e: 0.8 * e)
    ledger = learned_ledger(net, noise, window, data=law.sample(4000, 0), samples=4000)
    exact = learned_ledger(net, noise, window, data=law, samples=4000)
    alpha2 = 1.0 / (1.0 + np.exp(-np.array(window)))
    gap = np.log1p(alpha2 * 0.36 / (1.0 - alpha2))  # d = 2
    expected = exact.total("mismatch").value + gap[1] - gap[0]
    assert z_score(ledger, "denoising", expected, rounding=4.0 * exact.total("mismatch").error) < 4.0
    assert ledger.total("denoising").error < 0.02 * expected


@pytest.mark.parametrize("data", [Samples(MEANS), MEANS, PointCloud(MEANS)], ids=["Samples", "array", "PointCloud"])
def test_window_must_be_stated(data: Any) -> None:
    model = LearnedDiffusion(Recording(), data, VP())
    with pytest.raises(ValueError, match="2 points in d = 2 grows without bound towards the data; state the window"):
        account(model, samples=10, rng=0)
    assert account(model, samples=10, nodes=2, rng=0, times=(0.1, 1.0)).window[1] == pytest.approx(float(VP().lam(0.1)))
    with pytest.raises(ValueError, match="state the window"):
        account(model, samples=10, nodes=2, rng=0, times=(0.0, 1.0))


@pytest.mark.parametrize("noise", [SubVP(), CondOT()], ids=lambda noise: noise.name)
def test_window_of_diverging_schedules(noise: Schedule) -> None:
    with pytest.raises(ValueError, match=f"{noise.name} grows without bound"):
        account(LearnedDiffusion(Recording(), LAW, noise), samples=10, rng=0)


def test_point_cloud_has_a_total() -> None:
    cloud = PointCloud(LAW.sample(40, 0))
    net = Exact(cloud, VP())
    ledger = learned_ledger(net, VP(), (-8.0, 4.0), data=cloud)
    assert ledger.clusters is None
    assert ledger.total("neural").value == pytest.approx(ledger.total("total").value, rel=1e-5)
    assert abs(ledger.oracle.z) < 4.0


def test_errors_of_samples_are_by_data_point() -> None:
    """Using each point often does not make more points of them."""
    points = LAW.sample(50, 4)
    many, more = (
        learned_ledger(Peaks(VP()), VP(), (-2.0, 6.0), data=points, predicts="score", samples=n, nodes=12)
        for n in (2500, 10_000)
    )
    for row in ("medium", "neural"):
        values = many.samples[row]
        naive = values.std(ddof=1) / np.sqrt(values.size)
        by_point = values.reshape(50, 50).mean(0)  # sample i belongs to point i mod 50
        assert many.total(row).error == pytest.approx(by_point.std(ddof=1) / np.sqrt(50), rel=1e-9)
        assert many.total(row).error > 2.0 * naive
        assert more.total(row).error > 0.8 * many.total(row).error


def test_errors_of_samples_are_calibrated() -> None:
    """RMS z of 100 data sets of 40 points, against the law that they came from."""
    law, noise, window = Gaussian([0.5, -0.5], std=0.6), VP(), (-6.0, 2.0)
    net, z = Exact(law, noise), []
    expected = {"medium": medium_integral(noise, window, law.second_moment, 2)}
    ends = []
    for edge in window:
        alpha2 = 1.0 / (1.0 + np.exp(-edge))
        mean, variance = np.sqrt(alpha2) * law.mean(), alpha2 * np.diag(law.covariance()) + 1.0 - alpha2
        ends.append(gaussian_kl(mean, variance, 1.0))
    expected["neural"] = ends[1] - ends[0]
    for seed in range(100):
        data = law.sample(40, seed)
        ledger = learned_ledger(net, noise, window, data=data, samples=80, nodes=10, rng=seed)
        z.append([(ledger.total(row).value - value) / ledger.total(row).error for row, value in expected.items()])
    rms = np.sqrt(np.mean(np.square(z), axis=0))
    assert np.all((rms > 0.75) & (rms < 1.25)), rms


def test_samples_not_a_multiple_of_the_points() -> None:
    ledger = learned_ledger(Peaks(VP()), VP(), (-6.0, 2.0), data=LAW.sample(50, 1), predicts="score", samples=75, nodes=8)
    for row in ledger.rows:
        assert 0.0 < ledger.total(row).error < np.inf


# How the module is called


def test_evaluation_mode_and_back() -> None:
    net = Recording().train()
    ledger = learned_ledger(net, VP(), nodes=3)
    assert net.training
    assert net.drop.training
    assert not any(training for _, _, training, _ in net.seen)
    again = learned_ledger(net.eval(), VP(), nodes=3)
    assert not net.training
    assert np.array_equal(ledger.samples["neural"], again.samples["neural"])


def test_training_mode_comes_back_after_an_error() -> None:
    class Broken(Recording):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

    net = Broken().train()
    with pytest.raises(ValueError, match="out of order"):
        learned_ledger(net, VP(), nodes=3)
    assert net.training


def test_frozen_parts_stay_frozen() -> None:
    """Fine-tuning keeps some layers in evaluation mode while the module trains; "the module left as it was"."""
    net = Recording().train()
    net.drop.eval()
    learned_ledger(net, VP(), nodes=3)
    assert net.training
    assert not net.drop.training


def test_types_that_the_module_sees() -> None:
    single, double = Recording(), Recording(torch.float64)
    learned_ledger(single, VP(), nodes=2)
    learned_ledger(double, VP(), nodes=2)
    assert {seen[:2] for seen in single.seen} == {(torch.float32, torch.float32)}
    assert {seen[:2] for seen in double.seen} == {(torch.float64, torch.float64)}
    single.double_time, single.seen = True, []
    learned_ledger(single, VP(), nodes=2)
    assert {seen[:2] for seen in single.seen} == {(torch.float32, torch.float64)}


@pytest.mark.parametrize(("noise", "window"), [CASES[0], CASES[2]], ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("predicts", PREDICTS)
def test_double_module(noise: Schedule, window: tuple[float, float] | None, predicts: str) -> None:
    """With float64 weights nothing is rounded to float32."""
    net = Exact(LAW, noise, predicts)
    net.register_parameter("weight", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    learned = learned_ledger(net, noise, window, predicts=predicts)
    # x0 subtracts terms of alpha / sigma times their difference: (2^-53 e^12)^2 at the data end.
    assert abs(learned.total("mismatch").value) < 2e-12
    assert abs(learned.total("neural - total").value) < 1e-9 * learned.total("total").value


def test_float32_time() -> None:
    """A module that takes times in its own type: 1 - t loses digits, the total hardly any."""
    net = Exact(LAW, VP())
    net.double_time = False
    learned = learned_ledger(net, VP())
    assert learned.total("neural").value == pytest.approx(learned.total("total").value, rel=1e-5)


def test_batches_do_not_matter() -> None:
    net = ControlMLP(2, width=16, depth=2, rng=0)
    net.precondition(LAW.mean(), LAW.covariance(), VP())
    with torch.no_grad():
        net.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    whole, parts = (learned_ledger(net, VP(), batch=batch, nodes=8, samples=700) for batch in (8192, 100))
    for row in ("neural", "mismatch"):
        size = np.abs(whole.samples[row]).max()
        np.testing.assert_allclose(parts.samples[row], whole.samples[row], rtol=0.0, atol=1e-5 * size)
    counter = Recording()
    learned_ledger(counter, VP(), batch=100, nodes=1, samples=350)
    assert [seen[3] for seen in counter.seen][-4:] == [100, 100, 100, 50]


@pytest.mark.parametrize(
    "divergence",
    [
        "exact",
        "hutchinson",
    ],
)
def test_batches_do_not_matter_to_the_residual(divergence: str) -> None:
    options = {"predicts": "score", "divergence": divergence, "nodes": 4, "samples": 300}
    whole, parts = (learned_ledger(Peaks(VP()), VP(), (-4.0, 4.0), batch=batch, **options) for batch in (8192, 64))
    np.testing.assert_allclose(parts.samples["residual"], whole.samples["residual"], atol=1e-4)


@pytest.mark.parametrize("divergence", [None, "exact", "hutchinson"])
def test_same_rng_same_bits(divergence: str | None) -> None:
    def run(rng: Any) -> Ledger:
        return learned_ledger(
            Peaks(VP()), VP(), (-6.0, 4.0), predicts="score", divergence=divergence, nodes=6, samples=300, rng=rng
        )

    one, two, other = run(7), run(np.random.SeedSequence(7)), run(8)
    assert one.key == two.key != other.key
    for row, values in one.samples.items():
        assert np.array_equal(values, two.samples[row]), row
        assert row == "medium" or not np.array_equal(values, other.samples[row]), row


def test_no_global_random_state_is_touched() -> None:
    before = torch.random.get_rng_state()
    learned_ledger(Peaks(VP()), VP(), predicts="score", divergence="hutchinson", nodes=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_gradients_are_neither_needed_nor_left() -> None:
    net = ControlMLP(2, width=8, depth=1, rng=0)
    net.precondition(LAW.mean(), LAW.covariance(), VP())
    with torch.no_grad():
        ledger = learned_ledger(net, VP(), (-4.0, 4.0), divergence="exact", nodes=2)
    assert np.isfinite(ledger.total("residual").value)
    assert all(weight.grad is None for weight in net.parameters())


def test_untrained_control_mlp_is_exact_for_a_gaussian() -> None:
    law = Gaussian([0.7, -0.2], cov=[[1.0, 0.3], [0.3, 0.4]])
    net = ControlMLP(2, rng=0)
    net.precondition(law.mean(), law.covariance(), VP())
    ledger = learned_ledger(net, VP(), data=law)
    assert ledger.total("neural").value == pytest.approx(ledger.total("total").value, rel=1e-5)
    assert ledger.total("mismatch").value < 1e-9


# The score of the model


SCORED = [(noise, predicts) for noise in (VP(), StraightLine(scale=0.1), CondOT(), VE()) for predicts in PREDICTS]


@pytest.mark.parametrize(
    ("noise", "predicts"),
    SCORED,
    ids=lambda value: getattr(value, "name", value),
)
def test_score(noise: Schedule, predicts: str) -> None:
    x, t = LAW.sample(20, 0), 0.4
    model = LearnedDiffusion(Exact(LAW, noise, predicts), LAW, noise, predicts=predicts)
    expected = Diffusion(LAW, noise).score(x, t)
    np.testing.assert_allclose(model.score(x, t), expected, rtol=3e-5, atol=3e-5 * np.abs(expected).max())


def test_score_in_batches_and_modes() -> None:
    net = Recording().train()
    model = LearnedDiffusion(net, LAW, VP(), batch=3)
    assert model.score(LAW.sample(10, 0), 0.5).shape == (10, 2)
    assert net.training
    assert [seen[2:] for seen in net.seen] == [(False, 3), (False, 3), (False, 3), (False, 1)]
    assert model.dim == 2


def test_score_at_the_data_is_not_nan_in_silence() -> None:
    model = LearnedDiffusion(Recording().eval(), LAW, VP())
    with np.errstate(all="ignore"):
        try:
            score = model.score(LAW.sample(3, 0), 0.0)
        except (ValueError, DivergenceError):
            return
    assert np.isfinite(score).all()


# Errors


class Returning(nn.Module):
    """Returns ``answer(x)``."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad: float) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(x)
        output[:5, 0] = bad
        return output

    with pytest.raises(DivergenceError, match=r"the score is nan or infinite for 5 of 512 samples at lam = .* \(t = .*\);"):
        learned_ledger(Returning(answer), VP(), nodes=3)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda x: x[:, 0], r"\(512,\)"),
        (lambda x: x[:, :1], r"\(512, 1\)"),
        (lambda x: x.T, r"\(2, 512\)"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: None, "NoneType"),
    ],
)
def test_wrong_output(answer: Callable[[torch.Tensor], Any], got: str) -> None:
    with pytest.raises(ValueError, match=rf"a tensor of the shape of x, \(512, 2\), got {got}"):
        learned_ledger(Returning(answer), VP(), nodes=2)


def test_wrong_arguments() -> None:
    net = Recording()
    with pytest.raises(ValueError, match="predicts='noise' is unknown; choose one of 'entropy', 'score', 'eps'"):
        LearnedDiffusion(net, LAW, VP(), predicts="noise")
    with pytest.raises(TypeError, match="net must be a module called as net"):
        LearnedDiffusion("net.safetensors", LAW, VP())
    with pytest.raises(TypeError, match=r"noise must be a schedule \(VP\(\), ...\), got str"):
        LearnedDiffusion(net, LAW, "VP")
    with pytest.raises(TypeError, match="noise must be a schedule"):
        LearnedDiffusion(net, VP(), LAW)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        LearnedDiffusion(net, LAW, VP(), batch=0)
    with pytest.raises(ValueError, match="errors need at least two"):
        LearnedDiffusion(net, np.zeros((1, 2)), VP())
    with pytest.raises(ValueError, match=r"points must have shape \(n, d\), got \(3,\)"):
        LearnedDiffusion(net, np.zeros(3), VP())
    with pytest.raises(ValueError, match="points holds 1 values that are nan or infinite"):
        LearnedDiffusion(net, [[0.0, np.nan], [1.0, 1.0]], VP())
    with pytest.raises(ValueError, match="divergence='full' is unknown"):
        learned_ledger(net, VP(), divergence="full")


@pytest.mark.parametrize("data", [LAW, LAW.sample(20, 0)], ids=["density", "samples"])
def test_windows_beyond_the_schedule_are_refused(data: Any) -> None:
    """The network would be asked at t = 1.94; the law itself, whose score is exact, may be."""
    model = LearnedDiffusion(Peaks(VP()), data, VP())
    with pytest.raises(ValueError, match=r"the window begins at lam = -30, but VP ends at lam = -8.04968, t = 1"):
        account(model, lam=(-30.0, 5.0), nodes=4, samples=50)
    with pytest.raises(ValueError, match="begins at lam = -30"):
        train(ControlMLP(2, rng=0), data, VP(), lam=(-30.0, 5.0), steps=1)
    assert account(Diffusion(LAW, VP()), lam=(-30.0, 5.0), nodes=4, samples=50).window == (-30.0, 5.0)


def test_images_have_one_shape() -> None:
    images = np.random.default_rng(0).random((6, 1, 4, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"one sample of the data has shape \(1, 4, 2\), the network takes \(1, 2, 4\)"):
        LearnedDiffusion(Peaks(VP()), images, VP(), shape=(1, 2, 4))
    assert LearnedDiffusion(Peaks(VP()), images, VP(), shape=(1, 4, 2)).shape == (1, 4, 2)
    assert LearnedDiffusion(Peaks(VP()), images.reshape(6, 8), VP(), shape=(1, 4, 2)).shape == (1, 4, 2)


@pytest.mark.parametrize("shape", [(6, 4), (6, 1, 2, 2)])
def test_tensors_with_a_gradient_are_data(shape: tuple[int, ...]) -> None:
    values = torch.arange(24.0).reshape(shape).requires_grad_()
    model = LearnedDiffusion(Peaks(VP()), values, VP())
    np.testing.assert_array_equal(model.data.points, np.arange(24.0).reshape(6, -1))


def test_a_function_will_do_for_a_module() -> None:
    ledger = learned_ledger(lambda x, t: torch.zeros_like(x), VP())
    assert abs(ledger.total("neural").value) < 1e-14
    assert z_score(ledger, "mismatch", ledger.total("total").value, 1e-9) < 1e-3
