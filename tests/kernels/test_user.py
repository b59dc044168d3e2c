"""Fields from plain Python functions: replacements, vectorisation, no compilation for new parameters, sentences for errors."""

import functools
import math
import platform
import re
from math import exp, sin

import mpmath
import numba
import numpy as np
import numpy as np_by_another_name
import pytest

import thermodiff as td
from thermodiff.kernels.jit import LANES, field_signature
from thermodiff.kernels.user import UserFunctionError, from_bytes, lane_field, to_bytes

RATE = 1.5


def helper(value):
    """A helper of the user's own, with functions in it that need replacing."""
    return math.exp(-value) * np_by_another_name.sin(RATE * value)


@numba.njit
def compiled_helper(value):
    return math.sin(value) ** 2


@td.drift
def another_field(x, t):
    return -x[0], np.tanh(x[1])


def run(function, kind: str, x: np.ndarray, params=(), t: float = 0.0, rows: int | None = None) -> np.ndarray:
    """The lane field itself on one block; x is (d, LANES)."""
    out = np.empty((rows or len(x), LANES))
    kernel = lane_field(function, len(x), len(params), kind)
    kernel.dispatcher(np.ascontiguousarray(x), np.array([t, 0.0, 0.0, 0.0]), np.array(params, dtype=float), out)
    return out


def arguments(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, LANES)


def relative(found: np.ndarray, x: np.ndarray, function) -> float:
    with mpmath.workdps(40):
        exact = [function(mpmath.mpf(float(v))) for v in x]
        return max(float(abs(mpmath.mpf(float(f)) - e) / abs(e)) for f, e in zip(found, exact, strict=True))


def test_functions_of_math_and_numpy_are_correct_to_1e_15() -> None:
    def everything(x, t):
        return (
            math.exp(x[0]), np.exp(x[0]), exp(x[0]), math.expm1(x[0]), math.log(x[1]), np.log(x[1]), math.tanh(x[0]),
            np.tanh(x[0]), math.sqrt(x[1]), np.sqrt(x[1]),
        )  # fmt: skip

    x = np.ones((10, LANES))
    x[0], x[1] = arguments(-500.0, 500.0), np.exp(arguments(-600.0, 600.0))
    x[0, ::2] = arguments(-2.0, 2.0)[::2]
    found = run(everything, "values", x)
    truths = [mpmath.exp] * 3 + [mpmath.expm1] + [mpmath.log] * 2 + [mpmath.tanh] * 2 + [mpmath.sqrt] * 2
    for k, (truth, row) in enumerate(zip(truths, (0, 0, 0, 0, 1, 1, 0, 0, 1, 1), strict=True)):
        assert relative(found[k], x[row], truth) < 1e-15, k


def test_sin_and_cos_are_correct_to_5e_16() -> None:
    def everything(x, t):
        return math.sin(x[0]), np.cos(x[0]), sin(x[0]), math.cos(x[0])

    x = np.tile(arguments(-1e8, 1e8), (4, 1))
    found = run(everything, "values", x)
    with mpmath.workdps(40):
        for k, truth in enumerate((mpmath.sin, mpmath.cos, mpmath.sin, mpmath.cos)):
            assert max(abs(f - float(truth(mpmath.mpf(float(v))))) for f, v in zip(found[k], x[0], strict=True)) < 5e-16


def test_helpers_closures_and_other_fields_are_replaced_too() -> None:
    width = 0.75
    square = lambda value: value * value  # noqa: E731

    def nested(x, t, k):
        first, second = another_field(x, t)
        inner = lambda value: math.exp(-square(value) / width)  # noqa: E731
        return k * helper(x[0]) + inner(x[1]) + compiled_helper(x[0]), first * second

    x = np.array([arguments(-3.0, 3.0), arguments(-2.0, 5.0)])
    a, b = x
    expected = [2.0 * np.exp(-a) * np.sin(RATE * a) + np.exp(-b * b / width) + np.sin(a) ** 2, -a * np.tanh(b)]
    np.testing.assert_allclose(run(nested, "values", x, (2.0,)), expected, rtol=4e-15, atol=4e-15)


def test_helpers_are_differentiated() -> None:
    def energy(x, t):
        return helper(x[0]) + compiled_helper(x[0])

    x = arguments(-3.0, 3.0)[None, :]
    expected = -(np.exp(-x) * (RATE * np.cos(RATE * x) - np.sin(RATE * x)) + np.sin(2.0 * x))
    np.testing.assert_allclose(run(energy, "gradient", x), expected, rtol=1e-14, atol=1e-13)


def test_the_energy_of_a_potential() -> None:
    """The function itself, with all that duals can take, in the first row and nowhere else."""

    def energy(x, t, k):
        total = 0
        for value in x:
            total += k * value**2 + helper(value)
        if x[0] > 0.5:
            return total
        return total + math.erf(x[0]) * np.arctan2(x[1], 2.0) + max(x[1], 0.3, t) + math.floor(x[0]) + x[1] // 0.3

    x = np.array([arguments(-3.0, 3.0), arguments(-2.0, 5.0)])
    found = run(energy, "energy", x, (2.0,), t=1.25)
    np.testing.assert_allclose(found[0], [energy(point, 1.25, 2.0) for point in x.T], rtol=1e-14, atol=1e-14)
    kernel = lane_field(lambda x, t: 3, 2, 0, "energy")
    out = np.full((2, LANES), -1.0)
    kernel.dispatcher(x, np.zeros(4), np.zeros(0), out)
    np.testing.assert_array_equal(out, [[3.0] * LANES, [-1.0] * LANES])


def test_whole_numbers_serve_as_arguments_and_results() -> None:
    def whole(x, t):
        return math.exp(1) + math.log(2) + np.sin(3) + math.sqrt(4), 1

    expected = math.exp(1) + math.log(2) + math.sin(3) + 2.0
    found = run(whole, "values", np.zeros((2, LANES)))
    np.testing.assert_allclose(found[:, 0], [expected, 1.0], rtol=1e-15)


def test_time_and_parameters_reach_the_function() -> None:
    @td.drift
    def driven(x, t, amplitude, omega):
        return -x[0] + amplitude * math.sin(omega * t), x[1] * t

    x = np.random.default_rng(1).standard_normal((10, 2))
    for t, params in ((0.0, (1.0, 2.0)), (1.5, (0.5, 3.0)), (-2.0, (1, 2))):
        expected = np.stack([-x[:, 0] + params[0] * np.sin(params[1] * t), x[:, 1] * t], axis=1)
        np.testing.assert_allclose(driven.at(x, t, params), expected, rtol=1e-14, atol=1e-15)


def test_new_parameters_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    @td.drift
    def linear(x, t, k):
        return (-k * x[0],)

    kernel = linear.kernel(1, np.array([1.0]))
    monkeypatch.setattr("thermodiff.kernels.user.lane_field", None)
    for k in (0.5, 2, np.float64(3.0)):
        assert linear.kernel(1, linear.values_of((k,))) is kernel
        assert linear.at([[2.0]], 0.0, (k,))[0, 0] == -2.0 * k
        process = td.Langevin(linear, (k,), dim=1)
        assert process.with_params(7.0).compiled().field is kernel
    assert list(kernel.dispatcher.nopython_signatures) == [field_signature]


def test_a_filled_drift_of_64_coordinates() -> None:
    """A ring of springs, written bond by bond: ``out`` begins with zeros at each point."""

    @td.drift(fills=True)
    def ring(x, t, out, k):
        n = x.shape[0]
        for i in range(n):
            j = (i + 1) % len(x)
            tension = k * math.sin(x[j] - x[i]) + t
            out[i] += tension
            out[j] -= tension

    x = np.random.default_rng(2).standard_normal((300, 64))
    tension = 1.5 * np.sin(np.roll(x, -1, axis=1) - x) + 0.25
    expected = tension - np.roll(tension, 1, axis=1)
    np.testing.assert_allclose(ring.at(x, 0.25, (1.5,)), expected, rtol=1e-13, atol=1e-14)


def test_functions_travel_by_value() -> None:
    shift = 2.5

    def local(x, t):
        return (x[0] + shift,)

    assert from_bytes(to_bytes(local))((1.0,), 0.0) == (3.5,)


BODIES = {
    "exp": lambda v: math.exp(v),
    "log": lambda v: np.log(v),
    "sin": lambda v: math.sin(v),
    "cos": lambda v: np.cos(v),
    "tanh": lambda v: math.tanh(v),
    "sqrt": lambda v: math.sqrt(v) * 1.5,
}


def packed_and_scalar(kernel) -> tuple[int, int]:
    """Counts of packed and scalar multiplications in the machine code."""
    (asm,) = kernel.dispatcher.inspect_asm().values()
    count = lambda end: len(re.findall(rf"\bv?(?:mul|sqrt|fn?m(?:add|sub)\d*){end}\b", asm))  # noqa: E731
    return count("pd"), count("sd")


@pytest.mark.parametrize(
    ("name", "dim"),
    [*((name, 1) for name in BODIES), ("tanh", 2), ("exp", 3), ("sin", 3), ("tanh", 8)],
    ids=lambda value: str(value),
)
def test_the_lane_loop_is_vectorised(name: str, dim: int) -> None:
    """One packed loop, and at most its scalar twin for rows that overlap."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        pytest.skip("the assembly of this test is that of x86-64")
    scope = {"f": BODIES[name]}
    exec(f"def function(x, t, k): return {' '.join(f'k * f(x[{i}]) - x[{(i + 1) % dim}],' for i in range(dim))}", scope)
    packed, scalar = packed_and_scalar(lane_field(scope["function"], dim, 1, "values"))
    assert packed >= 2 * dim
    assert packed >= scalar


def test_a_gradient_is_vectorised() -> None:
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        pytest.skip("the assembly of this test is that of x86-64")

    def energy(x, t, k):
        return 0.5 * k * (x[0] ** 2 - 1.0) ** 2 + math.exp(-(x[1] ** 2)) * math.cos(x[0])

    packed, scalar = packed_and_scalar(lane_field(energy, 2, 1, "gradient"))
    assert packed >= 50
    # What does not change along the lanes is computed once, before the loop.
    assert packed >= scalar - 4


def test_a_function_that_cannot_be_vectorised_is_told_apart() -> None:
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        pytest.skip("the assembly of this test is that of x86-64")
    packed, scalar = packed_and_scalar(lane_field(lambda x, t, k: (k * math.gamma(x[0]),), 1, 1, "values"))
    assert packed < scalar


class Box:
    size = 2.0


BOX, TABLE = Box(), {"size": 2.0}


def recursive(value):
    return 1.0 if value < 1.0 else value * recursive(value - 1.0)


def hidden(x, t):
    return (x[0], x[1]) if x[0] < 5.0 else (x[0], undefined)  # noqa: F821


def of_another_length(x, t):
    if x[0] < 5.0:
        return x[0], x[1]
    return x[0], x[1], x[0]


def a_list_at_times(x, t):
    if x[0] < 5.0:
        return x[0], x[1]
    return [x[0], x[1]]


def a_string_at_times(x, t):
    if x[0] < 5.0:
        return x[0], x[1]
    return x[0], "x"


def out_of_range_at_times(x, t):
    return (x[0], x[1]) if x[0] < 5.0 else (x[0], x[7])


def unpacked(x, t):
    a, b, c = x
    return a, b


def no_such_function_at_times(x, t):
    return (x[0], x[1]) if x[0] < 5.0 else (x[0], np.nonsense(x[1]))


def wrong_helper_call_at_times(x, t):
    return (x[0], x[1]) if x[0] < 5.0 else (x[0], helper(x[1], 2.0))


def three_out_of_reach(x, t):
    return math.log(x[0] - 0.5), 0.0, 0.0


def a_list_out_of_reach(x, t):
    return [math.log(x[0] - 0.5), 0.0]


def one_out_of_reach(x, t):
    return (math.log(x[0] - 0.5),)


def caught(x, t):
    try:
        return x[0], x[1]
    except ValueError:
        return x[1], x[0]


MISTAKES = {
    "too few values": (lambda x, t: (-x[0],), (), "<lambda> returns 1 numbers, but dim = 2; return one for each"),
    "too many values": (lambda x, t: (*x, 1.0), (), "<lambda> returns 3 numbers, but dim = 2"),
    "no tuple": (lambda x, t: -x[0], (), "<lambda> must return a tuple of d numbers, got -0.1"),
    "a list": (lambda x, t: [x[0], x[1]], (), "must return a tuple of d numbers, got [0.1, 0.11]"),
    "an array": (lambda x, t: -np.array(x), (), "must return a tuple of d numbers, got array"),
    "a string": (lambda x, t: (x[0], "x"), (), "must return a tuple of d numbers, got (0.1, 'x')"),
    "undefined": (lambda x, t: (x[0], nowhere), (), "name 'nowhere' is not defined; it is called as <lambda>(x, t, ...)"),  # noqa: F821
    "undefined in a branch": (hidden, (), "hidden: the name 'undefined' is not defined"),
    "too many parameters": (lambda x, t, k: (x[0], k), (1.0, 2.0), "<lambda> takes 1 parameters (k), got 2"),
    "too few parameters": (lambda x, t, k: (x[0], k), (), "<lambda> takes 1 parameters (k), got 0"),
    "a parameter that is no number": (lambda x, t, k: (x[0], k), ("a",), "params[0] must be a number, got 'a'"),
    "x out of range": (lambda x, t: (x[0], x[2]), (), "tuple index out of range; it is called as <lambda>(x, t, ...) with"),
    "x out of range in a branch": (out_of_range_at_times, (), "out_of_range_at_times: an index is out of range"),
    "unpacking": (unpacked, (), "unpacked: a tuple is unpacked into a wrong number of names"),
    "another length in a branch": (of_another_length, (), "of_another_length: every return must give the same"),
    "a list in a branch": (a_list_at_times, (), "a_list_at_times: every return must give the same"),
    "a string in a branch": (a_string_at_times, (), "a_string_at_times: every return must give the same"),
    "an object": (lambda x, t: (BOX.size * x[0], x[1]), (), "BOX, from around it, is of type Box and cannot be compiled; pass"),
    "a dictionary": (lambda x, t: (TABLE["size"] * x[0], x[1]), (), "TABLE, from around it, is of type dict and cannot be"),
    "recursion": (lambda x, t: (recursive(x[0]), x[1]), (), "<lambda>: recursive calls itself; write it as a loop"),
    "no such function": (lambda x, t: (np.nonsense(x[0]), x[1]), (), "has no attribute 'nonsense'"),
    "no such function in a branch": (no_such_function_at_times, (), "the attribute 'nonsense' does not exist"),
    "no compilable function": (lambda x, t: (math.fsum(x), x[1]), (), "the attribute 'fsum' cannot be used here; use"),
    "a generator": (lambda x, t: (sum(v for v in x), x[1]), (), "<lambda>: a generator cannot be used in it; write a loop"),
    "a wrong call": (wrong_helper_call_at_times, (), "a function that it calls takes another number of arguments; compare"),
    "a large integer": (lambda x, t: (10**20 * x[0], x[1]), (), "a whole number in it is too large; write it with a point"),
    "piecewise": (lambda x, t: (np.piecewise(x[0], [x[0] > 0], [1.0]), 0.0), (), "the attribute 'piecewise' cannot be used"),
    "too many values out of reach": (three_out_of_reach, (), "three_out_of_reach returns 3 numbers, but dim = 2; return one"),
    "too few values out of reach": (one_out_of_reach, (), "one_out_of_reach returns 1 numbers, but dim = 2; return one"),
    "a list out of reach": (a_list_out_of_reach, (), "a_list_out_of_reach must return a tuple of d numbers"),
    "try": (caught, (), "caught has a try statement, which cannot be compiled: what is an error in Python, as math.log(-1.0),"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_a_sentence(name: str) -> None:
    function, params, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught_error:
        td.drift(function).at(np.zeros((1, 2)), 0.0, params)
    text = str(caught_error.value)
    assert "\n" not in text
    assert not re.search("numba|pipeline|typing", text, re.IGNORECASE)
    assert len(text) < 250


def test_mistakes_in_potentials_get_a_sentence() -> None:
    for function, message in (
        (lambda x, t: (x[0], x[1]), "must return one number, the energy, got (0.1, 0.11)"),
        (lambda x, t: np.median(x), "median cannot be used in it, or not on these arguments"),
        (lambda x, t: x[0] if t < 5.0 else math.sin(x[0], x[1]), "sin cannot be used in it, or not on these arguments"),
        (lambda x, t: divmod(x[0], 1.0)[0], "divmod cannot be used in it"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            td.potential(function).at(np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: td.drift(3.0), "it decorates a plain Python function f(x, t, ...), got float"),
        (lambda: td.drift(math.sin), "got builtin_function_or_method"),
        (lambda: td.drift(functools.partial(max, 1)), "got partial"),
        (lambda: td.drift(another_field), "got Drift"),
        (lambda: td.drift(lambda x: (x[0],)), "<lambda>: it must be written as <lambda>(x, t, ...)"),
        (lambda: td.drift(lambda x, t, *k: (x[0],)), "it must be written as <lambda>(x, t, ...)"),
        (lambda: td.drift(lambda x, t, *k: (x[0],)), "with plain named parameters, in a known number: *k is any number of"),
        (
            lambda: td.drift(lambda x, t, **k: (x[0],)),
            "with plain named parameters, in a known number: **k is any number of",
        ),
        (lambda: td.potential(lambda x, t, a, *, k: a * x[0]), "k is given by name only, after a *"),
        (lambda: td.drift(fills=True)(lambda x, t: None), "it must be written as <lambda>(x, t, out, ...)"),
    ],
)
def test_what_cannot_be_decorated(make, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def test_mistakes_in_filled_drifts_get_a_sentence() -> None:
    def returns(x, t, out):
        return x

    def beyond(x, t, out):
        out[5] = 1.0

    for function, message in ((returns, "must fill out and return nothing"), (beyond, "index 5 is out of bounds")):
        with pytest.raises(TypeError, match=message):
            td.drift(function, fills=True).at(np.zeros((1, 2)))


def test_writing_beyond_out_at_times_is_noticed() -> None:
    """An index from the end counts backwards, as everywhere; one that is out of range does not."""

    def beyond(x, t, out, i):
        out[0], out[1] = -x[0], -x[1]
        if t > 0.5:
            out[int(i)] = 1.0

    field, x = td.drift(beyond, fills=True), np.ones((3, 2))
    np.testing.assert_array_equal(field.at(x, 0.0, (2.0,)), -x)
    np.testing.assert_array_equal(field.at(x, 1.0, (1.0,)), np.tile([-1.0, 1.0], (3, 1)))
    np.testing.assert_array_equal(field.at(x, 1.0, (-1.0,)), np.tile([-1.0, 1.0], (3, 1)))
    for i in (2.0, 3.0, 40.0, 1e6, -3.0):
        assert np.isnan(field.at(x, 1.0, (i,))).all()


def test_reading_beyond_x_at_times_gives_no_number() -> None:
    def beyond(x, t, out):
        out[0] = x[0] if t < 0.5 else x[1]

    assert np.isnan(td.drift(beyond, fills=True).at(np.ones((3, 1)), 1.0)).all()


def test_arrays_in_a_filled_drift_keep_numpy_functions() -> None:
    def clipped(x, t, out):
        out[:] = np.where(x > 0.0, np.clip(x, -1.0, 0.5), -1.0)

    np.testing.assert_array_equal(td.drift(clipped, fills=True).at([[0.7, -0.2, 0.1]]), [[0.5, -1.0, 0.1]])


def test_the_error_is_a_type_error() -> None:
    assert issubclass(UserFunctionError, TypeError)
    with pytest.raises(UserFunctionError, match="hidden"):
        lane_field(hidden, 2, 0, "values")
