"""Training batches: what they weigh, where their draws come from."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from thermodiff.densities import Gaussian, GaussianMixture, Samples
from thermodiff.learned.batches import (
    UNIFORM_EDGE,
    UNLABELLED_SHARE,
    Batch,
    LamProposal,
    Source,
    Stream,
    lam_rows,
    time_rows,
)
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VE, VP, Cosine, Schedule, StraightLine, SubVP

SCHEDULES = [VP(), VP(scale=0.1), StraightLine(scale=0.1), VE(), SubVP(), Cosine(scale=2.0)]
QUANTILES = (np.arange(200_000) + 0.5) / 200_000


def proposal(noise: Schedule, window: tuple[float, float] = (-6.0, 8.0), variances: Any = (1.5, 0.2)) -> LamProposal:
    return LamProposal(noise, *window, np.array(variances))


# The proposal


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("variances", [(1.0,), (25.0, 1e-4, 0.0)])
def test_proposal_is_a_density(noise: Schedule, variances: tuple[float, ...]) -> None:
    law = proposal(noise, (-6.0, 8.0), variances)
    width = 14.0 / law.density.size
    assert law.density.sum() * width == pytest.approx(1.0, rel=1e-12)
    assert law.density.min() >= 0.15 / 14.0 * (1.0 - 1e-12)  # no weight above 1 / 0.15 of the uniform one
    lam, density = law(QUANTILES)
    assert lam.min() >= -6.0
    assert lam.max() <= 8.0
    counts = np.histogram(lam, law.edges)[0] / QUANTILES.size
    np.testing.assert_allclose(counts, law.density * width, atol=2.0 / QUANTILES.size)
    inside = np.abs((lam - law.edges[0]) / width % 1.0 - 0.5) < 0.499
    cell = ((lam - law.edges[0]) / width).astype(int)
    assert np.array_equal(density[inside], law.density[cell[inside]])


def test_ends_of_the_quantiles() -> None:
    law = proposal(VP())
    lam, density = law(np.array([0.0, np.nextafter(1.0, 0.0), 1.0]))
    np.testing.assert_allclose(lam, [-6.0, 8.0, 8.0], atol=1e-9)
    np.testing.assert_array_equal(density, law.density[[0, -1, -1]])


def test_data_that_does_not_vary() -> None:
    with pytest.raises(ValueError, match="the data does not vary; there is nothing to learn"):
        proposal(VP(), variances=(0.0, 0.0))


# Weights: the mean of weight times f is an integral


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_likelihood_weight_in_lam(noise: Schedule) -> None:
    """Half the integral over lam, whatever the proposal."""
    row, weights = lam_rows(noise, proposal(noise), True, QUANTILES)
    for f, integral in ((np.ones_like, 14.0), (np.cos, np.sin(8.0) + np.sin(6.0)), (np.square, (512.0 + 216.0) / 3.0)):
        assert np.mean(weights * f(row.lam)) == pytest.approx(0.5 * integral, rel=2e-4)
    np.testing.assert_allclose(noise.lam(row.time[::1000]), row.lam[::1000], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_no_weight_in_lam(noise: Schedule) -> None:
    """Without weight the mean is the integral over t: dt = sigma^2 / (2 D) dlam."""
    row, weights = lam_rows(noise, proposal(noise), False, QUANTILES)
    late, early = noise.time(-6.0), noise.time(8.0)
    assert np.mean(weights) == pytest.approx(late - early, rel=2e-4)
    assert np.mean(weights * row.time) == pytest.approx(0.5 * (late**2 - early**2), rel=2e-4)


@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), VE()], ids=lambda noise: noise.name)
def test_times_uniform(noise: Schedule) -> None:
    row, ones = time_rows(noise, False, QUANTILES)
    assert np.all(ones == 1.0)
    np.testing.assert_allclose(row.time, UNIFORM_EDGE + (1.0 - 2.0 * UNIFORM_EDGE) * QUANTILES, rtol=1e-15)
    np.testing.assert_allclose(row.sigma, noise.sigma(row.time), rtol=1e-9)
    np.testing.assert_allclose(row.alpha, noise.alpha(row.time), rtol=1e-9)
    # D / sigma^2 = -dlam/dt / 2: its mean is half the width in lam of the times that are covered.
    inner = QUANTILES[QUANTILES > 0.01]
    row, weights = time_rows(noise, True, inner)
    step = (1.0 - 2.0 * UNIFORM_EDGE) / QUANTILES.size
    edges = noise.lam(np.array([row.time[0] - 0.5 * step, row.time[-1] + 0.5 * step]))
    assert np.sum(weights) * step == pytest.approx(0.5 * (edges[0] - edges[1]), rel=1e-5)


# The source


def test_source_of_an_array() -> None:
    points = np.random.default_rng(0).normal(2.0, 3.0, (7, 3))
    source = Source(points)
    assert source.shape == (3,)
    drawn = source.draw(1000, np.random.default_rng(1))
    assert drawn.dtype == torch.float32
    rows = {tuple(row) for row in points.astype(np.float32).tolist()}
    assert {tuple(row) for row in drawn.tolist()} == rows
    mean, covariance = source.moments()
    np.testing.assert_allclose(mean, points.mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(points.T, bias=True), rtol=1e-5)
    np.testing.assert_allclose(np.sort(source.variances()), np.linalg.eigvalsh(covariance), rtol=1e-6)


def test_source_of_one_coordinate() -> None:
    source = Source(np.array([[0.0], [2.0]]))
    np.testing.assert_allclose(source.moments()[1], [[1.0]])
    np.testing.assert_allclose(source.variances(), [1.0])


@pytest.mark.parametrize(
    "law",
    [
        Gaussian([1.0, 2.0], cov=[[2.0, 0.5], [0.5, 1.0]]),
        GaussianMixture([[0.0, 1.0], [3.0, 0.0]], stds=[0.2, 0.4]),
        Samples([[0.0, 1.0], [2.0, 3.0], [5.0, -1.0]]),
    ],
    ids=lambda law: type(law).__name__,
)
def test_source_of_a_law(law: Any) -> None:
    source = Source(law)
    assert source.shape == (2,)
    drawn = source.draw(40_000, np.random.default_rng(2)).double().numpy()
    mean, covariance = source.moments()
    np.testing.assert_array_equal(mean, law.mean())
    np.testing.assert_array_equal(covariance, law.covariance())
    assert np.all(np.abs(drawn.mean(0) - mean) < 4.0 * np.sqrt(np.diag(covariance) / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, rtol=0.05, atol=0.05 * np.trace(covariance))
    np.testing.assert_allclose(source.variances(), np.linalg.eigvalsh(covariance))


def test_a_covariance_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.covariance\(\) holds 4 values that are nan or infinite"):
        Source(Samples([[1e200, 0.0], [0.0, 1e200]])).moments()


def test_source_of_images() -> None:
    images = np.random.default_rng(0).random((20, 1, 24, 24)).astype(np.float32)
    source = Source(images)
    assert source.shape == (1, 24, 24)
    # Beyond 512 coordinates single variances stand for the spectrum; their sum is the same.
    assert source.variances().shape == (576,)
    np.testing.assert_allclose(source.variances(), images.reshape(20, -1).var(0), rtol=1e-4)
    small = Source(images[:, :, :4, :4])
    assert small.variances().sum() == pytest.approx(small.moments()[1].sum(), rel=1e-6)


def test_float32_images_are_not_copied() -> None:
    images = np.zeros((3, 1, 2, 2), dtype=np.float32)
    source = Source(images)
    images[:] = 7.0
    assert float(source.draw(1, np.random.default_rng(0)).max()) == 7.0


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 2, 2)])
def test_source_of_bfloat16(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape).to(torch.bfloat16)
    assert torch.equal(Source(values)._stored(), values.float())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), r"data must have shape \(n, d\) or \(n, channels, height, width\), got \(3,\)"),
        (np.zeros((2, 3, 4)), r"got \(2, 3, 4\)"),
        (np.zeros((0, 3)), "data is empty"),
        (np.full((2, 1, 2, 2), np.nan, dtype=np.float32), "data holds 8 values that are nan"),
        (np.full((2, 3), 1e300), "data: 6 values exceed the range of float32"),
        (np.full((2, 1, 2, 2), 1e300), "data: 8 values exceed the range of float32"),
        (np.ones((2, 1, 2, 2), dtype=np.uint8), "of type uint8, whose scale is not said; pass Images"),
        (torch.ones(2, 1, 2, 2, dtype=torch.int64), "of type int64, whose scale is not said; pass Images"),
        (TensorDataset(torch.ones(2, 1, 2, 2, dtype=torch.uint8)), r"the images are of type uint8, whose scale is not said"),
        (Images(np.zeros((2, 1, 2, 2)))[:0], r"data is empty, Images\(0 of 1x2x2\)"),
        ("mixture", "data must"),
    ],
)
def test_source_refuses(data: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Source(data)


# The batches


def stream(batch: int, pairs: bool, seed: int = 0, data: Any = None, **options: Any) -> Stream:
    source = Source(Gaussian([0.0, 0.0], std=1.0) if data is None else data)
    rows = partial(lam_rows, VP(), proposal(VP(), variances=(1.0,)), True)
    return Stream(source, rows, batch, pairs, (seed, 1), torch.device("cpu"), **options)


def first(made: Stream, n: int) -> list[Batch]:
    return [made(step) for step in range(n)]


@pytest.mark.parametrize("batch", [1, 2, 9, 64])
@pytest.mark.parametrize("pairs", [True, False])
def test_shapes(batch: int, pairs: bool) -> None:
    for got in first(stream(batch, pairs), 3):
        assert isinstance(got, Batch)
        assert got.x0.shape == got.z.shape == (batch, 2)
        assert got.weights.shape == (batch,)
        assert all(value.shape == (batch, 1) for value in got.row)
        assert got.x0.dtype == got.z.dtype == got.weights.dtype == got.row.sigma.dtype == torch.float32
        assert got.row.time.dtype == torch.float64


@pytest.mark.parametrize("batch", [8, 9])
def test_pairs(batch: int) -> None:
    """(x_0, z) and (x_0, -z) at one lam; one lam in each of equal shares of the proposal."""
    law = proposal(VP(), variances=(1.0,))
    half = (batch + 1) // 2
    for got in first(stream(batch, True), 5):
        rest = batch - half
        assert torch.equal(got.x0[:rest], got.x0[half:])
        assert torch.equal(got.z[:rest], -got.z[half:])
        assert torch.equal(got.row.lam[:rest], got.row.lam[half:])
        assert torch.equal(got.weights[:rest], got.weights[half:])
        quantiles = np.interp(got.row.lam[:half, 0].double().numpy(), law.edges, law.cumulative)
        assert np.array_equal((quantiles * half + 1e-5).astype(int), np.arange(half))


def test_without_pairs_all_is_independent() -> None:
    got = stream(4000, False)(0)
    assert len(torch.unique(got.x0[:, 0])) == 4000
    assert len(torch.unique(got.z[:, 0])) == 4000
    assert len(torch.unique(got.row.lam)) > 3990
    columns = torch.stack([got.x0[:, 0], got.x0[:, 1], got.z[:, 0], got.z[:, 1], got.row.lam[:, 0]]).numpy()
    gaps = np.corrcoef(columns) - np.eye(5)
    assert np.abs(gaps).max() < 4.0 / np.sqrt(4000)


def test_batches_differ_and_seeds_fix_them() -> None:
    one, two, other = (first(stream(16, True, seed), 4) for seed in (1, 1, 2))
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.z, b.z)
        assert torch.equal(a.row.lam, b.row.lam)
        assert not torch.equal(a.z, c.z)
        assert not torch.equal(a.x0, c.x0)
    assert not torch.equal(one[0].x0, one[1].x0)
    assert not torch.equal(one[0].z, one[1].z)
    assert not torch.equal(one[0].row.lam, one[1].row.lam)


def equal(one: Batch, two: Batch) -> bool:
    pairs = zip([*one.row, one.x0, one.z, one.weights], [*two.row, two.x0, two.z, two.weights], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_batches_by_number_in_any_order() -> None:
    """Draws come in chunks of 2^18 numbers; a batch beyond the first chunk needs none of those before it."""
    images = np.random.default_rng(0).random((5, 1, 64, 64)).astype(np.float32)
    made = stream(32, False, data=images)
    got = first(made, 5)
    assert made._length == 2
    assert [entry.x0.shape for entry in got] == [(32, 1, 64, 64)] * 5
    assert got[0].row.sigma.shape == (32, 1, 1, 1)
    assert not torch.equal(got[0].z, got[4].z)
    again = stream(32, False, data=images)
    assert equal(again(4), got[4])
    assert equal(again(1), got[1])


@pytest.mark.parametrize("pairs", [True, False])
def test_processes_share_the_batch_of_one(pairs: bool) -> None:
    whole = stream(12, pairs)
    parts = [stream(12, pairs, rank=rank, ranks=3) for rank in range(3)]
    for step in (0, 1, 30_000):
        for rank, part in enumerate(parts):
            full = whole(step)
            chosen = Batch(
                full.x0[rank::3], full.z[rank::3], type(full.row)(*(v[rank::3] for v in full.row)), full.weights[rank::3]
            )
            assert equal(part(step), chosen)


# Labelled images


def labelled(n: int = 6) -> Images:
    values = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    return Images(values, labels=np.arange(n) % 3)


@pytest.mark.parametrize("pairs", [True, False])
def test_labels_go_with_their_images_and_some_are_hidden(pairs: bool) -> None:
    got = stream(4000, pairs, data=labelled(), unlabelled=3)(0)
    assert got.labels is not None
    number = torch.round((got.x0[:, 0, 0, 0] + 1.0) * 127.5).long()
    shown = got.labels != 3
    assert torch.equal(got.labels[shown], number[shown] % 3)
    independent = 2000 if pairs else 4000
    error = np.sqrt(UNLABELLED_SHARE * (1.0 - UNLABELLED_SHARE) / independent)
    assert abs(1.0 - shown.double().mean().item() - UNLABELLED_SHARE) < 4.0 * error
    assert stream(8, pairs, data=labelled())(0).labels is None


def test_source_of_labelled_images() -> None:
    images = labelled()
    source = Source(images)
    assert (source.shape, source.classes) == ((1, 4, 4), 3)
    mean, variances = source.moments()
    flat = np.asarray(images).reshape(6, -1)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variances, flat.var(0), rtol=1e-5)
    assert source.variances().sum() == pytest.approx(variances.sum(), rel=1e-6)


def test_fingerprints_tell_data_apart() -> None:
    points = np.random.default_rng(0).normal(size=(9, 2))
    grey = np.random.default_rng(0).integers(0, 256, (9, 4, 4), dtype=np.uint8)
    sources = [
        points, points + 1e-3, points[::-1].copy(), Images(grey), Images(grey, span=(0.0, 1.0)),
        Images(grey, labels=np.zeros(9, dtype=int)), Gaussian([0.0, 0.0], std=1.0), Gaussian([0.0, 0.0], std=1.1),
    ]  # fmt: skip
    prints = [Source(data).fingerprint() for data in sources]
    assert len(set(prints)) == len(prints)
    assert prints == [Source(data).fingerprint() for data in sources]


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 2, 2)])
def test_torch_datasets_are_the_data_that_they_hold(shape: tuple[int, ...]) -> None:
    """As for LearnedDiffusion; labels are left out."""
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    for data in (TensorDataset(values), TensorDataset(values, torch.arange(6))):
        assert Source(data).fingerprint() == Source(values).fingerprint()
        model = LearnedDiffusion(lambda x, t: x, data, VP())
        assert model.shape == shape[1:]
        np.testing.assert_array_equal(model.data.points, values.reshape(6, -1))
