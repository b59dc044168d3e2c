"""How a training calls its network: labels, precision, draws of its own, compiled."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff import account
from thermodiff.learned.caller import Caller
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.parallel import Processes
from thermodiff.learned.preconditioned import Preconditioned
from thermodiff.learned.training import train
from thermodiff.learned.unet import UNet
from thermodiff.schedules import VP

CPU = torch.device("cpu")
X, T = torch.ones(4, 2), torch.linspace(0.1, 0.9, 4, dtype=torch.float64)


class Record(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t, *labels):
        self.labels, self.inner = labels, self.layer(x)
        return self.drop(self.inner)


def caller(net, precision="float32", compiled=False, words=(1, 2), rank=0):
    return Caller(net, Processes(rank), CPU, precision, compiled, words)


def test_labels_are_passed_on_where_there_are_some():
    net = Record()
    call, y = caller(net), torch.arange(4)
    call.at(1, y)(X, T)
    assert net.labels[0] is y
    call.at(2, None)(X, T)
    assert net.labels == ()


def test_low_precision_is_inside_the_network_only():
    net = Record()
    out = caller(net, "bf16").at(1, None)(X, T)
    assert net.inner.dtype == torch.bfloat16
    assert out.dtype == net.layer.weight.dtype == torch.float32


def test_draws_of_the_network_depend_on_key_step_and_process():
    net = Record()
    net.layer.requires_grad_(False)

    def draw(step, **options):
        return caller(net, **options).at(step, None)(torch.ones(500, 2), T)

    before = torch.random.get_rng_state()
    call = caller(net)
    with call.own_randomness():
        assert torch.equal(draw(3), draw(3))
        for other in (draw(4), draw(3, words=(1, 3)), draw(3, rank=1)):
            assert not torch.equal(draw(3), other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("build", [ControlMLP, EntropyMLP])
def test_bf16_trains_about_as_well(build):
    """The Gaussian part of ControlMLP stays float32: at large lam it is a difference of large terms."""
    data = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 0.3] + [0.5, 0.0]
    losses = {"float32": [], "bf16": []}
    for precision, seen in losses.items():
        train(
            build(2, rng=0), data, VP(), steps=20, batch=128, rng=0, lam=(-6.0, 8.0), precision=precision,
            metrics=lambda step, loss, seen=seen: seen.append(loss),
        )  # fmt: skip
    np.testing.assert_allclose(losses["bf16"], losses["float32"], rtol=0.05)
    assert losses["bf16"] != losses["float32"]


def test_a_conditional_network_learns_its_labels():
    """Two classes, black and white: with labels the loss falls below what is possible without."""
    values = np.zeros((64, 4, 4), dtype=np.float32)
    values[32:] = 1.0
    values += 0.05 * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    images = Images(values, labels=np.arange(64) // 32)
    options = {"steps": 150, "batch": 64, "rng": 0, "lam": (-4.0, 0.0), "lr": 3e-3}
    told, untold = [], []
    net = train(UNet(1, (8, 16), classes=2, rng=0), images, VP(), metrics=lambda step, loss: told.append(loss), **options)
    train(UNet(1, (8, 16), rng=0), images, VP(), metrics=lambda step, loss: untold.append(loss), **options)
    assert np.mean(told[-50:]) < np.mean(untold[-50:])
    x, t = torch.full((1, 1, 4, 4), 0.2), torch.tensor([0.5])
    with torch.no_grad():
        black, white = (net(x, t, torch.tensor([k])).mean().item() for k in (0, 1))
    assert white > black + 0.1


class Plain(nn.Module):
    """Takes x and t as they come, in the type of its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Linear(3, 2), set()

    def forward(self, x, t):
        self.seen.add((x.dtype, t.dtype))
        return self.layer(torch.cat([x, t[:, None]], 1))


def test_a_float64_module_trains():
    """As the float32 one does, and is measured as it is."""
    data, losses = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 0.3], {}
    for kind in (torch.float32, torch.float64):
        net, seen = Plain().to(kind), []
        train(
            net,
            data,
            VP(),
            steps=30,
            batch=64,
            rng=0,
            lam=(-6.0, 5.0),
            metrics=lambda step, loss, seen=seen: seen.append(loss),
        )
        assert net.seen == {(kind, kind)}
        assert net.layer.weight.dtype == kind
        losses[kind] = seen
    np.testing.assert_allclose(losses[torch.float64], losses[torch.float32], rtol=1e-3)
    assert losses[torch.float64] != losses[torch.float32]
    ledger = account(LearnedDiffusion(net, data, VP()), nodes=4, samples=100, lam=(-6.0, 5.0), rng=0)
    assert np.isfinite(ledger.total("neural").value)


@pytest.mark.parametrize("build", [ControlMLP, EntropyMLP])
def test_our_networks_train_in_float64(build):
    data = np.random.default_rng(0).normal(size=(200, 2))
    net = train(build(2, rng=0).double(), data, VP(), steps=3, batch=32, rng=0, lam=(-6.0, 5.0))
    assert {weight.dtype for weight in net.parameters()} == {torch.float64}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_few_digits_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"the weight layer.weight has type b?float16, train keeps weights in float32 .*'bf16'"
    ):
        train(Plain().to(kind), np.eye(2), VP(), lam=(-4.0, 4.0))


class Broken(Plain):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x, t):
        raise self.error


class Own(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("of its own"), "of its own"),
        (TypeError("odd"), "odd"),
        (KeyError("a"), "KeyError: 'a'"),
        (ZeroDivisionError(), "ZeroDivisionError: "),
        (Own("stop"), "Own: stop"),
    ],
)
def test_any_error_of_a_module_is_told_with_the_call(error, told):
    with pytest.raises(ValueError, match=rf"called as net\(x, t\) with x \(4, 2\), t \(4,\), failed: {told}$") as found:
        train(Broken(error), np.eye(2), VP(), steps=1, batch=4, rng=0, lam=(-4.0, 4.0))
    assert found.value.__cause__ is error


def test_a_lack_of_memory_is_left_as_it_is():
    with pytest.raises(MemoryError):
        caller(Broken(MemoryError("full"))).at(1, None)(X, T)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("build", [EntropyMLP, ControlMLP, lambda dim, rng: Preconditioned(EntropyMLP(dim, rng=rng))])
def test_compiled_it_trains_the_same(build):
    data, losses = np.random.default_rng(0).normal(size=(50, 2)), {False: [], True: []}
    for compiled, seen in losses.items():
        train(
            build(2, rng=0), data, VP(), steps=3, batch=32, rng=0, lam=(-6.0, 5.0), compile=compiled,
            metrics=lambda step, loss, seen=seen: seen.append(loss),
        )  # fmt: skip
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)


def test_refused():
    images = Images(np.random.default_rng(0).random((8, 4, 4)))
    with pytest.raises(ValueError, match="precision='fp8' is unknown; choose one of 'float32', 'bf16'"):
        train(UNet(1, (4,), rng=0), images, VP(), precision="fp8", lam=(-4.0, 4.0))
    with pytest.raises(ValueError, match="the network knows 3 classes, the data has no labels"):
        train(UNet(1, (4,), classes=3, rng=0), images, VP(), lam=(-4.0, 4.0))
