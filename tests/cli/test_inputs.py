"""Data and schedules by name and from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thermodiff.cli.inputs import FINEST, HELD_OUT, read_data, read_schedule
from thermodiff.densities import GaussianMixture, PointCloud, Samples, paper_mixture
from thermodiff.schedules import VE, VP, CondOT, Cosine, Schedule, StraightLine, SubVP


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("VP", VP()),
        ("VPx", VP(scale=0.1)),
        ("SL", StraightLine(scale=0.1)),
        ("StraightLine", StraightLine()),
        ("VE", VE()),
        ("SubVP", SubVP()),
        ("Cosine", Cosine()),
        ("CondOT", CondOT()),
    ],
)
def test_schedules(name: str, noise: Schedule) -> None:
    assert read_schedule(name) == noise


def test_unknown_schedule_names_each_choice_once() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'Linear'") as caught:
        read_schedule("Linear")
    choices = str(caught.value).split("choose from ")[1].rstrip(".").split(", ")
    assert sorted(choices) == sorted(["VP", "VPx", "SL", "StraightLine", "VE", "SubVP", "Cosine", "CondOT"])
    for name in choices:
        read_schedule(name)


def test_published_mixture() -> None:
    problem = read_data("mixture", 0)
    law = paper_mixture(3)
    assert problem.train is problem.law
    assert problem.held_out is None
    assert problem.top is None
    np.testing.assert_array_equal(problem.law.mean(), law.mean())
    np.testing.assert_array_equal(problem.law.covariance(), law.covariance())


def write(path: Path, record: Any) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def test_isotropic_mixture_in_a_file(tmp_path: Path) -> None:
    record = {"means": [[-1.0, 0.0], [1.0, 2.0]], "stds": [0.3, 0.5], "weights": [0.4, 0.6]}
    problem = read_data(write(tmp_path / "a.json", record), 0)
    law = GaussianMixture(**record)
    assert isinstance(problem.law, GaussianMixture)
    assert problem.law.label == law.label
    np.testing.assert_array_equal(problem.law.covariance(), law.covariance())
    x = np.random.default_rng(0).standard_normal((5, 2))
    np.testing.assert_array_equal(problem.law.score(x), law.score(x))


def test_mixture_with_covariances_in_a_file(tmp_path: Path) -> None:
    record = {"means": [[0.0, 1.0], [2.0, 0.0]], "covs": [[[1.0, 0.2], [0.2, 0.5]], [[0.3, 0.0], [0.0, 0.4]]]}
    law = read_data(write(tmp_path / "a.json", record), 0).law
    np.testing.assert_allclose(law.mean(), [1.0, 0.5])  # equal weights
    assert "full covariances" in law.label


def test_one_std_for_all(tmp_path: Path) -> None:
    law = read_data(write(tmp_path / "a.json", {"means": [[0.0], [1.0]], "stds": 0.5}), 0).law
    assert law.covariance()[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, bool])
def test_vectors_in_a_file(tmp_path: Path, dtype: type) -> None:
    x = (3.0 * np.random.default_rng(1).random((50, 3))).round().astype(dtype)
    np.savez(tmp_path / "a.npz", points=x, labels=np.arange(50))  # arrays of other shapes are left alone
    problem = read_data(str(tmp_path / "a.npz"), 0)
    assert isinstance(problem.law, PointCloud)
    assert isinstance(problem.train, Samples)
    assert problem.train.points.shape == (40, 3)
    assert problem.held_out.points.shape == (10, 3)
    np.testing.assert_array_equal(problem.law.points, problem.train.points)
    together = np.concatenate([problem.train.points, problem.held_out.points])
    assert sorted(map(tuple, together)) == sorted(map(tuple, x.astype(np.float64)))
    spread = np.sqrt(problem.train.points.var(0).mean())
    assert np.exp(-0.5 * problem.top) == pytest.approx(FINEST * spread, rel=0.03)


def test_compressed_vectors(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((20, 2))
    np.savez_compressed(tmp_path / "a.npz", x=x)
    assert read_data(str(tmp_path / "a.npz"), 0).train.points.shape == (16, 2)


def test_the_seed_fixes_the_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(1).standard_normal((50, 2)))
    one, two, other = (read_data(str(tmp_path / "a.npz"), seed).held_out.points for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("n", "held"), [(4, 2), (5, 2), (10, 2), (15, 3), (100, 20)])
def test_sizes_of_the_split(tmp_path: Path, n: int, held: int) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(1).standard_normal((n, 2)))
    problem = read_data(str(tmp_path / "a.npz"), 0)
    assert problem.held_out.points.shape[0] == held == max(2, round(HELD_OUT * n))
    assert problem.train.points.shape[0] == n - held


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_vectors(tmp_path: Path, n: int) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(1).standard_normal((n, 2)))
    with pytest.raises(ValueError, match=f"got {n} vectors; at least 4"):
        read_data(str(tmp_path / "a.npz"), 0)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    problem = read_data("digits", 0)
    assert problem.train.points.shape == (1438, 64)
    assert problem.held_out.points.shape == (359, 64)
    assert problem.train.points.min() == 0.0
    assert problem.train.points.max() == 1.0
    assert problem.top == pytest.approx(7.2, abs=0.2)


@pytest.mark.parametrize("name", ["", "digit", "Mixture", "a.txt", "a.npy", "npz"])
def test_unknown_data(name: str) -> None:
    with pytest.raises(ValueError, match=r"give 'mixture', 'digits', a FILE.json or a FILE.npz"):
        read_data(name, 0)


def test_an_encrypted_member_gets_a_sentence(tmp_path: Path) -> None:
    """A single flipped bit says so; zipfile raises RuntimeError then."""
    file = tmp_path / "a.npz"
    np.savez(file, x=np.random.default_rng(1).standard_normal((50, 2)))
    content = bytearray(file.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="a.npz"):
        read_data(str(file), 0)
