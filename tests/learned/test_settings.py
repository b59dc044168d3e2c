"""Arguments of a training: what fits, what is recorded, where it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.batches import Source
from thermodiff.learned.images import Images
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.pretrained import NoiseTable, Pretrained
from thermodiff.learned.settings import MOST_STEPS, Settings, check_fit, check_type, choose_device
from thermodiff.learned.unet import UNet
from thermodiff.schedules import VP, CondOT

POINTS = np.random.default_rng(0).normal(size=(10, 2))
GREY = np.random.default_rng(0).integers(0, 256, (10, 6, 6), dtype=np.uint8)


def settings(**changes):
    usual = {
        "steps": 10, "batch": 4, "lr": 1e-3, "ema": 0.9, "lam": None, "likelihood": True, "times": "lam",
        "predicts": "entropy", "precision": "float32",
        "decay": True,
    }  # fmt: skip
    return Settings(**{**usual, **changes})


def test_the_record_holds_what_decides_the_course():
    source, net = Source(POINTS), ControlMLP(2, width=8, rng=0)
    record = settings(lam=(-4.0, 4.0)).record(net, source, VP())
    assert json.loads(json.dumps(record)) == {**record, "lam": [-4.0, 4.0]}
    assert record["network"] == "ControlMLP"
    assert record["arguments"] == {"dim": 2, "width": 8, "depth": 3}
    assert record["noise"] == VP().to_dict()
    assert record["data"] == source.fingerprint()


def test_rows_at_the_edges_of_the_window():
    source = Source(POINTS)
    ends = np.array([0.0, 1.0])
    np.testing.assert_allclose(settings(lam=(-4.0, 3.0)).rows(source, VP())(ends)[0].lam, [-4.0, 3.0])
    np.testing.assert_allclose(settings().rows(source, VP())(ends)[0].lam, VP().window())
    np.testing.assert_allclose(settings(times="uniform").rows(source, VP())(ends)[0].time, [1e-5, 1.0 - 1e-5])
    with pytest.raises(ValueError, match="state the window"):
        settings().rows(source, CondOT())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"times": "log"}, "times='log' is unknown"),
        ({"predicts": "noise"}, "predicts='noise' is unknown"),
        ({"precision": "half"}, "precision='half' is unknown"),
        ({"times": "uniform", "lam": (-1.0, 1.0)}, "drop lam or use times='lam'"),
    ],
)
def test_refused_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("net", "data", "message"),
    [
        (lambda: ControlMLP(3, rng=0), POINTS, r"dim=3, one sample of the data has shape \(2,\)"),
        (lambda: UNet(3, (4,), rng=0), Images(GREY), r"takes images of 3 channels, .* has shape \(1, 6, 6\)"),
        (lambda: UNet(1, (4,), rng=0), POINTS, r"takes images of 1 channels, .* has shape \(2,\)"),
        (lambda: UNet(1, (4,), classes=2, rng=0), Images(GREY), "knows 2 classes, the data has no labels"),
        (lambda: UNet(1, (4,), classes=2, rng=0), Images(GREY, labels=np.arange(10)), "knows 2 classes, the data has 10"),
    ],
)
def test_networks_that_do_not_fit(net, data, message):
    with pytest.raises(ValueError, match=message):
        check_fit(net(), Source(data))


def test_models_of_diffusers_are_taught_no_classes():
    table = NoiseTable([0.999, 0.9, 0.1, 0.001])
    images = Source(Images(GREY, labels=np.arange(10)))
    with pytest.raises(ValueError, match=r'0 \.\.\. 9 and none for "not stated", .* adapt\(net, labels='):
        check_fit(Pretrained(nn.Linear(2, 2), table, "eps", 10), images)
    check_fit(Pretrained(nn.Linear(2, 2), table, "eps", None), images)


def test_networks_that_fit():
    check_fit(ControlMLP(2, rng=0), Source(POINTS))
    check_fit(UNet(1, (4,), classes=10, rng=0), Source(Images(GREY, labels=np.arange(10))))
    check_fit(UNet(1, (4,), rng=0), Source(Images(GREY, labels=np.arange(10))))
    check_fit(nn.Linear(2, 2), Source(POINTS))


def test_device():
    net = nn.Linear(2, 2)
    assert choose_device(net, None) == choose_device(net, "cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device='abacus' cannot be used .*; choose 'cpu' or 'cuda'"):
        choose_device(net, "abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' cannot be used"):
            choose_device(net, "cuda")


def test_steps_are_counted_in_32_bits():
    Settings(MOST_STEPS, 1, 0.1, 0.9, None, True, "lam", "eps", "float32", True)
    with pytest.raises(ValueError, match="steps must be at most 4294967295, got 4294967296"):
        Settings(MOST_STEPS + 1, 1, 0.1, 0.9, None, True, "lam", "eps", "float32", True)


def test_low_precision_is_for_single_precision():
    net = nn.Linear(2, 2)
    check_type(net, "bf16")
    check_type(net.double())
    with pytest.raises(ValueError, match="precision='bf16' is for networks in float32, the weight weight is in float64"):
        check_type(net, "bf16")
