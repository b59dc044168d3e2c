"""Short trainings on small laws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff._check import DivergenceError
from thermodiff.densities import Gaussian
from thermodiff.learned.checkpoint import load_weights
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.training import train
from thermodiff.schedules import VP, CondOT, Cosine, Schedule, StraightLine


class TwoPeaks:
    """Equal normals at (-1, 0) and (1, 0), standard deviation 0.3."""

    std = 0.3
    peak = np.array([1.0, 0.0])

    def sample(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        return rng.choice([-1.0, 1.0], (n, 1)) * self.peak + self.std * rng.standard_normal((n, 2))

    def mean(self) -> np.ndarray:
        return np.zeros(2)

    def covariance(self) -> np.ndarray:
        return np.diag(self.peak**2 + self.std**2)

    def score(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        v = (alpha * self.std) ** 2 + sigma**2
        return (-x + alpha * np.tanh(alpha * x[:, :1] / v) * self.peak) / v


def account(net: nn.Module, law: TwoPeaks, noise: Schedule, nodes: int = 32, n: int = 1000) -> tuple[float, ...]:
    """S_tot, S_NN and the mismatch on the same draws."""
    low, high = noise.window()
    points, weights = np.polynomial.legendre.leggauss(nodes)
    rng, sums = np.random.default_rng(3), np.zeros(3)
    for lam, w in zip(0.5 * (low + high + (high - low) * points), 0.5 * (high - low) * weights, strict=True):
        row = noise.at(lam)
        x = row.alpha * law.sample(n, rng=rng) + row.sigma * rng.standard_normal((n, 2))
        a, b = -2.0 * row.growth / row.sigma * x, row.sigma * law.score(x, float(row.alpha), float(row.sigma))
        with torch.no_grad():
            e = net(torch.from_numpy(x).float(), torch.full((n,), float(row.time), dtype=torch.float64))
        c = row.sigma * e.double().numpy()
        sums += 0.5 * w * np.array([np.square(v).sum(1).mean() for v in (a - b, c, c + a - b)])
    return tuple(sums)


def small() -> ControlMLP:
    return ControlMLP(2, width=32, depth=2, rng=0)


def test_training_reduces_the_mismatch() -> None:
    law, noise = TwoPeaks(), VP()
    start = small()
    start.precondition(law.mean(), law.covariance(), noise)
    net = train(small(), law, noise, steps=200, batch=256, rng=0)
    assert not net.training
    total, neural, mismatch = account(net, law, noise)
    assert mismatch < 0.5 * account(start, law, noise)[2]
    assert neural == pytest.approx(total, rel=0.2)


def test_same_rng_same_weights_and_no_global_state() -> None:
    before, legacy = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    runs = [train(small(), TwoPeaks(), VP(), steps=20, batch=64, rng=rng) for rng in (7, 7, 8)]
    same, again, other = (torch.cat([weight.flatten() for weight in net.parameters()]) for net in runs)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002


def test_published_scheme_on_an_array() -> None:
    """Uniform times, no weight, the paper's network; the loss falls by a fifth in 80 steps."""
    data, losses = TwoPeaks().sample(500, rng=np.random.default_rng(0)), []
    train(
        EntropyMLP(2, rng=0), data, VP(), steps=80, batch=128, lr=1e-3, rng=0,
        times="uniform", likelihood=False, metrics=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 80
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


class TinyImageNet(nn.Module):
    """One convolution; predicts eps."""

    predicts = "eps"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images(dtype: type) -> None:
    images = np.random.default_rng(0).random((50, 1, 6, 6)).astype(dtype)
    losses = []
    train(
        TinyImageNet(), images, VP(), steps=20, batch=33, lr=3e-2, rng=0, lam=(-6.0, 2.0),
        metrics=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.8 * losses[0]


def test_checkpoint(tmp_path: Path) -> None:
    net = train(small(), TwoPeaks(), VP(), steps=2, batch=8, rng=0, checkpoint=tmp_path / "run")
    other = small()
    assert load_weights(other, tmp_path / "run")["noise"] == VP().to_dict()
    assert torch.equal(net.last.weight, other.last.weight)


def test_what_a_network_predicts_and_its_schedule_are_kept() -> None:
    law, options = Gaussian([0.0, 1.0], std=0.5), {"steps": 3, "batch": 8, "rng": 0, "lam": (-5.0, 5.0), "progress": False}
    net = train(EntropyMLP(2, rng=0), law, VP(), predicts="eps", **options)
    assert net.predicts == LearnedDiffusion(net, law, VP()).predicts == "eps"
    assert LearnedDiffusion(net, law, VP(), predicts="v").predicts == "v"
    assert LearnedDiffusion(lambda x, t: x, law, VP()).predicts == "entropy"
    with pytest.raises(ValueError, match=r"the network belongs to VP\(.*, the diffusion is that of Cosine"):
        LearnedDiffusion(net, law, Cosine())
    LearnedDiffusion(train(net, law, Cosine(), **options), law, Cosine())
    net = train(ControlMLP(2, rng=0), law, VP(), **options)
    LearnedDiffusion(net, law, VP())
    with pytest.raises(ValueError, match=r"the network belongs to VP\(.*scale=0.1.*; give noise=net.noise"):
        LearnedDiffusion(net, law, VP(scale=0.1))


def test_a_network_that_works_in_place_learns_the_same() -> None:
    class Halving(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers, self.in_place = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2)), in_place

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if self.in_place:
                x /= 2.0
                return self.layers(x)
            return self.layers(x / 2.0)

    first, second = (
        train(Halving(kind), TwoPeaks(), VP(), predicts="x0", steps=5, batch=8, rng=0, lam=(-5.0, 5.0), progress=False)
        for kind in (True, False)
    )
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))


def test_divergence_is_reported() -> None:
    class Broken(TinyImageNet):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return super().forward(x, t) * float("nan")

    with pytest.raises(DivergenceError, match="became nan at step 1 of 5; lower lr"):
        train(Broken(), np.random.default_rng(0).random((4, 1, 6, 6)), VP(), steps=5, batch=4, rng=0, lam=(-4.0, 4.0))


class Detached(EntropyMLP):
    """Keeps its weights from learning."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(x, t).detach()


def test_errors() -> None:
    net, law = small(), TwoPeaks()
    with pytest.raises(ValueError, match="data holds 1 values that are nan"):
        train(net, np.array([[0.0, np.nan], [1.0, 1.0]]), VP())
    with pytest.raises(ValueError, match=r"dim=2, one sample of the data has shape \(3,\)"):
        train(net, np.zeros((5, 3)), VP())
    with pytest.raises(ValueError, match=r"data must have shape \(n, d\) or \(n, channels, height, width\)"):
        train(net, np.zeros(5), VP())
    with pytest.raises(ValueError, match="the data does not vary"):
        train(net, np.zeros((5, 2)), VP())
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(net, law, VP(), steps=0)
    with pytest.raises(ValueError, match="times='log' is unknown"):
        train(net, law, VP(), times="log")
    with pytest.raises(ValueError, match="drop lam or use times='lam'"):
        train(net, law, VP(), times="uniform", lam=(-1.0, 1.0))
    with pytest.raises(ValueError, match="state the window"):
        train(net, law, CondOT())
    with pytest.raises(ValueError, match="predicts='noise' is unknown"):
        train(net, law, VP(), predicts="noise")
    with pytest.raises(ValueError, match="ema must be at least 0 and below 1"):
        train(net, law, VP(), ema=1.0)
    with pytest.raises(ValueError, match="lr must be positive"):
        train(net, law, VP(), lr=0.0)
    with pytest.raises(ValueError, match="Identity has no weights; give a network that has something to learn"):
        train(nn.Identity(), law, VP())
    with pytest.raises(ValueError, match="the output of Detached does not depend on any weight that learns"):
        train(Detached(2, rng=0), law, VP(), steps=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), StraightLine(scale=0.1)], ids=lambda noise: noise.name)
def test_neural_entropy_meets_the_total(noise: Schedule) -> None:
    law = TwoPeaks()
    total, neural, mismatch = account(train(ControlMLP(2, rng=0), law, noise, steps=1000, rng=0), law, noise)
    assert neural == pytest.approx(total, rel=0.02)
    assert mismatch < 0.01 * total


def test_metrics_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="metrics must be a function of step and loss, or a file, got int"):
        train(small(), TwoPeaks(), VP(), steps=1, metrics=5)  # pyright: ignore[reportArgumentType]
