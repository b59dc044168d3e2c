"""10^8 normals as `simulate` uses them, against the normal law and against each other; test_simulate has smaller tests."""

import numpy as np
import pytest
from scipy import special, stats

import thermodiff as td

BINS = 1000
FALSE_ALARM = 1e-6
"""Chance that any of all p-values of a test is called too small."""


@td.drift
def still(x, t):
    return 0.0, 0.0, 0.0, 0.0, 0.0


LAGS = {"step": (1, 2, 3, 4, 5), "path": (1, 2, 3, 4, 64, 255, 256, 257), "coordinate": (1, 2, 3, 4)}


class Tally:
    """Takes states (T, paths, d) as they come, in order, in place of an array, and keeps sums over their normals.

    With D = 1/2, unit steps and no drift, normals are the differences of states.  ``spoil`` puts a fault into them.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, steps: int, paths: int, dim: int, spoil=lambda z: z) -> None:
        self.shape, self.spoil, self.done = (steps + 1, paths, dim), spoil, 0
        self.counts, self.powers = np.zeros(BINS, dtype=np.int64), np.zeros(4)
        # Sums of products of normals, and of squares less one, with how many there are.
        self.products = {(axis, lag): np.zeros(3) for axis, lags in LAGS.items() for lag in lags}

    def __setitem__(self, where: tuple[slice, slice], states: np.ndarray) -> None:
        assert where[1].start == self.done
        self.done = where[1].stop
        z = self.spoil(np.diff(states, axis=0))
        cells = np.minimum((BINS * special.ndtr(z)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(cells.ravel(), minlength=BINS)
        square = z * z
        self.powers += [z.sum(), square.sum(), (square * z).sum(), (square * square).sum()]
        square -= 1.0
        for (axis, lag), sums in self.products.items():
            k = list(LAGS).index(axis)
            one, two = ((slice(None),) * k + (part,) for part in (slice(lag, None), slice(None, -lag)))
            sums += [np.vdot(z[one], z[two]), np.vdot(square[one], square[two]), z[one].size]

    def p_values(self) -> dict[str, float]:
        """Two-sided, each of them uniform for independent normals."""
        n = self.counts.sum()
        found = {"bins": float(stats.chisquare(self.counts).pvalue)}
        for k, (mean, variance) in enumerate([(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0)]):
            found[f"power {k + 1}"] = two_sided((self.powers[k] / n - mean) / np.sqrt(variance / n))
        for (axis, lag), (first, second, pairs) in self.products.items():
            found[f"{axis} {lag}"] = two_sided(first / np.sqrt(pairs))
            found[f"{axis} {lag} squares"] = two_sided(second / np.sqrt(4.0 * pairs))
        return found


def two_sided(z: float) -> float:
    return float(2.0 * stats.norm.sf(abs(z)))


def tallied(paths: int, spoil=lambda z: z) -> Tally:
    """20 steps of 5 coordinates: 100 normals for each path."""
    tally = Tally(20, paths, 5, spoil)
    process = td.Langevin(still, diffusivity=0.5, dim=5)
    td.simulate(process, np.zeros((paths, 5)), np.arange(21.0), 1.0, rng=20, out=tally, progress=False)
    assert tally.done == paths
    return tally


def failures(tally: Tally) -> set[str]:
    found = tally.p_values()
    return {name for name, p in found.items() if p < FALSE_ALARM / len(found)}


def too_wide(z: np.ndarray) -> np.ndarray:
    return 1.0005 * z


def rounded(z: np.ndarray) -> np.ndarray:
    return np.round(256.0 * z) / 256.0


def leaking(axis: int, share: float):
    """Some of the neighbour is added."""
    return lambda z: z + share * np.roll(z, 1, axis)


def paired(axis: int, share: float):
    """The size of a normal follows that of its neighbour; its sign does not."""
    return lambda z: z * np.sqrt(1.0 + share * (np.roll(z, 1, axis) ** 2 - 1.0))


def test_a_million_normals() -> None:
    """And what a fault of two per cent would look like."""
    assert failures(tallied(10**4)) == set()
    for axis, name in enumerate(LAGS):
        assert f"{name} 1" in failures(tallied(10**4, leaking(axis, 0.02)))


@pytest.mark.slow
def test_a_hundred_million_normals() -> None:
    assert failures(tallied(10**6)) == set()


@pytest.mark.slow
def test_a_hundred_million_normals_that_are_too_wide_by_a_two_thousandth() -> None:
    assert "power 2" in failures(tallied(10**6, too_wide))


@pytest.mark.slow
def test_faults_that_are_found_in_ten_million_normals() -> None:
    assert "bins" in failures(tallied(10**5, rounded))
    for axis, name in enumerate(LAGS):
        assert f"{name} 1" in failures(tallied(10**5, leaking(axis, 0.005)))
        assert f"{name} 1 squares" in failures(tallied(10**5, paired(axis, 0.005)))
