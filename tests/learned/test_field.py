"""Fields in batches: shapes of images, memory that is short, what does not change."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from learned_models import LAW, Exact, Peaks, learned_ledger
from torch import nn

from thermodiff import account
from thermodiff.densities import Gaussian
from thermodiff.learned import model as model_module
from thermodiff.learned.divergence import exact_divergence
from thermodiff.learned.field import Field, is_full, usual_batch
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.threads import torch_threads
from thermodiff.learned.unet import UNet
from thermodiff.schedules import VP, Row

ROW = Row(*(float(entry) for entry in VP().at(0.5)))
X = LAW.sample(700, 0)


class Small(nn.Module):
    """`Peaks`, with memory for ``most`` samples only."""

    double_time = True

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.peaks, self.most, self.error, self.seen = Peaks(VP()), most, error, list[int]()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.peaks(x, t)


FULL = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to allocate"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
]


def field_of(net: Any, batch: int = 400, predicts: str = "score") -> Field:
    return Field(net, predicts, VP(), (2,), batch)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_short_memory_halves_the_batch(error: Exception) -> None:
    field = field_of(Small(60, error))
    np.testing.assert_allclose(field.values(X, ROW), field_of(Peaks(VP())).values(X, ROW), rtol=1e-6)
    assert field.net.seen[:4] == [400, 200, 100, 50]
    assert set(field.net.seen[3:]) == {50}  # 700 = 14 * 50: the size that fits is kept
    assert field.batch == 50


def test_a_real_allocation_that_fails() -> None:
    """What Torch itself raises where memory does not suffice."""

    class Huge(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x if len(x) < 300 else torch.empty(len(x), 1 << 52)[:, :2]

    field = field_of(Huge())
    assert field.values(X, ROW).shape == (700, 2)
    assert field.batch == 200


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_short_memory_under_divergences_and_in_accounts(divergence: str) -> None:
    options = {"predicts": "score", "divergence": divergence, "samples": 300, "nodes": 3}
    short = learned_ledger(Small(40, FULL[0]), VP(), (-4.0, 4.0), **options)
    plain = learned_ledger(Peaks(VP()), VP(), (-4.0, 4.0), **options)
    for row, values in plain.samples.items():
        np.testing.assert_allclose(short.samples[row], values, rtol=1e-4, atol=1e-4)


def test_no_memory_at_all_is_said() -> None:
    with pytest.raises(MemoryError, match=r"one sample of shape \(2,\) does not fit into memory"):
        field_of(Small(0, FULL[0])).values(X, ROW)


def test_other_errors_are_not_taken_for_short_memory() -> None:
    assert not is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    net = Small(0, RuntimeError("out of order"))
    with pytest.raises(ValueError, match="out of order"):
        field_of(net).values(X, ROW)
    assert net.seen == [400]


@pytest.mark.parametrize(
    "error",
    [
        KeyError("y"), AttributeError("no y"), IndexError("of 3"), AssertionError("even"), ZeroDivisionError("by 0"),
        StopIteration(), OSError("no file"), ValueError(),
    ],
)  # fmt: skip
def test_an_error_of_the_network_is_said_in_a_sentence(error: Exception) -> None:
    with pytest.raises(ValueError, match=rf"called as net\(x, t\) with x \(400, 2\).* failed: .*{type(error).__name__}"):
        field_of(Small(0, error)).values(X, ROW)


class Told(nn.Module):
    """Answers by ``forward`` given; ``weight`` leads autograd away from x."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.answer, self.weight = forward, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.answer(x, self.weight)


@pytest.mark.parametrize("predicts", ["eps", "x0"])
@pytest.mark.parametrize(
    "forward",
    [
        torch.no_grad()(lambda x, weight: weight * x),
        torch.inference_mode()(lambda x, weight: weight * x),
        lambda x, weight: weight * x.detach(),
        lambda x, weight: torch.from_numpy(np.sin(x.detach().numpy())),
    ],
    ids=["no_grad", "inference_mode", "detach", "numpy"],
)
def test_an_output_without_a_graph_has_no_divergence(forward: Any, predicts: str) -> None:
    field = field_of(Told(forward), predicts=predicts)
    assert np.isfinite(field.values(X, ROW)).all()
    for signs in (None, np.ones((1, *X.shape))):
        with pytest.raises(
            ValueError, match="changes with x, but not for autograd.*remove no_grad.* or pass divergence=None"
        ):
            field.with_divergence(X, ROW, signs)


@pytest.mark.parametrize("forward", [lambda x, weight: torch.ones_like(x), lambda x, weight: weight * torch.ones_like(x)])
def test_a_constant_output_has_the_divergence_zero(forward: Any) -> None:
    values, slopes = field_of(Told(forward), predicts="eps").with_divergence(X, ROW, None)
    np.testing.assert_array_equal(values, -1.0)
    np.testing.assert_array_equal(slopes, 0.0)
    slopes = field_of(Told(forward), predicts="x0").with_divergence(X, ROW, np.ones((1, *X.shape)))[1]
    np.testing.assert_allclose(slopes, -2.0 / ROW.sigma, rtol=1e-12)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool], ids=str)
def test_an_output_that_is_no_real_number_is_refused(kind: torch.dtype) -> None:
    said = f"must return real floating-point numbers, got {str(kind).removeprefix('torch.')}; convert"
    with pytest.raises(ValueError, match=said):
        field_of(lambda x, t: x.to(kind)).values(X, ROW)


def test_usual_batch() -> None:
    assert usual_batch(2) == 8192
    assert usual_batch(784) == 167
    assert usual_batch(10**9) == 1


# Images


class Picture(nn.Module):
    """Predicts what a flat module does, but takes and gives images."""

    double_time = True

    def __init__(self, flat: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.flat, self.shape = flat, shape

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == self.shape
        return self.flat(x.flatten(1), t).reshape(x.shape)


SHAPE = (2, 3, 2)
PIXELS = Gaussian(np.linspace(0.2, 0.8, 12), cov=0.05 * np.eye(12) + 0.03)


def test_images_have_the_ledger_of_vectors() -> None:
    points = PIXELS.sample(40, 0)
    flat = Exact(PIXELS, VP(), "eps", change=lambda eps: 0.9 * eps)
    images = [points.reshape(40, *SHAPE), Images(points.reshape(40, *SHAPE)), points.reshape(40, *SHAPE).astype(np.float32)]
    options = {"samples": 80, "nodes": 6, "rng": 1, "lam": (-4.0, 6.0)}
    expected = account(LearnedDiffusion(flat, points, VP(), predicts="eps"), **options)
    for data in images:
        ledger = account(LearnedDiffusion(Picture(flat, SHAPE), data, VP(), predicts="eps"), **options)
        for row, values in expected.samples.items():
            np.testing.assert_allclose(ledger.samples[row], values, rtol=1e-4, atol=1e-4)
    law = account(LearnedDiffusion(Picture(flat, SHAPE), PIXELS, VP(), predicts="eps", shape=SHAPE), **options)
    same = account(LearnedDiffusion(flat, PIXELS, VP(), predicts="eps"), **options)
    np.testing.assert_array_equal(law.samples["mismatch"], same.samples["mismatch"])


def test_divergence_of_images() -> None:
    class Linear(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.arange(12, dtype=x.dtype).reshape(SHAPE) * x

    field = Field(Linear(), "score", VP(), SHAPE, 5)
    values, slopes = field.with_divergence(PIXELS.sample(11, 0), ROW, None)
    assert values.shape == (11, 12)
    np.testing.assert_allclose(slopes, ROW.sigma * 66.0, rtol=1e-6)
    signs = np.sign(np.random.default_rng(0).standard_normal((3, 11, 12)))
    np.testing.assert_allclose(field.with_divergence(PIXELS.sample(11, 0), ROW, signs)[1], ROW.sigma * 66.0, rtol=1e-6)
    assert exact_divergence(field.at(ROW), torch.zeros(2, 12, dtype=torch.float64))[1].shape == (2,)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 3\) has 9 numbers, the data has d = 12"):
        LearnedDiffusion(Peaks(VP()), PIXELS, VP(), shape=(1, 3, 3))
    with pytest.raises(TypeError, match="of type uint8, whose scale is not said; pass Images"):
        LearnedDiffusion(Peaks(VP()), np.zeros((4, 1, 2, 2), np.uint8), VP())
    broken = np.zeros((4, 1, 2, 2))
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="images holds 1 values that are nan"):
        LearnedDiffusion(Peaks(VP()), broken, VP())
    model = LearnedDiffusion(lambda x, t: x[:, :1], PIXELS, VP(), shape=SHAPE)
    with pytest.raises(ValueError, match=r"must return a tensor of the shape of x, \(\d+, 2, 3, 2\), got \(\d+, 1, 3, 2\)"):
        model.try_out()


# Memory


def test_draws_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, predicts in ((LAW, "score"), (LAW.sample(30, 0), "score")):
        options = {"data": data, "predicts": predicts, "divergence": "hutchinson", "samples": 1100, "nodes": 2}
        whole = learned_ledger(Peaks(VP()), VP(), (-4.0, 4.0), **options)
        monkeypatch.setattr(model_module, "DRAWN_TOGETHER", 700)
        parts = learned_ledger(Peaks(VP()), VP(), (-4.0, 4.0), **options)
        monkeypatch.undo()
        for row, values in whole.samples.items():
            np.testing.assert_allclose(parts.samples[row], values, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_samples() -> None:
    """Beyond a score of numbers per sample: the samples themselves, d = 784 each, never exist together."""
    data = np.random.default_rng(0).random((64, 784))
    model = LearnedDiffusion(lambda x, t: -x, data, VP(), predicts="score")
    peaks = []
    for samples in (2048, 8192):
        account(model, samples=samples, nodes=1, rng=0, lam=(-4.0, 4.0))
        tracemalloc.start()
        account(model, samples=samples, nodes=1, rng=0, lam=(-4.0, 4.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.1 * (8192 - 2048) * 784 * 8


def test_an_account_costs_little_beside_its_network() -> None:
    """At most 5 % of processor time outside the forward passes of the published U-Net; measured 1.5 %."""
    spent = 0.0
    net = UNet(rng=0)

    def timed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        start = time.process_time()
        output = net(x, t)
        spent += time.process_time() - start
        return output

    model = LearnedDiffusion(timed, np.random.default_rng(0).random((100, 1, 28, 28)).astype(np.float32), VP())
    shares = []
    with torch_threads(1):
        account(model, samples=100, nodes=1, rng=0, lam=(-4.0, 4.0))
        for _ in range(3):
            spent, start = 0.0, time.process_time()
            account(model, samples=400, nodes=1, rng=0, lam=(-4.0, 4.0))
            shares.append((time.process_time() - start) / spent - 1.0)
    assert min(shares) < 0.05


def test_memory_that_is_short_within_onednn() -> None:
    assert is_full(RuntimeError("could not create a primitive"))
    assert not is_full(RuntimeError("could not create anything"))
