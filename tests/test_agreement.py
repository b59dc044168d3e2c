"""Compiled fields that do not compute what the plain function does are refused, and no others."""

import math

import numpy as np
import pytest
from user_dynamics import closure, double_well, swirl, warm

import thermodiff as td
from thermodiff._agreement import disagreement, points_to_try, slope_disagreement

TEN = 10


def negative_power(x, t):
    return (-(TEN**-2) * 100 * x[0],)


def negative_powers(x, t):
    energy = 0.0
    for n in range(1, 4):
        energy += 10 ** (-n) * x[0] ** (2 * n)
    return energy


def negative_power_of_noise(x, t):
    return (TEN**-1 * (1 + x[0] ** 2),)


def negative_power_filled(x, t, out):
    for i in range(len(x)):
        out[i] = -(TEN**-1) * x[i]


def factorials(x, t):
    total, factorial = 0.0, 1
    for n in range(1, 31):
        factorial *= n
        total += x[0] ** n / factorial
    return (-total,)


def halves(x, t):
    total = 0.0
    for n in range(70):
        total += x[0] / 2**n
    return (-total,)


def large_square(x, t):
    a = 3037000500
    return (x[0] * (a * a) / 1e18,)


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (td.drift, negative_power),
        (td.potential, negative_powers),
        (td.diffusivity, negative_power_of_noise),
        (lambda function: td.drift(function, fills=True), negative_power_filled),
        (td.drift, factorials),
        (td.drift, halves),
        (td.drift, large_square),
    ],
)
def test_whole_numbers_that_go_wrong_are_refused(make, function) -> None:
    with pytest.raises(
        TypeError, match=rf"{function.__name__}, compiled, does not compute .* with a point \(10\.0, not 10\)"
    ):
        make(function).at([[2.5]])


def test_the_remainder_of_whole_numbers_is_right() -> None:
    assert td.drift(lambda x, t: (math.fmod(-7, 3) * x[0],)).at([[2.0]])[0, 0] == -2.0


def rough(x, t):
    return (math.floor(5.0 * x[0]) + (1.0 if x[0] > 0.3 else -1.0), math.sin(1e9 * x[1]) + abs(x[0]))


def narrow(x, t):
    return (math.log(x[0]) + math.sqrt(4.0 - x[1]), 1.0 / (x[0] - x[1]) ** 13)


def large(x, t):
    return (math.exp(x[0] * x[0]), 1e300 * x[1] ** 3)


def kinked(x, t):
    return abs(x[0]) + max(x[1], 0.3) + math.floor(x[0]) * 1e-3


def steep(x, t):
    return 1e8 + (1.0 / x[0]) ** 12 - (1.0 / x[1]) ** 6


def flat(x, t):
    return 3.0


def of_a_lattice(x, t):
    return 1e-12 * math.cos(2.0 * math.pi * x[0] / 532e-9) + math.cos(2.0 * math.pi * x[1] / 1e-6)


def below_the_last_digit(x, t):
    return math.sqrt(x[0] ** 2 + 1e16) - 1e8 + x[1]


SINES = np.sin(np.linspace(0.0, 10.0, 101)).astype(np.float32)


def of_a_rough_table(x, t):
    place = x[0] / 0.1
    i = int(place)
    return (-x[0] + SINES[i] * (1.0 - place + i) + SINES[i + 1] * (place - i), x[1])


@pytest.mark.parametrize(
    "field",
    [
        *(td.drift(function) for function in (rough, narrow, large, of_a_rough_table)),
        *(td.potential(function) for function in (kinked, steep, flat, of_a_lattice, below_the_last_digit)),
        closure(0.5),
    ],
)
def test_what_is_right_passes(field) -> None:
    assert field.at(np.ones((1, 2)) * [0.7, 0.4]).shape == (1, 2)


def test_the_fields_of_other_tests_pass() -> None:
    assert double_well.at([[0.5]], 0.0, [1.0]).shape == (1, 1)
    assert swirl.at([[0.5, 0.1]], 0.0, [1.0, 2.0]).shape == (1, 2)
    assert warm.kernel(2, warm.values_of([0.1] * len(warm.parameters))) is not None


def test_values_and_slopes_are_told_apart_where_they_differ() -> None:
    def plain(x, t):
        return np.sin(x) + t

    assert disagreement(plain, plain, 3) is None
    found = disagreement(plain, lambda x, t: plain(x, t) + 1e-4 * (x > 5.0), 1)
    assert found is not None
    assert found.x[0] > 5.0
    assert disagreement(lambda x, t: 1 / 0, plain, 1) is None
    assert disagreement(plain, lambda x, t: plain(x, t) * np.nan, 1) is not None

    def energy(x, t):
        return np.cos(x).sum()

    assert slope_disagreement(energy, lambda x, t: np.sin(x), 4) is None
    assert slope_disagreement(energy, lambda x, t: 1.1 * np.sin(x), 4) is not None
    assert slope_disagreement(energy, lambda x, t: np.sin(x) * np.nan, 4) is not None
    assert slope_disagreement(energy, lambda x, t: 0.0 * x, 4) is not None


def test_the_points_are_of_all_sizes() -> None:
    points = points_to_try(3)
    assert np.abs(points).max() > 10.0
    assert np.abs(points).min() < 0.1
    assert (points < 0.0).any()
