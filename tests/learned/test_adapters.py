"""Adapters: every call signature, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.adapters import TIMES, adapt
from thermodiff.learned.training import train
from thermodiff.schedules import VP, Cosine

X = torch.arange(6.0).reshape(3, 2)
T = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)


class Probe(nn.Module):
    """Remembers the time and the label that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, sample, step, label=None):
        self.step, self.label = step, label
        return SimpleNamespace(sample=self.weight * sample, other=None)


def ask(*given, **options):
    probe = Probe()
    out = adapt(probe, output=lambda out: out.sample, **options)(*given)
    assert torch.equal(out, given[0])
    return probe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times(dtype):
    noise, x = Cosine(), X.to(dtype)
    expected = {
        "t": T.to(dtype),
        "steps": torch.tensor([0, 49, 99]),
        "lam": torch.from_numpy(np.clip(noise.lam(T.numpy()), -80.0, 80.0)).to(dtype),
        "sigma": torch.from_numpy(np.exp(-0.5 * np.clip(noise.lam(T.numpy()), -80.0, 80.0))).to(dtype),
    }
    assert tuple(expected) == TIMES
    for time, step in expected.items():
        got = ask(x, T, time=time, steps=100, noise=noise).step
        assert got.dtype == step.dtype
        torch.testing.assert_close(got, step, rtol=1e-6, atol=0.0)


def test_every_step_is_reached_by_its_time():
    steps = ask(torch.zeros(1000, 2), torch.arange(1, 1001, dtype=torch.float64) / 1000, time="steps").step
    assert torch.equal(steps, torch.arange(1000))


def test_labels():
    y = torch.tensor([2, 0, 1])
    assert ask(X, T, y, labels="label").label is y
    assert ask(X, T, labels="label").label is None
    assert ask(X, T, labels="label", label=7).label.tolist() == [7, 7, 7]
    assert ask(X, T, y, labels="label", label=7).label is y
    with pytest.raises(ValueError, match="adapted without labels"):
        ask(X, T, y)


def test_an_adapted_module_trains():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(10, 2)

        def forward(self, x, k):
            return self.rows(k)

    module = Table()
    before = module.rows.weight.detach().clone()
    data = np.random.default_rng(0).normal(size=(50, 2))
    train(adapt(module, time="steps", steps=10), data, VP(), steps=3, batch=64, predicts="eps", rng=0, lam=(-6.0, 4.0))
    assert not torch.equal(before, module.rows.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "hours"}, "time='hours' is unknown"),
        ({"time": "lam"}, "time='lam' needs noise=, the schedule"),
        ({"label": 3}, "label=3 needs labels="),
        ({"steps": 0}, "steps must be at least 1"),
        ({"labels": "y", "label": -1}, "label must be at least 0"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        adapt(Probe(), **options)


def test_refused_modules():
    with pytest.raises(TypeError, match="must be a torch module, got function"):
        adapt(lambda x, t: x)
    with pytest.raises(ValueError, match=r"shape of x, \(3, 2\), got SimpleNamespace; say where it is with output="):
        adapt(Probe())(X, T)
