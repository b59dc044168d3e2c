"""Dual numbers: every operator, as compiled, against derivatives to forty digits and closed forms."""

import math
import operator

import mpmath
import numba
import numpy as np
import pytest
from duals import POINTS, exact, force, in_both_directions

import thermodiff as td
from thermodiff.kernels import dual, user

OPERATORS = [
    lambda a, b: a + b,
    lambda a, b: a + 2 + b,
    lambda a, b: 3.5 + a + b,
    lambda a, b: a - b,
    lambda a, b: (a - 2) * b,
    lambda a, b: (2 - a) * b,
    lambda a, b: 3 * a * (b * 2.5),
    lambda a, b: a / b,
    lambda a, b: a / 2 * b,
    lambda a, b: 1 / a * b,
    lambda a, b: -a * b,
    lambda a, b: +a * b,
    lambda a, b: a % 0.3 * b,
    lambda a, b: a % b,
    lambda a, b: 2.5 % a + b,
    lambda a, b: a**0 * b,
    lambda a, b: a**1 * b,
    lambda a, b: a**2 * b,
    lambda a, b: a**5 * b,
    lambda a, b: a**-1 * b,
    lambda a, b: a**-3 * b,
    lambda a, b: a**2.5 * b,
    lambda a, b: a**-0.5 * b,
    lambda a, b: 2.5**a * b,
    lambda a, b: 2**a * b,
    lambda a, b: a**b,
]


def test_operators() -> None:
    evaluate = in_both_directions(OPERATORS)
    for a, b in POINTS:
        expected = [exact(function, a, b) for function in OPERATORS]
        np.testing.assert_allclose(evaluate(a, b), expected, rtol=1e-14, atol=1e-15, err_msg=f"{a}, {b}")


# name of the stub, the same by mpmath, arguments
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


def test_comparisons_are_those_of_the_values() -> None:
    @numba.njit
    def compiled(a, b):
        one, two = dual.dual(a, 1.0), dual.dual(b, -1.0)
        return (
            (one < two, one <= two, one > two, one >= two, one == two, one != two),
            (one < b, one <= b, one > b, one >= b, one == b, one != b),
            (a < two, a <= two, a > two, a >= two, a == two, a != two),
        )

    for a, b in ((1.0, 2.0), (2.0, 1.0), (1.5, 1.5)):
        assert compiled(a, b) == (tuple(compare(a, b) for compare in COMPARISONS),) * 3


def test_powers_at_zero_and_of_negative_numbers() -> None:
    """x**0 has no slope at 0, and a whole exponent takes negative numbers, whatever its type."""

    def powers(x, t, n):
        total = 0.0
        for k in range(4):
            total += x[0] ** k
        constant = 0.0 * x[1] + n
        return total + x[0] ** n + x[0] ** 3 + x[0] ** 0 + x[0] ** 0.0 + x[0] ** constant

    assert force(powers, (0.0, 0.0), (2.0,))[0] == -1.0
    x = -1.5
    assert force(powers, (x, 0.3), (2.0,))[0] == pytest.approx(-(1 + 2 * x + 6 * x**2 + 4 * x), rel=1e-15)


def test_accumulators_that_begin_as_numbers() -> None:
    def from_float(x, t):
        total = 0.0
        for value in x:
            total += value**2
        return total

    def from_int(x, t):
        total = 0
        for i in range(len(x)):
            total += x[i]
            total *= 2
            total -= x[i] * x[i]
            total /= 4
            total **= 2
        return total

    def by_sum(x, t):
        return sum([value * value for value in x])

    x = np.array([0.3, -0.8, 1.7])
    np.testing.assert_allclose(force(from_float, x), -2.0 * x, rtol=1e-15)
    np.testing.assert_allclose(force(by_sum, x), -2.0 * x, rtol=1e-15)
    with mpmath.workdps(40):
        point = tuple(map(mpmath.mpf, x))
        slopes = [mpmath.diff(lambda *x: from_int(x, 0), point, n=tuple(row)) for row in np.eye(3, dtype=int).tolist()]
    np.testing.assert_allclose(force(from_int, x), -np.array(slopes, dtype=float), rtol=1e-14)


def test_branches_follow_the_value_and_may_give_numbers() -> None:
    def wall(x, t, edge):
        if x[0] > edge:
            return (x[0] - edge) ** 2
        if x[0] < -edge and x[1] > 0:
            return -x[0] * x[1]
        return 0

    assert force(wall, (1.5, 0.0), (1.0,)).tolist() == [-1.0, 0.0]
    assert force(wall, (-2.0, 3.0), (1.0,)).tolist() == [3.0, -2.0]
    assert force(wall, (-2.0, -3.0), (1.0,)).tolist() == [0.0, 0.0]


def test_a_constant_potential_has_no_force() -> None:
    assert force(lambda x, t, k: k, (0.3, 0.4), (2.0,)).tolist() == [0.0, 0.0]


def chain(x, t, k, height):
    """Eight beads on springs in a periodic landscape."""
    energy = 0.0
    for i in range(8):
        energy += height * np.cos(2.0 * math.pi * x[i])
        if i > 0:
            stretch = x[i] - x[i - 1] - 0.5
            energy += 0.5 * k * stretch**2 + 0.01 * math.exp(-(stretch**2)) / (1.0 + stretch**4)
    return energy


def test_a_chain_of_eight_beads() -> None:
    x = np.cumsum(0.5 + 0.3 * np.random.default_rng(0).standard_normal((300, 8)), axis=1)
    k, height = 3.0, 0.7
    s = np.diff(x, axis=1) - 0.5
    bond = k * s + 0.01 * np.exp(-(s**2)) * (-2.0 * s / (1.0 + s**4) - 4.0 * s**3 / (1.0 + s**4) ** 2)
    expected = 2.0 * math.pi * height * np.sin(2.0 * math.pi * x)
    expected[:, 1:] -= bond
    expected[:, :-1] += bond
    np.testing.assert_allclose(td.potential(chain).at(x, 0.0, (k, height)), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dim", [7, 8, 9])
def test_both_ways_to_write_a_gradient(dim: int) -> None:
    """From eight dimensions on the function is compiled once for all directions."""

    def energy(x, t, k):
        total = t
        for i in range(dim - 1):
            total += 0.5 * k * (x[i + 1] - x[i]) ** 2
        return total + math.sin(x[0]) * x[dim - 1]

    x = np.random.default_rng(4).standard_normal((300, dim))
    bond = 2.5 * np.diff(x, axis=1)
    expected = np.zeros_like(x)
    expected[:, :-1] += bond
    expected[:, 1:] -= bond
    expected[:, 0] -= np.cos(x[:, 0]) * x[:, -1]
    expected[:, -1] -= np.sin(x[:, 0])
    np.testing.assert_allclose(td.potential(energy).at(x, 0.3, (2.5,)), expected, rtol=1e-13, atol=1e-13)


def test_a_gradient_of_64_coordinates_is_written_once() -> None:
    """The time to compile it is that of one evaluation: the source grows with d, not with its square."""
    assert len(user._source(64, 1, "gradient")) < 10 * len(user._source(8, 1, "gradient"))


def test_derivatives_of_a_diffusivity() -> None:
    """Rows D_i, then dD_i/dx_i; a constant among them has none."""

    @td.diffusivity
    def level(x, t, a):
        return a + math.sin(x[0]) ** 2 * x[1] + t, 3, x[2] * np.exp(-x[0])

    x = np.random.default_rng(1).standard_normal((5, 3))
    found = level.at(x, 0.25, (2.0,))
    expected = [
        2.25 + np.sin(x[:, 0]) ** 2 * x[:, 1], 3.0 + 0.0 * x[:, 0], x[:, 2] * np.exp(-x[:, 0]),
        np.sin(2.0 * x[:, 0]) * x[:, 1], 0.0 * x[:, 0], np.exp(-x[:, 0]),
    ]  # fmt: skip
    np.testing.assert_allclose(found, np.array(expected).T, rtol=1e-14, atol=1e-15)
