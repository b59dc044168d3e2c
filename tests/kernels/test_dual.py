"""Dual numbers: every operator and function, as compiled, against derivatives to forty digits and closed forms."""

import math
import operator

import mpmath
import numba
import numpy as np
import pytest

import thermodiff as td
from thermodiff.kernels import dual, user

POINTS = [(0.7, 1.3), (1.9, 0.4), (0.31, 0.32)]


def exact(function, a: float, b: float) -> tuple[float, float, float]:
    """Value and derivatives by mpmath."""
    with mpmath.workdps(40):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        slopes = mpmath.diff(lambda u: function(u, b), a), mpmath.diff(lambda u: function(a, u), b)
        return float(function(a, b)), float(slopes[0]), float(slopes[1])


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


def together(functions, given: str):
    """All of the functions compiled as one, which returns a tuple; a compilation each would take half a minute."""
    names = {f"f{k}": function for k, function in enumerate(functions)}
    exec(f"def all_of_them({given}): return {', '.join(f'{name}({given})' for name in names)},", names)
    return user._compiled(names["all_of_them"], dual.REPLACED, inlined=True, outer=())


def in_both_directions(functions):
    """(a, b) -> (functions, 3): values, derivatives by a, derivatives by b."""
    compiled = together(functions, "a, b")

    @numba.njit
    def flat(a, b, out):
        for k in range(2):
            found = compiled(dual.dual(a, 1.0 - k), dual.dual(b, 0.0 + k))
            for j in range(len(found)):
                out[j, 0], out[j, 1 + k] = found[j].value, found[j].slope

    def evaluate(a: float, b: float) -> np.ndarray:
        out = np.empty((len(functions), 3))
        flat(a, b, out)
        return out

    return evaluate


def test_operators() -> None:
    evaluate = in_both_directions(OPERATORS)
    for a, b in POINTS:
        expected = [exact(function, a, b) for function in OPERATORS]
        np.testing.assert_allclose(evaluate(a, b), expected, rtol=1e-14, atol=1e-15, err_msg=f"{a}, {b}")


# name of the stub, the same by mpmath, arguments
FUNCTIONS = {
    "exp": (mpmath.exp, (-700.0, -1.5, 0.0, 0.3, 300.0)),
    "expm1": (mpmath.expm1, (-2.0, -1e-9, 0.0, 1e-12, 0.3, 50.0)),
    "log": (mpmath.log, (1e-300, 0.2, 1.0, 17.0, 1e200)),
    "log1p": (mpmath.log1p, (-0.9, -1e-9, 0.0, 1e-12, 0.3, 50.0)),
    "sqrt": (mpmath.sqrt, (1e-300, 0.2, 1.0, 17.0, 1e200)),
    "sin": (mpmath.sin, (-50.0, -1.5, 0.0, 1e-9, 0.3, 1e6)),
    "cos": (mpmath.cos, (-50.0, -1.5, 0.0, 1e-9, 0.3, 1e6)),
    "tan": (mpmath.tan, (-50.0, -1.5, 0.0, 1e-9, 0.3)),
    "tanh": (mpmath.tanh, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
    "sinh": (mpmath.sinh, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
    "cosh": (mpmath.cosh, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
    "arctan": (mpmath.atan, (-30.0, -1.5, 0.0, 1e-9, 0.3, 1e6)),
    "arcsin": (mpmath.asin, (-0.99, -0.5, 0.0, 1e-9, 0.9)),
    "arccos": (mpmath.acos, (-0.99, -0.5, 0.0, 1e-9, 0.9)),
    "absolute": (abs, (-30.0, -1e-9, 0.3, 1e6)),
    "erf": (mpmath.erf, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
    "erfc": (mpmath.erfc, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
}


def test_no_function_is_left_out() -> None:
    of_two = {dual.power, dual.maximum, dual.minimum, dual.hypot, dual.arctan2, dual.copysign}
    named = {getattr(dual, name) for name in FUNCTIONS}
    steps = {dual.REPLACED[function] for function in STEPS}
    rest = set(dual.REPLACED.values()) - named - of_two - steps
    assert rest == {dual.REPLACED[np.square]}


def test_functions() -> None:
    original = {stub: function for function, stub in dual.REPLACED.items()}
    compiled = together([original[getattr(dual, name)] for name in FUNCTIONS], "x")

    @numba.njit
    def evaluate(x, out):
        found, plain = compiled(dual.dual(x, 2.0)), compiled(x)
        for k in range(len(found)):
            out[k, 0], out[k, 1], out[k, 2] = found[k].value, found[k].slope, plain[k]

    for k, (name, (truth, arguments)) in enumerate(FUNCTIONS.items()):
        for x in arguments:
            found = np.empty((len(FUNCTIONS), 3))
            evaluate(x, found)
            with mpmath.workdps(60):
                point = mpmath.mpf(x)
                step = abs(point) * mpmath.mpf(10) ** -25 or None
                expected = float(truth(point)), 2.0 * float(mpmath.diff(truth, point, h=step))
            np.testing.assert_allclose(found[k, :2], expected, rtol=2e-15, atol=1e-15, err_msg=f"{name}({x})")
            assert found[k, 2] == found[k, 0]


STEPS = [math.floor, math.ceil, math.trunc, np.floor, np.ceil, np.trunc, np.sign]


@pytest.mark.parametrize("function", STEPS, ids=lambda function: f"{function.__module__} {function.__name__}")
def test_steps_have_no_slope(function) -> None:
    def energy(x, t):
        return function(x[0]) * x[1] + x[0]

    x = [-1.3, -0.2, 0.4, 2.7, 1e300]
    found = td.potential(energy).at([(a, 0.6) for a in x])
    assert found.tolist() == [[-1.0, -float(function(a))] for a in x]


def test_steps_of_plain_numbers_are_what_python_says() -> None:
    """Whole numbers from math, so that they serve as indices."""
    levels = (1.0, 2.0, 4.0)

    def energy(x, t, phase):
        return levels[math.floor(phase)] * x[0] + np.floor(phase) * x[1] + math.copysign(phase, -1.0) * x[1]

    assert force(energy, (0.3, 0.4), (2.5,)).tolist() == [-4.0, 0.5]


@pytest.mark.parametrize("function", [math.atan2, np.arctan2])
def test_angles(function) -> None:
    """In all four quadrants, and where squares would leave the numbers."""

    @td.potential
    def winding(x, t, k):
        return k * function(x[1], x[0]) + function(x[0], 2.0) + function(2.0, x[1]) + k * function(k, -1.0)

    for scale in (1.0, 1e-200, 1e200):
        for x, y in scale * np.array([(0.3, 0.4), (-0.3, 0.4), (-0.3, -0.4), (0.3, -0.4), (0.0, 1.0), (-1.0, 1e-9)]):
            r = math.hypot(x, y)
            expected = [3.0 * (y / r) / r, -3.0 * (x / r) / r]
            expected[0] -= 0.5 / (1.0 + min(abs(x), 1e150) ** 2 / 4.0)
            expected[1] += 0.5 / (1.0 + min(abs(y), 1e150) ** 2 / 4.0)
            np.testing.assert_allclose(winding.at([(x, y)], 0.0, (3.0,))[0], expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("function", [math.copysign, np.copysign])
def test_signs_are_copied_with_the_slope(function) -> None:
    @td.potential
    def energy(x, t):
        return function(x[0], x[1]) + 2.0 * function(3.0, x[0]) + 4.0 * function(x[0], -2.0)

    for x in (-0.7, 0.3):
        for y in (-2.0, 1e-300):
            expected = np.sign(x) * np.sign(y) - 4.0 * np.sign(x)
            assert energy.at([(x, y)]).tolist() == [[-expected, 0.0]]


OF_TWO = {
    "pow": lambda a, b: math.pow(a, b),
    "hypot": lambda a, b: math.hypot(a, b),
    "power": lambda a, b: np.power(a, 3) + np.power(2.0, b),
    "maximum": lambda a, b: np.maximum(a, b) + np.maximum(a, 1.0) + np.maximum(-0.5, b),
    "minimum": lambda a, b: np.minimum(a, b) + np.minimum(a, 1.0) + np.minimum(-0.5, b),
    "max": lambda a, b: max(a, b) + max(a, 1) + max(5.5, b) + max(a, b, 1.0),
    "min": lambda a, b: min(a, b) + min(a, 1) + min(5.5, b),
    "abs": lambda a, b: abs(a - b) + abs(-a),
    "float": lambda a, b: float(a) * b,
    "square": lambda a, b: np.square(a) * b,
    "floordiv": lambda a, b: 5 * a // b * a + b // 0.3 + 2.5 // a * b,
}
EXPECTED = {
    "pow": lambda a, b: (a**b, b * a ** (b - 1), a**b * np.log(a)),
    "hypot": lambda a, b: (np.hypot(a, b), a / np.hypot(a, b), b / np.hypot(a, b)),
    "power": lambda a, b: (a**3 + 2**b, 3 * a**2, np.log(2) * 2**b),
    "maximum": lambda a, b: (max(a, b) + max(a, 1) + max(-0.5, b), float(a > b) + (a > 1), float(b > a) + 1),
    "minimum": lambda a, b: (min(a, b) + min(a, 1) - 0.5, float(a < b) + (a < 1), float(b < a)),
    "max": lambda a, b: (
        max(a, b) + max(a, 1) + 5.5 + max(a, b, 1),
        float(a > b) + (a > 1) + (a > max(b, 1)),
        float(b > a) + (b > max(a, 1)),
    ),
    "min": lambda a, b: (min(a, b) + min(a, 1) + b, float(a < b) + (a < 1), float(b < a) + 1),
    "abs": lambda a, b: (abs(a - b) + a, np.sign(a - b) + 1, -np.sign(a - b)),
    "float": lambda a, b: (a * b, b, a),
    "square": lambda a, b: (a * a * b, 2 * a * b, a * a),
    "floordiv": lambda a, b: (5 * a // b * a + b // 0.3 + 2.5 // a * b, 5 * a // b, 2.5 // a),
}


def test_functions_of_math_and_numpy_are_replaced() -> None:
    evaluate = in_both_directions(list(OF_TWO.values()))
    for a, b in POINTS:
        for found, (name, expected) in zip(evaluate(a, b), EXPECTED.items(), strict=True):
            assert OF_TWO[name](a, b) == pytest.approx(expected(a, b)[0], rel=1e-14)
            np.testing.assert_allclose(found, expected(a, b), rtol=1e-14, atol=1e-15, err_msg=f"{name}({a}, {b})")


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


def force(function, x, params=()) -> np.ndarray:
    return td.potential(function).at(np.array([x]), 0.0, params)[0]


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
