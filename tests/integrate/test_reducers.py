"""Running statistics against NumPy on the whole ensemble."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from user_dynamics import double_well, swirl

import thermodiff as td
from thermodiff.integrate.reducers import Reducer, Running

VORTEX = td.Langevin(swirl, (1.0, 2.0), 0.5, dim=2)
X0 = 0.5 * np.random.default_rng(0).standard_normal((1500, 2))
GIVEN = {"times": [0.0, 0.2, 0.5], "dt": 0.05, "rng": 1}


def pieces_of(states: np.ndarray, reducer) -> list:
    edges = [0, 256, 512, 700, 701, states.shape[1]]
    return [reducer.of(states[:, low:high]) for low, high in pairwise(edges)]


def reduced(states: np.ndarray, reducer):
    running = Running(reducer)
    pieces = pieces_of(states, reducer)
    running.add(pieces[:2])
    running.add(pieces[2:])
    return running.result()


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_moments(offset: float) -> None:
    """Merged blocks of unequal size; far from zero, where squares would have lost everything."""
    states = np.random.default_rng(1).standard_normal((2, 1000, 3)) * [1.0, 2.0, 0.1] + offset
    found = reduced(states, td.Moments())
    assert found["n"] == 1000
    np.testing.assert_allclose(found["mean"], states.mean(axis=1), rtol=4e-15, atol=1e-15)
    for t in range(2):
        scale = np.sqrt(np.outer(states[t].var(axis=0), states[t].var(axis=0)))
        assert np.abs((found["covariance"][t] - np.cov(states[t].T)) / scale).max() < (1e-13 if offset == 0.0 else 1e-6)
    expected = states.std(axis=1, ddof=1) / np.sqrt(1000)
    np.testing.assert_allclose(found["mean_error"], expected, rtol=1e-13 if offset == 0.0 else 1e-6)


def test_moments_of_one_path() -> None:
    found = reduced(np.ones((2, 1, 1)), OnePiece())
    assert found["n"] == 1
    assert np.isnan(found["covariance"]).all()
    assert found["covariance"].shape == (2, 1, 1)
    assert np.isnan(found["mean_error"]).all()
    assert found["mean_error"].shape == (2, 1)


class OnePiece(td.Moments):
    """Blocks without paths give nothing, as in `simulate`."""

    def of(self, states):
        return super().of(states) if states.size else None

    def merge(self, one, two):
        return one if two is None else super().merge(one, two)


def test_histogram() -> None:
    states = np.random.default_rng(2).standard_normal((2, 1000, 3))
    edges = np.linspace(-2.0, 2.5, 10)
    found = reduced(states, td.Histogram(edges, 2))
    np.testing.assert_array_equal(found["edges"], edges)
    for t in range(2):
        np.testing.assert_array_equal(found["counts"][t], np.histogram(states[t, :, 2], edges)[0])
    assert 0 < found["counts"].sum() < 2000


TINY = float(np.nextafter(0.0, 1.0))


@pytest.mark.parametrize(
    "edges",
    [
        np.linspace(-2.0, 2.5, 10), np.arange(-3, 4) * 0.1, np.linspace(-1.0, 1.0, 1001), [0, 1], [0, 1, 2.2, 3], [-1, 0, 0.1, 3],
        [-np.inf, 0, np.inf], [0, 1, np.inf], [-1e308, 0, 1e308], np.linspace(1e15, 1e15 + 8, 9), [0, TINY], [1, 1 + 2**-52],
    ],
    ids=lambda edges: f"{len(edges)} edges from {edges[0]:g} to {edges[-1]:g}",
)  # fmt: skip
def test_counts_are_those_of_numpy(edges, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last number beside an edge, in one pass over a block."""
    rng, ends = np.random.default_rng(3), np.array([edge for edge in edges if np.isfinite(edge)], dtype=float)
    beside = [ends, np.nextafter(ends, np.inf), np.nextafter(ends, -np.inf), [np.nan, np.inf, -np.inf, -0.0]]
    part = rng.random(200)
    within = (1.0 - part) * ends[0] + part * ends[-1]
    values = np.concatenate([*beside, within, rng.standard_normal(200)])
    states = rng.permuted(np.tile(values, (40, 1)), axis=1)[:, :, None]
    with np.errstate(all="ignore"):
        expected = [np.histogram(row[:, 0], np.asarray(edges, dtype=float))[0] for row in states]
        monkeypatch.setattr(np, "histogram", None)
        np.testing.assert_array_equal(td.Histogram(edges).of(states), expected)


def test_moments_do_not_depend_on_the_layout() -> None:
    states = np.random.default_rng(4).standard_normal((5, 256, 3))
    turned = np.ascontiguousarray(states.transpose(0, 2, 1)).transpose(0, 2, 1)
    for one, two in zip(td.Moments().of(states), td.Moments().of(turned), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("edges", [[0.0], [1.0, 0.0], [0.0, 0.0, 1.0], [[0.0, 1.0]], [0.0, np.nan], "abc", None, [0.0, "a"]])
def test_edges_must_increase(edges) -> None:
    with pytest.raises(ValueError, match="Histogram: edges must be at least two increasing numbers, got"):
        td.Histogram(edges)


def test_the_coordinate_of_a_histogram() -> None:
    with pytest.raises(TypeError, match="Histogram: coordinate must be an integer, got 'a'"):
        td.Histogram([0, 1], coordinate="a")
    with pytest.raises(ValueError, match="Histogram: coordinate must be at least 0, got -1"):
        td.Histogram([0, 1], coordinate=-1)
    with pytest.raises(ValueError, match=r"Histogram: coordinate 2 does not exist; use 0 \.\.\. 1"):
        td.simulate(VORTEX, X0, reduce=td.Histogram([0, 1], coordinate=2), **GIVEN)


def test_sums_that_overflow_are_infinite_without_a_warning() -> None:
    """As those of paths on their way to infinity may, which were not lost in time."""
    states = np.array([1e200, -1e200, 1e300, 1e308]).reshape(1, 4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        running = Running(td.Moments())
        running.add([(2, states[:, k], np.full((1, 1, 1), 1e308)) for k in range(4)])
        assert not np.isfinite(running.result()["covariance"]).any()


class Extremes:
    """A reducer of a user's own."""

    def of(self, states):
        return states.min(axis=1), states.max(axis=1)

    def merge(self, one, two):
        return np.minimum(one[0], two[0]), np.maximum(one[1], two[1])

    def result(self, total):
        return {"low": total[0], "high": total[1]}


def test_statistics_of_a_run_are_those_of_its_states() -> None:
    states = td.simulate(VORTEX, X0, **GIVEN).states
    path = td.simulate(VORTEX, X0, reduce=td.Moments(), **GIVEN)
    assert path.states is None
    np.testing.assert_allclose(path.reduced["mean"], states.mean(axis=1), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(path.reduced["covariance"][2], np.cov(states[2].T), rtol=1e-12)
    edges = np.linspace(-1.0, 1.0, 6)
    counts = td.simulate(VORTEX, X0, reduce=td.Histogram(edges, 1), **GIVEN).reduced["counts"]
    np.testing.assert_array_equal(counts, [np.histogram(row[:, 1], edges)[0] for row in states])
    found = td.simulate(VORTEX, X0, reduce=Extremes(), **GIVEN).reduced
    np.testing.assert_array_equal(found["low"], states.min(axis=1))
    np.testing.assert_array_equal(found["high"], states.max(axis=1))


@pytest.mark.parametrize("process", [VORTEX, td.Langevin(double_well, (1.0,), 0.5, dim=1)], ids=["d = 2", "d = 1"])
def test_the_same_bits_for_any_chunk_and_executor(process) -> None:
    x0, times = X0[:, : process.dim], {**GIVEN, "dt": 0.01}
    reference = td.simulate(process, x0, reduce=td.Moments(), **times).reduced
    with ThreadPoolExecutor(3) as executor:
        others = [{"chunk": 1}, {"chunk": 2}, {"chunk": 5}, {"chunk": 1, "executor": executor}]
        for other in others:
            found = td.simulate(process, x0, reduce=td.Moments(), **times, **other).reduced
            for name, value in reference.items():
                np.testing.assert_array_equal(found[name], value)


def test_what_is_a_reducer() -> None:
    assert isinstance(td.Moments(), Reducer)
    assert isinstance(td.Histogram([0, 1]), Reducer)
    assert isinstance(Extremes(), Reducer)
    assert not isinstance(3.0, Reducer)


def test_what_is_no_reducer_is_refused() -> None:
    with pytest.raises(
        TypeError, match=re.escape("reduce must have the methods of, merge and result, got type; pass Moments()")
    ):
        td.simulate(VORTEX, X0, reduce=td.Moments, **GIVEN)
    with pytest.raises(TypeError, match="reduce must have the methods of, merge and result, got str"):
        td.simulate(VORTEX, X0, reduce="moments", **GIVEN)


def test_names() -> None:
    assert repr(td.Moments()) == "Moments()"
    assert repr(td.Histogram([0.0, 0.5, 2.0], 1)) == "Histogram(2 bins from 0 to 2, 1)"


class Silent:
    """Keeps nothing of the blocks."""

    def of(self, states):
        return None

    def merge(self, one, two):
        return None

    def result(self, total):
        return "finished"


def test_nothing_is_a_result_like_any_other() -> None:
    assert reduced(np.zeros((2, 3, 1)), Silent()) == "finished"
