"""Functions of floats and duals, as compiled, against derivatives to forty digits and differences."""

import math

import mpmath
import numba
import numpy as np
import pytest
from duals import POINTS, force, in_both_directions, together

import thermodiff as td
from thermodiff.kernels import dual, functions, user

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
    "log2": (lambda v: mpmath.log(v, 2), (1e-300, 0.2, 1.0, 17.0, 1e200)),
    "log10": (mpmath.log10, (1e-300, 0.2, 1.0, 17.0, 1e200)),
    "exp2": (lambda v: mpmath.mpf(2) ** v, (-700.0, -1.5, 0.0, 0.3, 300.0)),
    "cbrt": (lambda v: mpmath.sign(v) * mpmath.cbrt(abs(v)), (-30.0, -1e-9, 0.3, 1e6)),
    "arcsinh": (mpmath.asinh, (-1e200, -1.5, 0.0, 1e-9, 0.3, 1e6)),
    "arccosh": (mpmath.acosh, (1.0001, 1.5, 17.0, 1e200)),
    "arctanh": (mpmath.atanh, (-0.99, -0.5, 0.0, 1e-9, 0.9)),
    "sinc": (mpmath.sincpi, (-1.3, -1e-3, 0.0, 1e-9, 0.09, 0.11, 0.5, 3.7)),
    "gamma": (mpmath.gamma, (-2.5, -0.3, 1e-3, 1.0, 1.5, 9.9, 10.1, 50.0)),
    "lgamma": (lambda v: mpmath.log(abs(mpmath.gamma(v))), (-2.5, -0.3, 1e-3, 1.2, 9.9, 10.1, 50.0, 1e6)),
    "radians": (mpmath.radians, (-30.0, 0.3)),
    "degrees": (mpmath.degrees, (-30.0, 0.3)),
    "erf": (mpmath.erf, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
    "erfc": (mpmath.erfc, (-30.0, -1.5, 0.0, 1e-9, 0.3, 3.0)),
}


LIBRARY = {"gamma", "lgamma", "sinc"}
"""Of their values the last digits are the system library's."""


def test_no_function_is_left_out() -> None:
    elsewhere = {functions.REPLACED[function] for function in (*ELSEWHERE, *QUESTIONS)}
    named = {getattr(functions, name) for name in FUNCTIONS}
    steps = {functions.REPLACED[function] for function in STEPS}
    assert set(functions.REPLACED.values()) == named | elsewhere | steps


QUESTIONS = [math.isnan, math.isinf, math.isfinite, np.isnan, np.isinf, np.isfinite]


ELSEWHERE = (
    np.maximum, np.minimum, math.copysign, math.atan2, np.power, math.hypot, math.fmod, np.fmax, np.fmin, np.logaddexp,
    np.heaviside, np.add, np.subtract, np.multiply, np.divide, np.remainder, np.floor_divide, np.negative, np.square,
    np.reciprocal, np.where, np.clip, math.dist, math.prod, np.sum, np.dot,
)  # fmt: skip
"""Those whose tests stand further down."""


def test_functions() -> None:
    original = {stub: function for function, stub in functions.REPLACED.items()}
    compiled = together([original[getattr(functions, name)] for name in FUNCTIONS], "x")

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
            precision = 2e-15 if name not in LIBRARY else 1e-14
            np.testing.assert_allclose(found[k, :2], expected, rtol=precision, atol=1e-15, err_msg=f"{name}({x})")
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


MORE = {
    "log to a base": lambda a, b: math.log(a, 10) + math.log(3.0, b) + math.log(a, b),
    "pow": lambda a, b: pow(a, 3) + pow(b, -0.5) + np.float_power(a, b),
    "mod": lambda a, b: np.mod(a, 0.4) * b + np.remainder(-a, b),
    "fmod": lambda a, b: math.fmod(a, 0.4) * b + np.fmod(-a, b) + math.fmod(3.7, b),
    "fmax": lambda a, b: np.fmax(a, b) * b + np.fmax(a, math.nan) + np.fmax(math.nan, b),
    "fmin": lambda a, b: np.fmin(a, b) * b + np.fmin(a, 0.5) + np.fmin(math.nan, b),
    "logaddexp": lambda a, b: np.logaddexp(a, 40.0 * b) + np.logaddexp(-a, 0.3),
    "arithmetic": lambda a, b: np.divide(np.subtract(np.negative(a), 1), np.add(b, 2.0)) * np.multiply(a, np.reciprocal(b)),
    "floor_divide": lambda a, b: np.floor_divide(a, 0.3) * b,
    "four": lambda a, b: max(0.1, 0.2, a, b) * min(5, a, 4.5, b, 3.0) + max(a, 0.3, 0.2, 0.1) * b,
    "not": lambda a, b: (b if not a else a * a) + (0.0 if not (a > b) else a),
    "hypot": lambda a, b: math.hypot(a, b, 0.5) + math.hypot(a, 0.2, b, a) + math.hypot(-b),
    "dist": lambda a, b: math.dist((a, 1.0), (0.3, b)) + math.dist((a, b), (0, 0)),
    "prod": lambda a, b: math.prod((a, 2, b)) + math.prod((a, a, b)) + math.prod((3.0,)),
    "clip": lambda a, b: np.clip(a, 0.5, 1.5) * np.clip(b, None, 1) + np.clip(a, 0.8, None) + np.clip(0.9, a, b + a),
    "where": lambda a, b: np.where(a > b, a * b, 0) + np.where(b > 1, 2, b) + np.where(a > 1.0, 2.0, 3),
    "heaviside": lambda a, b: np.heaviside(a - b, 0.5) * a + np.heaviside(a - a, b) + np.heaviside(-b, a),
    "questions": lambda a, b: (0.0 if math.isnan(a) or np.isinf(b) else a) * (b if np.isfinite(a) and math.isfinite(b) else 0.0),
    "whole": lambda a, b: int(3.0 * a) * b + round(b) * a,
}  # fmt: skip


def test_further_functions_against_differences() -> None:
    """Also those that the compiler does not know; on both sides of every branch."""
    evaluate, h = in_both_directions(list(MORE.values())), 1e-6
    for a, b in POINTS:
        for found, (name, function) in zip(evaluate(a, b), MORE.items(), strict=True):
            slopes = [function(a + h, b) - function(a - h, b), function(a, b + h) - function(a, b - h)]
            expected = [function(a, b), *(slope / (2.0 * h) for slope in slopes)]
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8, err_msg=f"{name}({a}, {b})")


def test_the_same_functions_in_a_drift() -> None:
    scope = {f"f{k}": function for k, function in enumerate(MORE.values())}
    exec(f"def drift(x, t): return {', '.join(f'{name}(x[0], x[1])' for name in scope)},", scope)
    field = user._compiled(scope["drift"], functions.PLAIN, inlined=True, outer=())
    for point in POINTS:
        np.testing.assert_allclose(field(point, 0.0), [f(*point) for f in MORE.values()], rtol=1e-14)


def test_where_a_slope_is_zero_an_infinite_derivative_counts_for_nothing() -> None:
    def steep(x, t, p):
        r2 = x[0] ** 2 + x[1] ** 2
        total = r2**p + r2**0.75 + math.sqrt(r2) + math.hypot(x[0], x[1]) + np.cbrt(r2) + math.asin(1.0 - r2)
        return total + r2 ** (p + 0.0 * x[0]) + math.atan2(0.0 * x[1], r2) * math.exp(x[0])

    assert force(steep, (0.0, 0.0), (0.75,)).tolist() == [0.0, 0.0]
    assert np.isfinite(force(steep, (0.3, 0.4), (0.75,))).all()


def test_clipping_keeps_what_is_not_a_number() -> None:
    clipped, stepped = in_both_directions([lambda a, b: np.clip(a, -1.0, b), lambda a, b: np.heaviside(a, b)])(math.nan, 1.0)
    assert np.isnan([clipped[0], stepped[0]]).all()


SQUARES = np.arange(6.0).reshape(2, 3) ** 2


def test_sums_and_products_of_numpy() -> None:
    """Of points, lists and tables; of tables alone as ever."""

    def energy(x, t):
        table = np.sum(SQUARES) + np.sum(SQUARES, 0)[1] + np.sum(SQUARES, axis=1)[0] + np.dot(SQUARES[0], SQUARES[1])
        return table * x[0] + np.sum(x) ** 2 + np.sum([v**3 for v in x]) + np.dot(x, x) + np.dot(SQUARES[1], x)

    table = SQUARES.sum() + SQUARES.sum(0)[1] + SQUARES.sum(1)[0] + SQUARES[0] @ SQUARES[1]
    x = np.array([0.5, -0.25, 2.0])
    slope = 2.0 * x.sum() + 3.0 * x**2 + 2.0 * x + SQUARES[1] + table * np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(force(energy, tuple(x)), -slope, rtol=1e-14)


@pytest.mark.parametrize("function", [np.square, np.reciprocal, np.isnan, np.isinf, np.isfinite])
def test_functions_of_numpy_on_tables(function) -> None:
    """They return an array there, and so must count its references."""

    table = np.array(
        [1.0, 2.0, -4.0] if function in (np.square, np.reciprocal) else [1.0, np.inf, np.nan, np.nan, 2.0, -3.0]
    )

    def energy(x, t):
        return np.sum(function(table)) * x[0] + np.sum(function(table * 2.0)) * x[1] ** 2

    one, two = float(np.sum(function(table))), float(np.sum(function(2.0 * table)))
    assert one != 0.0
    for _ in range(3):
        np.testing.assert_allclose(force(energy, (0.5, -0.25)), [-one, 0.5 * two], rtol=1e-14, atol=0.0)
