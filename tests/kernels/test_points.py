"""The point of one lane: a view in many dimensions does what a tuple does, and is compiled in a time that hardly grows with d."""

import math
import time

import numpy as np
import pytest

import thermodiff as td
from thermodiff.kernels import user
from thermodiff.kernels.points import PointType
from thermodiff.kernels.user import UserFunctionError

WEIGHTS = np.linspace(0.5, 2.0, 64)


def central(function, x, t: float, params=()) -> np.ndarray:
    """Minus the gradient of a plain function at x, by central differences of fourth order."""
    found = np.zeros(len(x))
    for i in range(len(x)):
        step = np.zeros(len(x))
        step[i] = 1e-3
        value = [function(tuple((x + n * step).tolist()), t, *params) for n in (-2, -1, 1, 2)]
        found[i] = -(value[0] - 8.0 * value[1] + 8.0 * value[2] - value[3]) / 12e-3
    return found


def pair(a, b):
    return 1.0 / math.sqrt((a - b) ** 2 + 0.5)


def neighbours(x, k):
    return 0.5 * k * sum([(a - b) ** 2 for a, b in zip(x[1:], x)])  # noqa: B905 (Numba has no strict=)


def in_a_loop(x, t, k):
    total = 0
    for i in range(len(x)):
        total += k * (1.0 - math.cos(x[(i + 1) % len(x)] - x[i]))
    return total + t * x[-1]


def in_lists(x, t, k):
    return sum([v**4 for v in x]) + neighbours(x, k) + np.sum([i * v for i, v in enumerate(x)])


def in_pairs(x, t, k):
    n = len(x)
    return (
        sum([k * pair(x[i], x[j]) for i in range(n) for j in range(i)]) + 0.5 * np.dot(x, x) + np.dot(WEIGHTS[: len(x)], x)
    )


def in_particles(x, t, k):
    """Lennard-Jones forces between particles in the plane."""
    total = 0.0
    for i in range(0, len(x) - 1, 2):
        for j in range(0, i, 2):
            r2 = (x[i] - x[j]) ** 2 + (x[i + 1] - x[j + 1]) ** 2 + 1.0
            total += 4.0 * k * (r2**-6 - r2**-3)
    return total


def in_parts(x, t, k):
    """Slices, also of slices and from the end, indices from the end, and functions of a whole point."""
    odd, even, back = x[1::2], x[::2], x[::-1]
    total = 0.0
    for a, b in zip(odd[1:], even):  # noqa: B905 (Numba has no strict=)
        total += k * a * b
    for a in x[-2:1:-1]:
        total += a**3
    return (
        total
        + back[0] * back[3:][-1]
        + max(x) * min(x)
        + sum(x[-3:]) ** 2
        + len(odd) * odd[-1]
        + len(x[5:2])
        + x[-2:][1] ** 2
    )


ENERGIES = [in_a_loop, in_lists, in_pairs, in_particles, in_parts]


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("dim", [7, 8, 13])
def test_energies_have_the_slopes_of_their_differences(energy, dim: int) -> None:
    # At even places: near a change of the largest, differences would mislead.
    x = np.random.default_rng(dim).permuted(np.tile(np.linspace(-1.3, 1.7, dim), (3, 1)), axis=1)
    found = td.potential(energy).at(x, 0.3, (1.5,))
    expected = [central(energy, point, 0.3, (1.5,)) for point in x]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("energy", [in_a_loop, in_pairs])
def test_the_time_to_compile_is_that_of_one_loop(energy) -> None:
    """Ten times what it takes; with a jump for each index, and a tuple of duals under ``try``, it was a minute."""
    begin = time.process_time()
    assert np.isfinite(td.potential(energy).at(np.full((1, 64), 0.1), 0.0, (1.0,))).all()
    assert time.process_time() - begin < 20.0


def test_a_view_is_taken_without_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices in a loop over all coordinates cannot be out of range, and the compiler sees it."""
    monkeypatch.setattr(user, "_guarded", None)
    x = np.random.default_rng(3).normal(size=(2, 20))
    np.testing.assert_allclose(
        td.potential(in_a_loop).at(x, 0.0, (2.0,)),
        2.0 * (np.sin(np.roll(x, -1, axis=1) - x) - np.sin(x - np.roll(x, 1, axis=1))),
        rtol=1e-12,
        atol=1e-13,
    )


def closed(x, t):
    y = (*x, x[0])
    return sum([(y[i + 1] - y[i]) ** 2 for i in range(len(x))])


def compared(x, t):
    return 1.0 * x[0] ** 2 if x == x[::-1] else x[1] ** 2


@pytest.mark.parametrize("energy", [closed, compared])
def test_what_only_a_tuple_can_do_is_done_by_a_tuple(energy) -> None:
    x = np.random.default_rng(4).normal(size=(2, 9))
    expected = [central(energy, point, 0.0) for point in x]
    np.testing.assert_allclose(td.potential(energy).at(x), expected, rtol=1e-8, atol=1e-8)


def nine(x, t):
    a, b, c, d, e, f, g, h, i = x
    return a * b, b * c, c * d, d * e, e * f, f * g, g * h, h * i, i * a


def test_a_view_is_unpacked() -> None:
    x = np.random.default_rng(5).normal(size=(2, 9))
    np.testing.assert_allclose(td.drift(nine).at(x), x * np.roll(x, -1, axis=1), rtol=1e-15)


def far(x, t):
    return x[int(x[0])] ** 2 + x[1]


def far_back(x, t):
    return x[2:][-int(x[0])] ** 2 + x[1]


@pytest.mark.parametrize("energy", [far, far_back])
def test_an_index_beyond_a_view_gives_nan_for_that_path(energy) -> None:
    x = np.zeros((4, 9))
    x[:, 0], x[:, 7], x[:, 8] = [7.5, 9.5, 1e9, -1e9], 2.0, 3.0
    found = td.potential(energy).at(x)
    assert np.isnan(found[1:]).all()
    assert np.isfinite(found[0]).all()


def test_a_number_beyond_a_view_gets_a_sentence() -> None:
    def beyond(x, t):
        return x[0] if x[0] < 5.0 else x[9]

    with pytest.raises(UserFunctionError, match="beyond: an index is out of range; it must use"):
        td.potential(beyond).at(np.zeros((1, 9)))


FORMS = {
    "a comprehension": lambda x, t, k: tuple([-k * (v**3 - v) for v in x]),
    "an array": lambda x, t, k: tuple(-k * (np.array(x) ** 3 - np.array(x))),
    "a slice": lambda x, t, k: tuple([-k * (v**3 - v) for v in x][:]),
}


def appended(x, t, k):
    out = []
    for i in range(len(x)):
        out.append(-k * (x[i] ** 3 - x[i]))
    return tuple(out)


def added(x, t, k):
    out = [0.0] * len(x)
    for i in range(len(x)):
        out[i] += k * x[i]
        out[i] -= k * x[i] ** 3
    return tuple(out)


@pytest.mark.parametrize("function", [*FORMS.values(), appended, added])
@pytest.mark.parametrize("dim", [2, 9])
def test_a_drift_may_return_a_tuple_made_of_a_list_or_an_array(function, dim: int) -> None:
    x = np.random.default_rng(6).normal(size=(300, dim))
    np.testing.assert_allclose(td.drift(function).at(x, 0.0, (1.5,)), -1.5 * (x**3 - x), rtol=1e-13, atol=1e-14)


def test_a_tuple_made_of_a_list_of_another_length_is_refused() -> None:
    def short(x, t):
        return tuple([math.log(v - 0.5) for v in x[:1]])

    with pytest.raises(UserFunctionError, match="short, compiled, does not compute what it does in plain Python"):
        td.drift(short).at(np.ones((1, 2)))


@pytest.mark.parametrize("dim", [3, 9])
def test_levels_of_noise_in_many_dimensions(dim: int) -> None:
    @td.diffusivity
    def level(x, t, k):
        return tuple([1.0 + k * x[i] ** 2 * x[i - 1] ** 2 for i in range(len(x))])

    x = np.random.default_rng(7).normal(size=(3, dim))
    before = np.roll(x, 1, axis=1)
    expected = np.hstack([1.0 + 0.5 * (x * before) ** 2, x * before**2])
    np.testing.assert_allclose(level.at(x, 0.0, (0.5,)), expected, rtol=1e-14)


def test_a_part_has_no_fixed_length() -> None:
    """Helpers are compiled once for all parts."""
    assert PointType(1.0, None) == PointType(1.0, None)
    assert PointType(1.0, 8) != PointType(1.0, None)
