"""What a compiled function takes from around it, and errors that it cannot raise."""

import math
import random
import re
import types

import numpy as np
import pytest
import scipy.special
from scipy.special import expit

import thermodiff as td
from thermodiff.kernels import user
from thermodiff.kernels.user import UserFunctionError, fingerprint

SPEED = 1.0
COUPLING = np.array([1.0, 2.0])


def rate(x):
    return SPEED * COUPLING[0] * x


@td.drift
def around(x, t):
    return (-rate(x[0]),)


def test_numbers_around_a_function_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around.at([[1.0]])[0, 0] == -1.0
    monkeypatch.setitem(globals(), "SPEED", 5.0)
    assert around.at([[1.0]])[0, 0] == -5.0
    monkeypatch.setitem(globals(), "COUPLING", np.array([3.0, 2.0]))
    assert around.at([[1.0]])[0, 0] == -15.0


def test_the_fingerprint_holds_what_is_taken_from_around() -> None:
    def made(*values):
        def function(t):
            return values[-1], math.sin(t)

        return fingerprint(function)

    first, second = types.SimpleNamespace(a=1.0), types.SimpleNamespace(a=2.0)
    known = [
        made(np.array([1.0])), made(np.array([2.0])), made(np.array([[1.0]])), made(np.float32(1.0)), made([1.0]), made((1.0,)),
        made({"a": 1.0}), made({"a": 2.0}), made(first), made(second), made(math.sin), made(math.cos), made(np.sin), made(None),
    ]  # fmt: skip
    assert len(set(known)) == len(known)
    assert made(np.array([1.0])) == known[0]
    assert made(types.SimpleNamespace(a=1.0)) == known[8]


def raising(x, t):
    if x[0] > 1.0:
        raise ValueError("left the box")
    return (-x[0],)


def asserting(x, t):
    assert x[0] < 1.0
    return (-x[0],)


def calling(x, t):
    return raising(x, t)


@pytest.mark.parametrize("function", [raising, asserting, calling])
def test_errors_raised_for_one_path_are_refused(function) -> None:
    with pytest.raises(
        UserFunctionError, match="(raising|asserting) raises an error, which cannot be done for one path among"
    ):
        td.drift(function).at([[0.0]])


LEVELS = (1.0, 2.0, 3.0)


def indexed(x, t):
    return -x[int(10.0 * t)], LEVELS[int(abs(x[0]))]


def stairs(x, t):
    return sum([0.5 * LEVELS[int(abs(value))] * value**2 for value in x])


def test_an_index_beyond_the_end_gives_nan_for_that_path() -> None:
    x = np.array([[0.5, 0.25], [7.5, 0.25], [-2.5, 0.25]])
    np.testing.assert_array_equal(td.drift(indexed).at(x), [[-0.5, 1.0], [np.nan, np.nan], [2.5, 3.0]])
    np.testing.assert_array_equal(td.drift(indexed).at(x, 0.15)[0], [-0.25, 1.0])
    assert np.isnan(td.drift(indexed).at(x, 0.25)).all()
    wide = np.zeros((3, 9))
    wide[:, :2] = x
    for points in (x, wide):
        exact = np.zeros(points.shape)
        exact[:, :2] = [[-0.5, -0.25], [np.nan, np.nan], [7.5, -0.25]]
        exact[1] = np.nan
        np.testing.assert_array_equal(td.potential(stairs).at(points), exact)


def test_a_loop_over_a_tuple_needs_no_such_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    @td.drift
    def ring(x, t):
        total = 0.0
        for i in range(3):
            total += x[(i + 1) % 3] - x[i]
        return total, -x[1], -x[2]

    monkeypatch.setattr(user, "_guarded", None)
    assert ring.at([[1.0, 2.0, 3.0]]).tolist() == [[0.0, -2.0, -3.0]]


TABLE = np.array([1.0, 2.0, 3.0])


def looked_up(x, t):
    return (-TABLE[int(x[0])],)


def filled_from_a_tuple(x, t, out):
    out[0] = -LEVELS[int(x[0])]


def filled_from_an_array(x, t, out):
    out[0] = -TABLE[int(x[0])]


def filled_from_x(x, t, out):
    out[0] = -x[int(x[0])] - 1.0


@pytest.mark.parametrize("function", [looked_up, filled_from_a_tuple, filled_from_an_array])
def test_an_index_beyond_a_table_gives_nan_for_that_path(function) -> None:
    """Of a table behind an array, of which nothing but memory stands there, and within a function that fills."""
    field = td.drift(function, fills=function is not looked_up)
    np.testing.assert_array_equal(field.at([[0.5], [2.5], [3.5], [1e9]]), [[-1.0], [-3.0], [np.nan], [np.nan]])


def test_an_index_beyond_x_gives_nan_for_that_path() -> None:
    field = td.drift(filled_from_x, fills=True)
    np.testing.assert_array_equal(field.at([[0.5], [7.0], [0.25]]), [[-1.5], [np.nan], [-1.25]])


def whole(x, t, out):
    out[:] = np.exp(-x) + np.log(x * x) + np.expm1(x) + np.tanh(x) + np.sin(x) + np.cos(x)


def means(x, t, out):
    c, s = np.mean(np.cos(x)), np.mean(np.sin(x))
    for i in range(len(x)):
        out[i] = s * np.cos(x[i]) - c * np.sin(x[i])


@pytest.mark.parametrize("function", [whole, means])
def test_functions_of_numpy_take_whole_arrays_where_a_drift_fills(function) -> None:
    field, x = td.drift(function, fills=True), np.random.default_rng(0).normal(size=(300, 5))
    expected = np.empty_like(x)
    for point, out in zip(x, expected, strict=True):
        function(point, 0.0, out)
    np.testing.assert_allclose(field.at(x), expected, rtol=1e-13, atol=1e-14)


def test_functions_of_numpy_take_arrays_in_a_function_that_returns() -> None:
    @td.drift
    def waves(x, t):
        found = np.sin(np.array(x))
        return found[0], found[1]

    x = np.random.default_rng(1).normal(size=(10, 2))
    np.testing.assert_allclose(waves.at(x), np.sin(x), rtol=1e-14)


def test_what_the_compiler_does_not_take_has_a_name() -> None:
    def importing(x, t):
        import math

        return (math.sin(x[0]),)

    def splitting(x, t):
        first, *rest = x
        return (first,)

    for function, what in ((importing, "import"), (splitting, r"a, \*rest = \.\.\.")):
        with pytest.raises(UserFunctionError, match=f"{function.__name__}: {what} cannot be used in it"):
            td.drift(function).at([[1.0]])


class Box:
    size = 2.0


SIZES, MIXED, OBJECTS, NOISE = {"a": 2.0}, [1.0, 2], np.array([1.0, None]), np.random.default_rng(0)


def sized(value):
    return SIZES["a"] * value


def enclosing(rates):
    return lambda x, t: (rates[0] * x[0],)


AROUND = {
    "a class": (lambda x, t: (Box.size * x[0],), "Box, from around it, is a class and cannot be compiled; pass numbers by"),
    "in a helper": (lambda x, t: (sized(x[0]),), "SIZES, from around it, is of type dict and cannot be compiled; pass"),
    "a list": (lambda x, t: (MIXED[0] * x[0],), "MIXED, from around it, is of type list and cannot be compiled; pass"),
    "an enclosed list": (enclosing([1.0, 2.0]), "rates, from around it, is of type list and cannot be compiled; pass"),
    "an enclosed dictionary": (enclosing({0: 1.0}), "rates, from around it, is of type dict and cannot be compiled; pass"),
    "objects": (lambda x, t: (OBJECTS[0] * x[0],), "<lambda> cannot be compiled at '"),
    "a function of a module": (
        lambda x, t: (scipy.special.j0(x[0]),),
        "j0 of scipy.special cannot be compiled; call functions",
    ),
    "a function": (lambda x, t: (expit(x[0]),), "expit, from around it, is of type ufunc and cannot be compiled; pass"),
    "random numbers": (
        lambda x, t: (x[0] if t < 5.0 else random.gauss(0.0, 1.0),),
        "<lambda> has random numbers of its own",
    ),
    "those of numpy": (lambda x, t: (x[0] if t < 5.0 else np.random.normal(),), "<lambda> has random numbers of"),  # noqa: NPY002
    "a generator": (
        lambda x, t: (x[0] if t < 5.0 else NOISE.normal(),),
        "<lambda> has random numbers of its own, which rng=",
    ),
}


def required_sentence(function, message: str) -> None:
    with pytest.raises(UserFunctionError, match=re.escape(message)) as caught:
        td.drift(function).at([[0.5]])
    assert len(str(caught.value)) < 250
    assert not re.search(r"numba|pipeline|typing|\n|[.]py", str(caught.value), re.IGNORECASE)


@pytest.mark.parametrize("name", AROUND)
def test_what_cannot_be_taken_from_around_is_named(name: str) -> None:
    required_sentence(*AROUND[name])


PAIR, TREE, RATES = (1.0, 2), ((1.0, 2.0), (3.0, 4.0)), types.SimpleNamespace(a=2.0)


def test_numbers_tuples_and_arrays_may_be_taken_from_around() -> None:
    rate = RATES.a

    def taking(x, t):
        return (rate * PAIR[1] * TREE[1][0] * x[0] + np.interp(x[0], TABLE, COUPLING[0] * TABLE),)

    assert td.drift(taking).at([[2.0]])[0, 0] == 26.0


def trying(x, t):
    try:
        return (math.log(x[0]),)
    except Exception:
        return (0.0,)


def within(x, t):
    with np.errstate(all="ignore"):
        return (np.log(x[0]),)


def printing(x, t):
    if x[0] > 5.0:
        print(x[0])
    return (x[0],)


def defining(x, t):
    class Rates:
        k = 1.0

    return (Rates.k * x[0],)


def matching(x, t):
    match x:
        case (a,):
            return (a,)
    return (x[0],)


STATEMENTS = {
    "try": (
        trying,
        "trying has a try statement, which cannot be compiled: what is an error in Python, as math.log(-1.0), gives",
    ),
    "try in a helper": (lambda x, t: trying(x, t), "trying has a try statement, which cannot be compiled"),
    "with": (within, "within has a with statement, which cannot be compiled; remove it"),
    "print": (printing, "printing prints, which it would do for every path at every step; remove that"),
    "an f-string": (
        lambda x, t: (float(f"{x[0]:.3f}"),),
        "<lambda> makes text, by an f-string or str, which cannot be compiled",
    ),
    "str": (
        lambda x, t: (len("a" + str(x[0])) * x[0],),
        "<lambda> makes text, by an f-string or str, which cannot be compiled",
    ),
    "format": (lambda x, t: (float("{}".format(x[0])),), "text in quotes can only be compared in it; work with"),  # noqa: UP032
    "a percent sign": (lambda x, t: (float("%g" % x[0]),), "text in quotes can only be compared in it; work"),  # noqa: UP031
    "class": (defining, "defining: class cannot be used in it; use numbers"),
    "match": (matching, "matching: match with a pattern cannot be used in it; use numbers"),
    "a method": (lambda x, t: (np.array(x).astype(float)[0],), "<lambda> cannot be compiled at '"),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_that_cannot_be_compiled_have_a_name(name: str) -> None:
    required_sentence(*STATEMENTS[name])


def test_text_may_be_compared() -> None:
    @td.drift
    def directed(x, t):
        way = "up" if x[0] > 0.0 else "down"
        return (1.0 if way == "up" else -1.0,)

    assert directed.at([[0.5], [-0.5]]).tolist() == [[1.0], [-1.0]]


def none_within(x, t):
    return (x[0] if x[0] < 5.0 else None,)


def none_at_times(x, t):
    if x[0] < 5.0:
        return x[0] * x[0]


@pytest.mark.parametrize(("made", "function"), [(td.drift, none_within), (td.potential, none_at_times)])
def test_none_in_a_branch_is_told(made, function) -> None:
    """Numba would print an error for each path, and go on with what happens to stand there."""
    with pytest.raises(UserFunctionError, match=f"{function.__name__} gives None in some branch; give a number in each"):
        made(function).at([[0.5]])
