"""Errors of the nodes for networks whose course over log-SNR is rough: steps and waves that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff import account, compare
from thermodiff.densities import Gaussian
from thermodiff.learned import LearnedDiffusion
from thermodiff.learned.measurement import measure
from thermodiff.schedules import VP

LAW, NOISE = Gaussian([0.0, 0.0], std=0.5), VP()
pytestmark = pytest.mark.filterwarnings("ignore:.*the network has learned little")


class Off(nn.Module):
    """The exact eps, and ``shift(lam)`` in each coordinate: a mismatch of shift^2 per unit of lam."""

    def __init__(self, shift) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        lam = NOISE.lam(t.double().numpy())
        row = NOISE.at(lam)
        exact = x * x.new_tensor(row.sigma / (0.25 * row.alpha**2 + row.sigma**2))[:, None]
        return exact + x.new_tensor(self.shift(lam))[:, None]


def ledger(shift, nodes: int, rng: int = 0, **options):
    model = LearnedDiffusion(Off(shift), LAW, NOISE, predicts="eps")
    return account(model, nodes=nodes, samples=500, rng=rng, lam=(-8.0, 8.0), **options)


@pytest.mark.parametrize("nodes", [24, 32, 64, 100])
def test_a_network_with_a_step_in_time(nodes: int) -> None:
    """Its place is drawn: among many the error of the nodes is what it is said to be."""
    z = {"mismatch": [], "kl_bound": []}
    for place in np.random.default_rng(nodes).uniform(-5.0, 5.0, 25):
        found = ledger(lambda lam, place=place: 0.3 * (lam > place), nodes)
        for row, values in z.items():
            truth = 0.09 * (8.0 - place) + (found.fixed["prior"].value if row == "kl_bound" else 0.0)
            values.append((found.total(row).value - truth) / found.total(row).error)
    for values in z.values():
        assert 0.4 < np.sqrt(np.mean(np.square(values))) < 1.35


def test_a_smooth_network_has_no_such_error() -> None:
    found = ledger(lambda lam: 0.3 / np.cosh(0.3 * lam), 64)
    assert found.total("mismatch").value == pytest.approx(0.09 * 2.0 * np.tanh(2.4) / 0.3, abs=1e-6)
    assert found.total("mismatch").error < 1e-6
    assert found.unresolved["neural"] < 1e-3 * found.total("neural").error + 1e-12


def test_an_exact_ledger_has_none_and_files_keep_it(tmp_path) -> None:
    found = ledger(lambda lam: 0.3 * (lam > 1.0), 32)
    assert found.unresolved["mismatch"] > 0.01
    found.save(tmp_path / "ledger.json")
    again = type(found).load(tmp_path / "ledger.json")
    assert again.unresolved == found.unresolved
    assert again.total("mismatch") == found.total("mismatch")


def test_differences_of_networks_carry_it() -> None:
    one, two = (ledger(lambda lam, s=s: s * (lam > 1.0), 32) for s in (0.0, 0.3))
    gap = compare(one, two).differences["mismatch"]
    assert gap.error > 0.5 * two.unresolved["mismatch"]
    assert abs(gap.value - 0.09 * 7.0) < 4.0 * gap.error


def test_the_statement_of_convergence_agrees_with_the_error() -> None:
    """A step in the middle of the window: all nodes and half of them agree to rounding, and miss as much as elsewhere."""
    model = LearnedDiffusion(Off(lambda lam: 0.3 * (lam > 0.05)), LAW, NOISE, predicts="eps")
    found = measure(model, nodes=64, samples=500, rng=0, lam=(-8.0, 8.0))
    gap = found.convergence["mismatch"]
    assert abs(gap.value) < 3.0 * gap.error < 1e-3 * found.ledger.unresolved["mismatch"]
    lines = str(found).split("draws of its own")[1].splitlines()
    assert "NOT CONVERGED" in next(line for line in lines if line.startswith("mismatch"))
