"""Adapters: every call signature, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.adapters import TIMES, adapt
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.training import train
from thermodiff.schedules import VP, Cosine

X = torch.arange(6.0).reshape(3, 2)
T = torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)


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
    train(adapt(module, time="steps", steps=10), data, VP(), steps=3, batch=64, predicts="eps", rng=0, lam=(-6.0, 2.0))
    assert not torch.equal(before, module.rows.weight)


# Steps that do not cover all times


def test_the_window_of_the_steps():
    net = adapt(Probe(), time="steps", steps=100, noise=VP(), output=lambda out: out.sample)
    low, high = net.window
    assert (low, high) == pytest.approx((float(VP().lam(1.0)), float(VP().lam(0.01))))
    net(X[:2], torch.from_numpy(np.asarray(VP().time([low, high]))))
    assert net.module.step.tolist() == [99, 0]
    assert adapt(Probe(), time="steps", noise=Cosine()).window[0] == -25.0
    assert adapt(Probe(), time="steps", steps=1, noise=Cosine()).window is None
    assert adapt(Probe(), time="steps").window is adapt(Probe(), noise=VP()).window is None


@pytest.mark.parametrize("t", [0.0, 0.001, 0.0099, 1.1, float("nan")])
def test_times_beyond_the_steps_are_refused(t):
    message = r"the steps 0 \.\.\. 99, which cover t = 0.01 \.\.\. 1, log-SNR -8\.\d+ \.\.\. 6\.\d+; it was asked at t = "
    with pytest.raises(ValueError, match=message):
        ask(X, torch.full((3,), t, dtype=torch.float64), time="steps", steps=100, noise=VP())
    with pytest.raises(ValueError, match=r"cover t = 0.01 \.\.\. 1; it was .* which adapt\(noise=\) gives as window"):
        ask(X, torch.full((3,), t, dtype=torch.float64), time="steps", steps=100)


def test_a_score_beyond_the_steps_is_refused():
    net = adapt(Probe(), time="steps", steps=100, noise=VP(), output=lambda out: out.sample)
    model = LearnedDiffusion(net, np.zeros((4, 2)), VP(), predicts="eps")
    assert model.score(np.ones((1, 2)), 0.01).shape == (1, 2)
    with pytest.raises(ValueError, match=r"State a window inside, lam=\(low, high\)"):
        model.score(np.ones((1, 2)), 0.009)


# What a module knows of itself


def test_what_a_trained_module_knows_is_kept():
    inner = ControlMLP(2, width=8, rng=0)
    train(inner, np.random.default_rng(0).normal(size=(50, 2)), VP(), steps=2, batch=8, rng=0, lam=(-6.0, 5.0))
    net = adapt(inner)
    assert (net.predicts, net.noise, net.window) == ("entropy", VP(), (-6.0, 5.0))
    model = LearnedDiffusion(adapt(net), np.eye(2), VP())
    x = np.random.default_rng(1).normal(size=(5, 2))
    np.testing.assert_array_equal(model.score(x, 0.97), LearnedDiffusion(inner, np.eye(2), VP()).score(x, 0.97))
    with pytest.raises(ValueError, match=r"the network belongs to VP\(.*, the diffusion is that of Cosine"):
        LearnedDiffusion(net, np.eye(2), Cosine())


def test_the_caller_says_otherwise():
    probe = Probe()
    probe.predicts, probe.noise, probe.window = "v", VP(), (-3.0, 2.0)
    net = adapt(probe, time="steps", steps=100, noise=Cosine())
    assert (net.predicts, net.noise, net.window) == ("v", Cosine(), (-25.0, float(Cosine().lam(0.01))))
    assert adapt(probe, time="lam", noise=Cosine()).window == (-3.0, 2.0)


@pytest.mark.parametrize("time", ["lam", "sigma", "steps"])
def test_another_schedule_than_that_of_the_clock_is_refused(time):
    net = adapt(Probe(), time=time, steps=100, noise=VP(), output=lambda out: out.sample)
    assert LearnedDiffusion(net, np.eye(2), VP()).noise == VP()
    with pytest.raises(ValueError, match=r"the network belongs to VP\(.*, the diffusion is that of Cosine"):
        LearnedDiffusion(net, np.eye(2), Cosine())


@pytest.mark.parametrize("time", ["t", "steps", "sigma"])
def test_a_schedule_that_is_none_is_refused(time):
    with pytest.raises(TypeError, match="adapt: noise must be a schedule .*, got int"):
        adapt(Probe(), time=time, noise=3)


def test_what_means_something_else_is_not_taken_over():
    probe = Probe()
    probe.predicts, probe.noise, probe.window = torch.ones(2), nn.Linear(2, 2), 7
    net = adapt(probe, noise=VP())
    assert net.window is None
    assert not hasattr(net, "predicts")
    assert not hasattr(net, "noise")


# Labels in training


class Classes(nn.Module):
    """Needs a label, and knows so many."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.rows, self.seen = nn.Embedding(labels, 4), set()

    def forward(self, x, t, y):
        self.seen |= set(y.tolist())
        return self.rows(y).reshape(x.shape) * x


def labelled(labels: bool = True) -> Images:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (30, 2, 2), dtype=np.uint8)
    return Images(values, labels=np.arange(30) % 3 if labels else None, dequantise=True)


def fit(net: nn.Module, data: Images) -> nn.Module:
    return train(net, data, VP(), steps=4, batch=64, predicts="eps", rng=0, lam=(-5.0, 5.0), progress=False)


def test_labels_reach_a_module_that_states_its_classes():
    net = adapt(Classes(4), labels="y", classes=3)
    before = net.module.rows.weight.detach().clone()
    fit(net, labelled())
    assert net.module.seen == {0, 1, 2, 3}  # the last: not stated
    assert (net.module.rows.weight != before).any(1).all()
    x, t = torch.ones(2, 1, 2, 2), torch.full((2,), 0.5, dtype=torch.float64)
    assert torch.equal(net(x, t), net(x, t, torch.tensor([3, 3])))
    assert not torch.equal(net(x, t), net(x, t, torch.tensor([0, 0])))
    assert net.arguments == {"module": "Classes", "classes": 3}


def test_a_stated_label_goes_with_classes():
    net = adapt(Classes(4), labels="y", classes=3, label=1)
    fit(net, labelled())
    x, t = torch.ones(1, 1, 2, 2), torch.full((1,), 0.5, dtype=torch.float64)
    assert torch.equal(net(x, t), net(x, t, torch.tensor([1])))


def test_training_without_classes_says_what_it_does():
    with pytest.raises(
        (ValueError, TypeError), match=r"Classes, called without y, failed: .*; if it needs a label, give adapt"
    ):
        fit(adapt(Classes(4), labels="y"), labelled())
    net = adapt(Classes(4), labels="y", label=0)
    with pytest.warns(UserWarning, match="label=0 without classes=, so train takes every sample for one of class 0"):
        fit(net, labelled())
    assert net.module.seen == {0}


def test_a_module_without_the_label_for_not_stated():
    with pytest.raises(
        ValueError, match=r'labels 0 \.\.\. 3, failed: .*; it must take the labels 0 \.\.\. 3, the last for "not'
    ):
        fit(adapt(Classes(3), labels="y", classes=3), labelled())
    x, t = torch.ones(1, 1, 2, 2), torch.full((1,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="called with labels 5 ... 5, failed: .*; it must take the labels that it knows"):
        adapt(Classes(3), labels="y")(x, t, torch.tensor([5]))


def test_classes_need_labelled_data():
    with pytest.raises(ValueError, match="knows 3 classes, the data has no labels"):
        fit(adapt(Classes(4), labels="y", classes=3), labelled(labels=False))


def test_a_keyword_that_the_module_lacks():
    with pytest.raises(TypeError, match="called with labels as nope=, failed: .*; labels= must be the keyword"):
        adapt(Classes(3), labels="nope", label=1)(X, T)


class Timeless(nn.Module):
    def forward(self, x, t):
        return x


def test_an_output_that_fails():
    with pytest.raises(
        ValueError, match="output= failed on the Tensor that Timeless returns: AttributeError: .*; let it pick"
    ):
        adapt(Timeless(), output=lambda out: out.foo)(X, T)


def test_other_errors_of_a_module_stay():
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'y'; if it is not called"):
        adapt(Classes(3))(X, T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "hours"}, "time='hours' is unknown"),
        ({"time": "lam"}, "time='lam' needs noise=, the schedule"),
        ({"label": 3}, "label=3 needs labels="),
        ({"classes": 3}, "classes=3 needs labels="),
        ({"labels": "y", "classes": 0}, "classes must be at least 1"),
        ({"labels": "y", "classes": 3, "label": 4}, "label must be at most 3"),
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


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, x, y=None):
        return self.layer(x) * t[:, None] * (1.0 if y is None else y[:, None])


class Named(TimeFirst):
    def forward(self, *, sample, timestep, classes=None):
        return super().forward(timestep, sample, classes)


def test_other_signatures() -> None:
    first, named = TimeFirst(), Named()
    named.load_state_dict(first.state_dict())
    expected = first(T.float(), X)
    assert torch.equal(adapt(first, call=lambda module, x, time: module(time, x))(X, T), expected)
    by_name = adapt(named, call=lambda module, x, time: module(sample=x, timestep=time))
    assert torch.equal(by_name(X, T), expected)
    labelled = adapt(named, labels="y", call=lambda module, x, time, y=None: module(sample=x, timestep=time, classes=y))
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(labelled(X, T, labels), expected * labels[:, None])
    trained = train(by_name, np.random.default_rng(0).normal(size=(20, 2)), VP(), steps=2, batch=4, rng=0, predicts="eps")
    assert trained.predicts == "eps"


def test_a_signature_that_does_not_fit_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"the adapted Named failed: .*say how: adapt\(module, call=lambda module, x, time"):
        adapt(Named())(X, T)
    with pytest.raises(TypeError, match=r"^[^;]*missing 1 required[^;]*$"):
        adapt(Named(), call=lambda module, x, time: module(sample=x))(X, T)
    with pytest.raises(TypeError, match="call must be a function, as in .* got str"):
        adapt(Named(), call="sample")  # pyright: ignore[reportArgumentType]
