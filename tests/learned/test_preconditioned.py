"""The wrapper that starts from the Gaussian answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.checkpoint import load_weights, save_weights
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.preconditioned import Preconditioned
from thermodiff.learned.training import train
from thermodiff.learned.unet import UNet
from thermodiff.schedules import VE, VP, Cosine, Schedule, StraightLine, SubVP

SCHEDULES = [VP(), VP(scale=0.1), StraightLine(scale=0.1), VE(), SubVP(), Cosine(scale=2.0)]


def gaussian_control(noise: Schedule, x: np.ndarray, mean: np.ndarray, c: float, lam: np.ndarray) -> np.ndarray:
    """Score minus f / D of the noised N(mean, c), in float64."""
    row = noise.at(lam)
    alpha, sigma, growth = (np.reshape(v, (-1,) + (1,) * (x.ndim - 1)) for v in (row.alpha, row.sigma, row.growth))
    return -(x - alpha * mean) / (alpha**2 * c + sigma**2) + 2.0 * growth / sigma**2 * x


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_starts_at_the_gaussian_answer(noise, kind):
    rng = np.random.default_rng(0)
    shape = (3, 5, 4) if kind == "images" else (7,)
    inner = UNet(3, (8, 8), rng=0) if kind == "images" else EntropyMLP(7, rng=0)
    mean, variances = rng.normal(0.5, 1.0, shape), rng.uniform(0.1, 2.0, shape)
    net = Preconditioned(inner).double()
    net.precondition(mean.ravel(), variances.ravel(), noise)
    lam = np.linspace(-4.0, 8.0, 6)
    x = rng.normal(size=(6, *shape))
    with torch.no_grad():
        out = net(torch.from_numpy(x), torch.from_numpy(np.asarray(noise.time(lam))))
    np.testing.assert_allclose(out.numpy(), gaussian_control(noise, x, mean, variances.mean(), lam), rtol=1e-6, atol=1e-9)


def test_covariance_and_variances_say_the_same():
    cov = np.array([[2.0, 0.3], [0.3, 0.5]])
    nets = [Preconditioned(EntropyMLP(2, rng=0)) for _ in range(2)]
    nets[0].precondition([1.0, 0.0], cov, VP())
    nets[1].precondition([1.0, 0.0], np.diag(cov), VP())
    assert nets[0].variance == nets[1].variance == 1.25


class Record(nn.Module):
    """Keeps what it is called with; gives ones."""

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        self.given = given
        return torch.ones_like(given[0])


def test_the_inner_network_sees_whitened_data_a_clock_and_labels():
    noise, rng = VP(), np.random.default_rng(1)
    net = Preconditioned(Record())
    net.precondition(np.full(64, 3.0), np.full(64, 4.0), noise)
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    x0 = 3.0 + 2.0 * rng.standard_normal((50, 1, 8, 8))
    alpha, sigma = (f(t.numpy())[:, None, None, None] for f in (noise.alpha, noise.sigma))
    x = torch.from_numpy(alpha * x0 + sigma * rng.standard_normal(x0.shape)).float()
    y = torch.arange(50)
    out = net(x, t, y)
    inner, clock, labels = net.net.given
    assert abs(inner.mean().item()) < 4.0 / np.sqrt(inner.numel())
    assert inner.square().mean().item() == pytest.approx(1.0, abs=4.0 * np.sqrt(2.0 / inner.numel()))
    assert labels is y
    assert torch.all(clock.diff() > 0.0)
    assert clock[0] > 0.0
    assert clock[-1] < 1.0
    # The network's share of sigma e is alpha sqrt(c / v): the rms deviation of b from the Gaussian one can be no more.
    share = sigma * (out.double().numpy() - gaussian_control(noise, x.double().numpy(), 3.0, 4.0, noise.lam(t.numpy())))
    np.testing.assert_allclose(
        share, np.broadcast_to(alpha * np.sqrt(4.0 / (4.0 * alpha**2 + sigma**2)), x.shape), rtol=2e-2
    )


def test_weights_and_moments_come_back_from_a_file(tmp_path: Path):
    net = Preconditioned(UNet(1, (8, 8), rng=0))
    net.precondition(np.linspace(0, 1, 16), np.full(16, 0.3), VP())
    nn.init.normal_(net.net.last.weight)
    save_weights(net, tmp_path / "net")
    again = Preconditioned(UNet(1, (8, 8), rng=1))
    load_weights(again, tmp_path / "net")
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 0.7])
    assert torch.equal(net(x, t), again(x, t))
    with pytest.raises(
        ValueError, match=r"holds Preconditioned\(net='UNet'.*the network given is Preconditioned\(net='EntropyMLP"
    ):
        load_weights(Preconditioned(EntropyMLP(16, rng=0)), tmp_path / "net")


def test_what_it_takes_over_and_refuses():
    net = Preconditioned(UNet(1, (8, 8), classes=3, rng=0))
    assert (net.classes, net.learning_rate, net.predicts) == (3, UNet.learning_rate, "entropy")
    with pytest.raises(ValueError, match="no moments yet"):
        net(torch.zeros(1, 1, 4, 4), torch.ones(1))
    with pytest.raises(ValueError, match="the data must vary"):
        net.precondition(np.zeros(16), np.zeros(16), VP())
    net.precondition(np.zeros(16), np.ones(16), VP())
    with pytest.raises(ValueError, match=r"16 coordinates, x has shape \(1, 1, 5, 5\)"):
        net(torch.zeros(1, 1, 5, 5), torch.ones(1))


@pytest.mark.parametrize("net", [None, UNet])
def test_what_is_no_network_is_refused(net) -> None:
    with pytest.raises(TypeError, match="Preconditioned: net must be a torch module, got"):
        Preconditioned(net)


@pytest.mark.parametrize("net", [Preconditioned(UNet(1, (4,), rng=0)), ControlMLP(16, width=4, rng=0)])
def test_it_is_trained_for_what_it_gives_only(net) -> None:
    data = np.random.default_rng(0).normal(size=(8, 1, 4, 4) if isinstance(net, Preconditioned) else (8, 16))
    with pytest.raises(ValueError, match="starts from the Gaussian answer for predicts='entropy', .* got predicts='eps'"):
        train(net, data.astype(np.float32), VP(), steps=1, batch=2, predicts="eps")
    train(net, data.astype(np.float32), VP(), steps=1, batch=2, rng=0, predicts="entropy", progress=False)
