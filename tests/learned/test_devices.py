"""What a GPU would object to or wait for, found out on a device that is the CPU under another name (`pretend_device`).

`main` makes the cases there, in a process of its own, and prints what they found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import backend_registration

import thermodiff as td
from thermodiff.learned import (
    Adapted,
    ControlMLP,
    EntropyMLP,
    Images,
    LearnedDiffusion,
    Preconditioned,
    UNet,
    adapt,
    log_prob,
    lower_bound,
    measure,
    mutual_information,
    train,
)
from thermodiff.learned.devices import placed
from thermodiff.learned.pretrained import NoiseTable

LAW = td.paper_mixture(3)
GREY = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8)).astype(np.uint8)
IMAGES = Images(GREY, span=(0, 1), labels=np.arange(64) % 3)
VALUES = np.asarray(IMAGES)
STEPS = (25, 45)
WAITING = ("Looks", "Masks", "noise levels on the host")


class Looks(nn.Linear):
    """A network that makes the program wait for the device, to see that it is noticed."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) * float(t.max())


class OnTheHost(nn.Linear):
    """A network that gets its times on the CPU, and looks at them."""

    host_time = True

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) * float(t.numpy().max())


class Masks(nn.Linear):
    """A network that picks samples by a mask, which waits to count them."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x[t > 2.0] = 0.0
        return super().forward(x)


class Strays(nn.Linear):
    """A network that leaves a tensor on the CPU."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) + torch.ones(len(x), 1)


def told() -> ControlMLP:
    """A network that knows the moments of the law."""
    net = ControlMLP(3, 16, 2, rng=0)
    net.precondition(LAW.mean(), LAW.covariance(), td.VP())
    return net


def unet(**options: Any) -> UNet:
    return UNet(1, (8, 16), rng=0, **options)


Case = tuple[Callable[[], nn.Module], Any, dict[str, Any]]
TRAININGS: dict[str, Case] = {
    "EntropyMLP": (partial(EntropyMLP, 3, rng=0), LAW, {}),
    "uniform times": (partial(EntropyMLP, 3, rng=0), LAW, {"times": "uniform", "likelihood": False}),
    **{
        kind: (partial(EntropyMLP, 3, rng=0), LAW, {"predicts": kind}) for kind in ("flow", "v", "x0", "edm", "eps", "score")
    },
    "ControlMLP": (partial(ControlMLP, 3, 16, 2, rng=0), LAW, {}),
    "UNet": (partial(unet, attention=(1,)), VALUES, {}),
    "classes": (partial(unet, classes=3), IMAGES, {}),
    "Preconditioned": (lambda: Preconditioned(unet()), VALUES, {}),
    "integer steps": (lambda: adapt(unet(), time="steps"), VALUES, {"lam": (-6.0, 4.0)}),
    "time is lam": (lambda: adapt(unet(), time="lam", noise=td.VP()), VALUES, {}),
    "noise table": (lambda: Adapted(unet(), NoiseTable(np.geomspace(0.999, 0.005, 50))), VALUES, {"lam": (-5.0, 6.0)}),
    "adapted ControlMLP": (lambda: adapt(told()), LAW, {}),
    "host_time": (partial(OnTheHost, 3, 3), LAW, {"predicts": "eps"}),
    **{name: (partial(kind, 3, 3), LAW, {}) for name, kind in (("Looks", Looks), ("Masks", Masks))},
    "noise levels on the host": (partial(OnTheHost, 3, 3), LAW, {"predicts": "edm"}),
}


def vectors(device: str) -> LearnedDiffusion:
    net = told().double()
    nn.init.normal_(net.last.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return LearnedDiffusion(net.to(device), LAW, td.VP())


def images(device: str) -> LearnedDiffusion:
    net = Preconditioned(unet()).double()
    rows = VALUES.reshape(64, -1)
    net.precondition(rows.mean(0), rows.var(0), td.VP())
    return LearnedDiffusion(net.to(device), VALUES, td.VP())


def conditional(device: str) -> Any:
    net = unet(classes=3).double().to(device)
    return mutual_information(net, net, VALUES, np.arange(64) % 3, td.VP(), nodes=6, rng=0, lam=(-6.0, 4.0))


FEW: dict[str, Any] = {"nodes": 8, "samples": 64, "rng": 0}
MEASUREMENTS: dict[str, Callable[[str], Any]] = {
    "account": lambda device: td.account(vectors(device), **FEW).to_dict(),
    "exact divergence": lambda device: td.account(vectors(device), divergence="exact", **FEW).to_dict(),
    "Hutchinson": lambda device: td.account(vectors(device), divergence="hutchinson", **FEW).to_dict(),
    "measure": lambda device: measure(images(device), lam=(-6.0, 4.0), **FEW).to_dict(),
    "sample": lambda device: vectors(device).sample(8, steps=10, rng=0),
    "lower bound": lambda device: lower_bound(vectors(device), LAW.sample(6, rng=0), rng=0).values,
    "log_prob": lambda device: log_prob(vectors(device), LAW.sample(3, rng=0), rng=0).values,
    "mutual information": lambda device: conditional(device).to_dict(),
}


def numbers(found: Any) -> list[float]:
    """All numbers in a record, but its key and the time that it took."""
    if isinstance(found, dict):
        return [number for name, part in found.items() if name not in ("key", "seconds") for number in numbers(part)]
    if isinstance(found, list | tuple | np.ndarray):
        return [number for part in found for number in numbers(part)]
    return [float(found)] if isinstance(found, int | float | np.number) else []


def trained(name: str, device: str, steps: int, folder: Path | None = None) -> list[float]:
    """The weights after a training in float64; with ``folder`` one that was stopped after half of its steps."""
    make, data, options = TRAININGS[name]
    more: dict[str, Any] = {} if folder is None else {"checkpoint": folder / device, "every": 5, "decay": False}
    for length in (steps,) if folder is None else (steps // 2, steps):
        torch.manual_seed(0)
        net = train(
            make().double(), data, td.VP(), steps=length, batch=16, rng=1, device=device, progress=False, **options, **more
        )
    return [number for weight in net.state_dict().values() for number in weight.cpu().double().flatten().tolist()]  # pyright: ignore[reportPossiblyUnboundVariable]


def compared(found: list[float], wanted: list[float]) -> float:
    """Largest difference, relative to numbers above one."""
    assert len(found) == len(wanted)
    return float(np.max(np.abs(np.array(found) - wanted) / np.maximum(np.abs(wanted), 1.0)))


def main() -> None:
    """Make all cases, and print their findings as JSON."""
    import tempfile

    import pretend_device

    from thermodiff.learned import devices

    devices.ASYNCHRONOUS, torch.Tensor.pin_memory = (pretend_device.NAME,), pretend_device.pin_memory  # pyright: ignore[reportAttributeAccessIssue]
    result: dict[str, Any] = {}

    def away(work: Callable[[], list[float]]) -> tuple[list[float], Counter[str]]:
        pretend_device.WAITS.clear()
        with pretend_device.Pretend():
            numbers = work()
        return numbers, Counter(" ".join(wait) for wait in pretend_device.WAITS)

    for name in TRAININGS:
        wanted = trained(name, "cpu", STEPS[1])
        short, long = (away(partial(trained, name, pretend_device.NAME, steps)) for steps in STEPS)
        result[name] = {"difference": compared(long[0], wanted), "waits": dict(long[1] - short[1])}
    for name, work in MEASUREMENTS.items():
        found, waits = away(lambda work=work: numbers(work(pretend_device.NAME)))
        result[name] = {"difference": compared(found, numbers(work("cpu"))), "waits": dict(waits)}
    with tempfile.TemporaryDirectory() as folder:
        parts = [trained("ControlMLP", "cpu", 20, Path(folder))]
        parts += [away(partial(trained, "ControlMLP", pretend_device.NAME, 20, Path(folder)))[0]]
    result["resumed"] = {"difference": compared(parts[1], parts[0])}
    try:
        away(lambda: numbers(train(Strays(3, 3), LAW, td.VP(), steps=2, batch=8, device=pretend_device.NAME).bias.tolist()))
    except ValueError as error:
        result["Strays"] = str(error)
    print(json.dumps(result))


@cache
def findings() -> dict[str, Any]:
    """What the program of this file prints."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot be given a device from Python")
    here = Path(__file__)
    code = f"import sys; sys.path[:0] = [{str(here.parents[1])!r}, {str(here.parent)!r}]; import test_devices; test_devices.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-2000:]}


def finding(name: str) -> Any:
    assert "error" not in findings(), findings()["error"]
    return findings()[name]


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in WAITING])
def test_a_training_elsewhere_gives_the_same_weights_and_waits_only_to_tell_the_loss(name: str) -> None:
    found = finding(name)
    # Rounding, but for the bias of the keys of attention: it changes nothing, and Adam makes steps of its gradient's rounding.
    assert found["difference"] < (1e-11 if name == "UNet" else 1e-13)
    # Steps 26 ... 45 read the losses once, of twenty steps, as the last steps of either training do.
    assert [(wait.split()[:2], times) for wait, times in found["waits"].items()] == [(["tolist", "learned/report.py:"], 1)]


@pytest.mark.parametrize("name", WAITING)
def test_a_network_that_looks_at_the_device_is_seen_to_wait_in_every_step(name: str) -> None:
    assert finding(name)["difference"] < 1e-13
    assert sum(finding(name)["waits"].values()) == 21


def test_a_tensor_left_on_the_cpu_is_refused() -> None:
    assert "expected all tensors on one device" in finding("Strays")


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_elsewhere_give_the_same_numbers(name: str) -> None:
    found = finding(name)
    assert found["difference"] < 1e-13
    assert any("from the device" in wait for wait in found["waits"])  # it was asked there


def test_a_stopped_training_goes_on_elsewhere() -> None:
    assert finding("resumed")["difference"] < 1e-13


def test_placed_leaves_a_tensor_where_it_is() -> None:
    values = torch.ones(3)
    assert placed(values, torch.device("cpu")) is values
