"""Philox 4x32-10 against its published vectors, the documented counters, and the normal law."""

import math

import numba
import numpy as np
import pytest
from scipy import stats

from thermodiff.kernels import philox
from thermodiff.kernels.jit import FLAGS, LANES

FLAGS_HERE = {**FLAGS, "cache": False}
KEY = np.array([0x12345678, 0x9ABCDEF0], dtype=np.uint32)
BLOCKS = 1024
STEPS = 2

# Random123, kat_vectors: philox4x32 10; counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@numba.njit("UniTuple(u8, 4)(u8, u8, u8, u8, u8, u8)", **FLAGS_HERE)
def compiled(c0, c1, c2, c3, k0, k1):
    return philox.philox(c0, c1, c2, c3, k0, k1)


@numba.njit("void(u4[::1], i8, i8, i8, f8[:, ::1])", **FLAGS_HERE)
def uniforms(key, path, group, purpose, out):
    philox.fill_uniforms(key, path, group, purpose, out)


@numba.njit("void(u8[::1], u8[::1], f8[::1], f8[::1])", **FLAGS_HERE)
def pairs(one, two, x, y):
    for n in range(0, one.size, 2):
        first, second = philox.squared_radius(one[n]), philox.squared_radius(one[n + 1])
        x[n], y[n], x[n + 1], y[n + 1] = philox.box_muller(first, second, two[n], two[n + 1])


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox 4x32-10 in Python integers, from the definition in Salmon et al."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def plain_normal(key: np.ndarray, path: int, step: int, coordinate: int, dim: int, purpose: int) -> tuple[float, float]:
    """The normal of the documented counter and its radius, by Box-Muller."""
    index = step * dim + coordinate
    words = plain_philox((path & 0xFFFFFFFF, path >> 32, index // 4, purpose), (int(key[0]), int(key[1])))
    one, two = words[index % 4 // 2 * 2 : index % 4 // 2 * 2 + 2]
    radius = math.sqrt(-2.0 * math.log((one + 0.5) / 2.0**32))
    # An eighth of a turn to both sides of the x axis; then the sign of x; then the exchange of x and y.
    angle = 0.5 * math.pi * ((two % 2**30 | 1) / 2.0**30 - 0.5)
    x, y = math.cos(angle) * (-1.0 if two >> 31 else 1.0), math.sin(angle)
    if two >> 30 & 1:
        x, y = y, x
    return radius * (x if index % 2 == 0 else y), radius


def normals(
    key: np.ndarray, step: int, dim: int, purpose: int = philox.PATH, first: int = 0, blocks: int = BLOCKS
) -> np.ndarray:
    out = np.empty((dim, blocks * LANES))
    philox.noise(key, first, first + blocks, step, purpose, out)
    return out


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """(step, coordinate, path): two steps of three coordinates."""
    return np.stack([normals(KEY, step, 3) for step in range(STEPS)])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_published_vectors(counter, key, expected) -> None:
    assert tuple(compiled(*map(np.uint64, (*counter, *key)))) == expected
    assert plain_philox(counter, key) == expected


@pytest.mark.parametrize("first", [0, 5, 2**24 - 1, 2**24, 3 * 2**24 + 7], ids=lambda block: f"block {block}")
@pytest.mark.parametrize(("dim", "step"), [(1, 0), (1, 6), (2, 3), (3, 1), (5, 2), (9, 1000)])
def test_normals_follow_the_documented_counter(first: int, dim: int, step: int) -> None:
    found = normals(KEY, step, dim, philox.NOISE, first, 1)
    for lane in (0, 1, 255):
        for coordinate in range(dim):
            expected, radius = plain_normal(KEY, first * LANES + lane, step, coordinate, dim, philox.NOISE)
            assert abs(found[coordinate, lane] - expected) < 2e-11 * radius


def test_box_muller_over_all_of_its_range() -> None:
    """Against long doubles: relative to the radius, a tenth of the distance between neighbouring uniforms."""
    rng = np.random.default_rng(0)
    ends = np.array([0, 1, 2, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2, 2**32 - 1], dtype=np.uint64)
    one, two = (
        np.concatenate([np.repeat(ends, ends.size), rng.integers(2**32, size=60_001, dtype=np.uint64)]) for _ in "ab"
    )
    two[: ends.size**2] = np.tile(ends, ends.size)
    x, y = np.empty(one.size), np.empty(one.size)
    pairs(one, two, x, y)
    wide = np.longdouble
    radius = np.sqrt(-2.0 * np.log((one.astype(wide) + wide(0.5)) / wide(2.0) ** 32))
    angle = (((two % 2**30) | np.uint64(1)).astype(wide) / wide(2.0) ** 30 - wide(0.5)) * (2.0 * np.arctan(wide(1.0)))
    cosine, sine = np.cos(angle) * np.where(two >> np.uint64(31), -1.0, 1.0), np.sin(angle)
    swap = (two >> np.uint64(30)) % np.uint64(2) == 1
    assert np.max(np.abs(x - radius * np.where(swap, sine, cosine)) / radius) < 2e-11
    assert np.max(np.abs(y - radius * np.where(swap, cosine, sine)) / radius) < 2e-11
    assert np.all(x != 0.0)
    assert np.all(y != 0.0)


def test_uniforms_are_the_midpoints_of_the_words() -> None:
    out = np.empty((4, LANES))
    uniforms(KEY, 2**33 + 512, 9, philox.COMPONENT, out)
    for lane in range(LANES):
        words = plain_philox((512 + lane, 2, 9, philox.COMPONENT), (int(KEY[0]), int(KEY[1])))
        assert out[:, lane].tolist() == [(word + 0.5) / 2.0**32 for word in words]


def test_purposes_are_distinct_streams() -> None:
    purposes = [philox.COMPONENT, philox.START, philox.NOISE, philox.PATH, philox.PROBE, philox.TRAINING]
    assert len(set(purposes)) == 6
    first = [normals(KEY, 0, 1, purpose, blocks=4)[0] for purpose in purposes]
    for i in range(6):
        for j in range(i):
            assert not np.any(first[i] == first[j])


def test_consecutive_ranges_join_to_the_whole() -> None:
    whole = normals(KEY, 3, 3, blocks=8)
    parts = [normals(KEY, 3, 3, first=first, blocks=size) for first, size in ((0, 1), (1, 3), (4, 4))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def normality_failures(z: np.ndarray) -> list[str]:
    """Which of the tests of normality the sample fails; the detector used for the sabotaged normals too."""
    n, failures = z.size, []
    if np.count_nonzero(z == 0.0):
        failures.append("zeros")
    if np.abs(z).max() >= 6.8:
        failures.append("range")
    if stats.kstest(z, "norm").pvalue < 1e-4:
        failures.append("ks")
    for name, power, mean, variance in (
        ("mean", 1, 0.0, 1.0), ("variance", 2, 1.0, 2.0), ("skewness", 3, 0.0, 15.0), ("kurtosis", 4, 3.0, 96.0),
    ):  # fmt: skip
        if abs(np.mean(z**power) - mean) > 4.0 * np.sqrt(variance / n):
            failures.append(name)
    return failures


def test_normals_are_normal(draws: np.ndarray) -> None:
    for step in range(STEPS):
        for coordinate in range(3):
            assert normality_failures(draws[step, coordinate]) == []


def test_the_tails_are_there(draws: np.ndarray) -> None:
    """Counts beyond 3, 4 and 5 standard deviations: neither too many nor too few for Poisson, at four standard errors."""
    for edge in (3.0, 4.0, 5.0):
        expected = draws.size * 2.0 * stats.norm.sf(edge)
        found = np.count_nonzero(np.abs(draws) > edge)
        too_many, too_few = stats.poisson.sf(found - 1, expected), stats.poisson.cdf(found, expected)
        assert min(too_many, too_few) > stats.norm.sf(4.0)


def test_normals_with_half_set_to_zero_are_caught() -> None:
    """Sabotage: the failure that `reassoc` once caused, zeros for half of the normals, at the right variance."""
    z = normals(KEY, 0, 1)[0] * np.sqrt(2.0)
    z[::2] = 0.0
    assert {"zeros", "ks", "kurtosis"} <= set(normality_failures(z))


def correlation_z(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(a * b) * np.sqrt(a.size))


def square_correlation_z(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a * a - 1.0) * (b * b - 1.0)) / 2.0 * np.sqrt(a.size))


def test_coordinates_and_steps_are_uncorrelated(draws: np.ndarray) -> None:
    rows = draws.reshape(-1, draws.shape[-1])
    for i in range(rows.shape[0]):
        for j in range(i):
            assert abs(correlation_z(rows[i], rows[j])) < 4.0
            assert abs(square_correlation_z(rows[i], rows[j])) < 4.0


def test_neighbouring_paths_are_uncorrelated(draws: np.ndarray) -> None:
    z = draws[0, 0]
    for lag in (1, 2, LANES):
        assert abs(correlation_z(z[:-lag], z[lag:])) < 4.0
        assert abs(square_correlation_z(z[:-lag], z[lag:])) < 4.0


@pytest.mark.parametrize("word", [0, 1])
def test_keys_that_differ_by_one_give_uncorrelated_normals(draws: np.ndarray, word: int) -> None:
    other = KEY.copy()
    other[word] += 1
    z = normals(other, 0, 3)
    for coordinate in range(3):
        assert abs(correlation_z(z[coordinate], draws[0, coordinate])) < 4.0
        assert abs(square_correlation_z(z[coordinate], draws[0, coordinate])) < 4.0
