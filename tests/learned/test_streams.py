"""Draws of one call with one key, for several purposes, are different numbers."""

from __future__ import annotations

import numpy as np
import pytest

from thermodiff._check import seed_words
from thermodiff.densities import Samples
from thermodiff.learned.bound import lower_bound
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.streams import PURPOSES, stream
from thermodiff.schedules import VP

KEY = seed_words(0)


def test_purposes_are_uncorrelated() -> None:
    draws = [stream(KEY, purpose).random(4000) for purpose in PURPOSES]
    draws += [
        np.random.default_rng(KEY).random(4000),
        stream(KEY, "probes", 0).random(4000),
        stream(KEY, "probes", 256).random(4000),
    ]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.max(np.abs(correlations)) < 0.08


def test_the_same_key_gives_the_same_numbers() -> None:
    np.testing.assert_array_equal(stream(KEY, "probes", 3).random(9), stream(KEY, "probes", 3).random(9))


def test_a_bound_draws_grey_levels_and_noise_levels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """They came from equal generators: the first pixels had the noise of the first log-SNR."""
    levels = np.random.default_rng(5).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    images = Images(levels, span=(0.0, 1.0), dequantise=True)
    seen: list[np.ndarray] = []
    real = stream

    class Recorder:
        def __init__(self, generator: np.random.Generator) -> None:
            self.generator = generator

        def random(self, *args: object, **options: object) -> np.ndarray:
            drawn = self.generator.random(*args, **options)  # pyright: ignore
            seen.append(np.asarray(drawn, dtype=np.float64).ravel())
            return drawn

    for module in ("bound", "likelihood"):
        monkeypatch.setattr(f"thermodiff.learned.{module}.stream", lambda *args: Recorder(real(*args)))
    lower_bound(LearnedDiffusion(lambda x, t: 0.0 * x, images, VP()), images, strata=8, replicates=4, lam=(-4.0, 4.0), rng=0)
    assert len(seen) == 2
    common = min(map(len, seen))
    assert abs(np.corrcoef(seen[0][:common], seen[1][:common])[0, 1]) < 0.6
    # Nor are they those that choose the points of an account.
    order = Samples(np.zeros((4800, 1))).order(KEY, 4800)
    assert abs(np.corrcoef(np.argsort(order), np.argsort(np.argsort(seen[0][:4800])))[0, 1]) < 0.1
