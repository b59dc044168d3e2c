"""The page of a measurement: Gaussian part, convergence, memorising law, held-out data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from learned_models import LAW, Exact
from truths import gaussian_kl

from thermodiff import account
from thermodiff.densities import Gaussian, PointCloud
from thermodiff.diffusion import Diffusion
from thermodiff.learned.images import Images
from thermodiff.learned.measurement import gaussian_part, information_gap, measure
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VE, VP, CondOT, Schedule, StraightLine

GAUSS = Gaussian([0.5, -0.3], cov=[[0.5, 0.2], [0.2, 0.3]])
WINDOW = (-6.0, 6.0)


def model_of(law: Any, noise: Schedule = VP(), data: Any = None, change: Any = None) -> LearnedDiffusion:  # noqa: B008
    return LearnedDiffusion(Exact(law, noise, change=change), law if data is None else data, noise)


@pytest.mark.parametrize("noise", [VP(), StraightLine(scale=0.1), VE(), CondOT()], ids=lambda noise: noise.name)
def test_gaussian_part_of_a_gaussian_is_all(noise: Schedule) -> None:
    found = measure(model_of(GAUSS, noise), nodes=24, samples=1000, rng=0, lam=WINDOW)
    oracle = found.ledger.oracle
    assert found.gaussian.value == pytest.approx(oracle.value, rel=1e-9)
    assert abs(found.remainder.value) < 4.0 * found.remainder.error + 1e-5 * oracle.value


def test_gaussian_part_is_a_divergence_to_the_equilibrium() -> None:
    """KL(N(m, C) || p_eq) at the data end less that at the noise end."""
    found = measure(model_of(LAW), nodes=24, samples=500, rng=0, lam=WINDOW)
    spectrum, columns = np.linalg.eigh(LAW.covariance())
    ends = []
    for edge in WINDOW:
        alpha2 = 1.0 / (1.0 + np.exp(-edge))
        ends.append(gaussian_kl(np.sqrt(alpha2) * LAW.mean() @ columns, alpha2 * spectrum + 1.0 - alpha2, 1.0))
    assert found.gaussian.value == pytest.approx(ends[1] - ends[0], rel=1e-9)
    # Two peaks hold more than their Gaussian.
    assert found.remainder.value > 4.0 * found.remainder.error
    assert found.remainder.value == pytest.approx(found.ledger.total("neural").value - found.gaussian.value, rel=1e-12)


@pytest.mark.parametrize(("size", "draws"), [(60, 120), (1000, 50), (400, 300), (60, 90)])
def test_errors_of_the_parts_over_data_sets(size: int, draws: int) -> None:
    """RMS z of 60 sets of points, against the law; with draws from all of them, some of them, some twice."""
    law_page = measure(model_of(GAUSS), nodes=10, samples=400, rng=0, lam=WINDOW)
    z = []
    for seed in range(60):
        model = model_of(GAUSS, data=GAUSS.sample(size, seed))
        ledger = account(model, nodes=10, samples=draws, rng=seed, lam=WINDOW)
        gaussian, rest = gaussian_part(model, ledger)
        z.append([(gaussian.value - law_page.gaussian.value) / gaussian.error, rest.value / rest.error])
    rms = np.sqrt(np.mean(np.square(z), axis=0))
    assert np.all((rms > 0.7) & (rms < 1.4)), rms


def test_convergence_is_stated() -> None:
    good = measure(model_of(LAW), nodes=32, samples=2000, rng=0)
    assert all(abs(gap.value) <= 4.0 * gap.error for gap in good.convergence.values())
    assert "the nodes suffice" in str(good)
    assert "lam_max = 20" in str(good)
    few = measure(model_of(GAUSS, data=GAUSS.sample(50, 0)), nodes=4, samples=2000, rng=0, lam=(-8.0, 20.0))
    assert "NOT CONVERGED: take more nodes" in str(few)
    assert json.loads(json.dumps(good.to_dict()))["coarse_nodes"] == 16


def test_convergence_is_paired_by_point() -> None:
    """The points are the same in both accounts, so that their spread is no error of the difference."""
    z = []
    for seed in range(12):
        page = measure(model_of(GAUSS, data=GAUSS.sample(50, seed)), nodes=32, samples=200, rng=seed, lam=WINDOW)
        gap = page.convergence["neural"]
        assert gap.error < 0.7 * (page.ledger.total("neural") - page.coarse.total("neural")).error
        z.append(gap.value / gap.error)
    assert 0.5 < np.sqrt(np.mean(np.square(z))) < 1.7


def test_training_held_out_and_memorising() -> None:
    """A network that is the memorising law: its denoising is the gap of the points on them, and more beyond."""
    train, unseen = LAW.sample(60, 0), LAW.sample(600, 1)
    cloud = PointCloud(train)
    page = measure(model_of(cloud, data=train), held_out=unseen, nodes=24, samples=600, rng=0, lam=(-6.0, 7.0))
    assert page.held_out is not None
    assert page.memorising is not None
    gap = page.memorising.total("gap")
    assert 0.0 < gap.value < np.log(60)
    inside, outside = page.ledger.total("denoising"), page.held_out.total("denoising")
    assert abs(inside.value - gap.value) < 4.0 * inside.error
    assert outside.value - inside.value > 4.0 * np.hypot(inside.error, outside.error)
    # The same network, on its points, stores what the memorising law produces.
    assert page.ledger.total("neural").value == pytest.approx(page.memorising.total("total").value, rel=0.05)
    assert all(title in str(page) for title in ("held-out data", "memorising law"))
    assert page.ledger.window == page.held_out.window == page.memorising.window == (-6.0, 7.0)


def test_held_out_images_in_another_layout_are_refused() -> None:
    """As many numbers are not enough: pixels would be scrambled."""
    rng = np.random.default_rng(0)
    seen, unseen = rng.random((20, 3, 6, 6), dtype=np.float32), rng.random((20, 3, 6, 6), dtype=np.float32)
    model = LearnedDiffusion(lambda x, t: 0.0 * x, seen, VP())
    options: dict[str, Any] = {"nodes": 4, "samples": 20, "rng": 0, "lam": (-4.0, 4.0)}
    other = np.ascontiguousarray(np.moveaxis(unseen, 1, 3))
    with pytest.raises(
        ValueError, match=r"held_out: .* has shape \(6, 6, 3\), the network takes \(3, 6, 6\): .* axis of channels"
    ):
        measure(model, held_out=other, **options)
    with pytest.raises(ValueError, match=r"has shape \(3, 4, 9\), the network takes \(3, 6, 6\)"):
        measure(model, held_out=unseen.reshape(20, 3, 4, 9), **options)
    levels = (255 * other).astype(np.uint8)  # whose axes Images puts in order
    images = Images(levels, span=(0.0, 1.0))
    pages = [
        measure(model, held_out=same, **options) for same in (np.asarray(images), images, np.asarray(images).reshape(20, -1))
    ]
    totals = [page.held_out.total("denoising").value for page in pages if page.held_out is not None]
    assert totals[0] == totals[1] == totals[2]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (np.zeros((9, 3)), "held_out has d = 3, the model's data d = 4; give data of one kind"),
        (np.zeros((9, 1, 3, 3)), "held_out has d = 9, the model's data d = 4"),
        (np.zeros((9, 4, 1, 1)), r"held_out: one sample of the data has shape \(4, 1, 1\), the network takes \(1, 2, 2\)"),
        (np.zeros((1, 4)), "held_out: Samples: got one point"),
        (np.zeros(4), r"held_out: points must have shape \(n, d\), got \(4,\)"),
        (np.full((9, 4), np.nan), "held_out: points holds 36 values that are nan"),
        (np.zeros((9, 1, 2, 2), np.uint8), "held_out: the images are of type uint8, whose scale is not said"),
        ("x", "held_out: points must be an array of numbers"),
        (
            Images(np.eye(2, dtype=np.uint8)[None].repeat(9, 0)),
            r"held_out: the images have span \(-1, 1\), the model's data \(0, 1\): .* pass Images\(..., span=\(0, 1\)\)",
        ),
    ],
)
def test_held_out_data_are_refused_before_the_network_is_measured(held_out: Any, message: str) -> None:
    calls = []

    def net(x: Any, t: Any) -> Any:
        calls.append(len(x))
        return 0.0 * x

    levels = np.random.default_rng(0).integers(0, 256, (20, 1, 2, 2)).astype(np.uint8)
    model = LearnedDiffusion(net, Images(levels, span=(0.0, 1.0)), VP())
    with pytest.raises((TypeError, ValueError), match=message):
        measure(model, held_out=held_out, nodes=4, samples=20, rng=0, lam=(-4.0, 4.0))
    assert calls == []


def test_held_out_images_of_other_levels_on_the_same_span() -> None:
    rng = np.random.default_rng(0)
    model = LearnedDiffusion(lambda x, t: 0.0 * x, Images(rng.integers(0, 256, (9, 2, 2)).astype(np.uint8)), VP())
    other = Images(rng.integers(0, 17, (9, 2, 2)).astype(np.uint8), levels=17)
    page = measure(model, held_out=other, nodes=4, samples=9, rng=0, lam=(-4.0, 4.0))
    assert page.held_out is not None


@pytest.mark.parametrize("noise", [VP(), VE()], ids=lambda noise: noise.name)
def test_gap_of_a_gaussian(noise: Schedule) -> None:
    spectrum = np.linalg.eigvalsh(GAUSS.covariance())
    expected = 0.5 * (np.log1p(np.exp(6.0) * spectrum) - np.log1p(np.exp(-6.0) * spectrum)).sum()
    assert information_gap(GAUSS, noise, WINDOW).value == pytest.approx(expected, rel=1e-9)


def test_errors() -> None:
    with pytest.raises(ValueError, match="nodes must be at least 4"):
        measure(model_of(LAW), nodes=2)
    with pytest.raises(ValueError, match="samples must be at least 2, got 0"):
        measure(model_of(LAW), nodes=4, samples=0)
    with pytest.raises(TypeError, match="held_out needs a model of training data"):
        measure(model_of(LAW), held_out=LAW.sample(9, 0), nodes=4, samples=50)
    assert Diffusion(LAW, VP()).dim == 2
