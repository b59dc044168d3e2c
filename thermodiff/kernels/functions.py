"""Elementary functions of floats and duals, which stand for those of ``math`` and ``numpy`` in a user's function."""

from __future__ import annotations

import math
import operator
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from thermodiff.kernels import elementary
from thermodiff.kernels.dual import DUAL, OPTIONS, chained, dual, is_real

inline = numba.njit(**OPTIONS)
"""Not that of the kernels, which borrows its arrays: a user may hand these one of their own, and get one back."""


def _function(name: str, plain: Any, derivative: Any, *, steep: bool = False) -> Any:
    """An elementary function of floats and duals; ``derivative(x, f(x))`` is f'(x), if ``steep`` infinite somewhere."""
    times = chained if steep else inline(lambda f, s: f * s)

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = stub.__qualname__ = name

    @overload(stub, jit_options=OPTIONS)
    def chosen(x):
        if x is DUAL:

            def with_slope(x):
                value = plain(x.value)
                return dual(value, times(derivative(x.value, value), x.slope))

            return with_slope
        if is_real(x):
            return lambda x: plain(float(x))
        return None

    return stub


_BELL = 2.0 / math.sqrt(math.pi)


_LN2, _LN10, _DEGREE = math.log(2.0), math.log(10.0), math.pi / 180.0


@inline
def _sin(x):
    s, _ = elementary.sincos(x)
    return s


@inline
def _cos(x):
    _, c = elementary.sincos(x)
    return c


exp = _function("exp", elementary.exp, inline(lambda x, y: y))
expm1 = _function("expm1", elementary.expm1, inline(lambda x, y: y + 1.0))
log = _function("log", elementary.log, inline(lambda x, y: 1.0 / x), steep=True)
log1p = _function("log1p", inline(lambda x: math.log1p(x)), inline(lambda x, y: 1.0 / (1.0 + x)), steep=True)
sqrt = _function("sqrt", inline(lambda x: np.sqrt(x)), inline(lambda x, y: 0.5 / y), steep=True)
sin = _function("sin", _sin, inline(lambda x, y: _cos(x)))
cos = _function("cos", _cos, inline(lambda x, y: -_sin(x)))
tan = _function("tan", inline(lambda x: math.tan(x)), inline(lambda x, y: 1.0 + y * y))
tanh = _function("tanh", elementary.tanh, inline(lambda x, y: 1.0 - y * y))
sinh = _function("sinh", inline(lambda x: math.sinh(x)), inline(lambda x, y: math.cosh(x)))
cosh = _function("cosh", inline(lambda x: math.cosh(x)), inline(lambda x, y: math.sinh(x)))
arctan = _function("arctan", inline(lambda x: math.atan(x)), inline(lambda x, y: 1.0 / (1.0 + x * x)))
arcsin = _function("arcsin", inline(lambda x: math.asin(x)), inline(lambda x, y: 1.0 / np.sqrt(1.0 - x * x)), steep=True)
arccos = _function("arccos", inline(lambda x: math.acos(x)), inline(lambda x, y: -1.0 / np.sqrt(1.0 - x * x)), steep=True)
absolute = _function("absolute", inline(lambda x: abs(x)), inline(lambda x, y: 1.0 if x >= 0.0 else -1.0))
erf = _function("erf", inline(lambda x: math.erf(x)), inline(lambda x, y: _BELL * elementary.exp(-x * x)))
erfc = _function("erfc", inline(lambda x: math.erfc(x)), inline(lambda x, y: -_BELL * elementary.exp(-x * x)))


@inline
def _sinc_slope(x, y):
    z = math.pi * x
    u = z * z
    # Near 0 the closed form is a difference of equals.
    series = u / 840.0 * (1.0 - u / 54.0 * (1.0 - u / 88.0 * (1.0 - u / 130.0)))
    return -math.pi * z * (1.0 / 3.0 - u / 30.0 + u * series) if u < 0.1 else (_cos(z) - y) / x


@inline
def _digamma(x):
    """The derivative of log |gamma|: reflected to x > 0, shifted to x > 10, then the asymptotic series."""
    reflected = x < 0.0
    total = -math.pi / math.tan(math.pi * x) if reflected else 0.0
    x = 1.0 - x if reflected else x
    while x < 10.0:
        total -= 1.0 / x
        x += 1.0
    u = 1.0 / (x * x)
    series = u * (1 / 12 - u * (1 / 120 - u * (1 / 252 - u * (1 / 240 - u * (1 / 132 - u * (691 / 32760 - u / 12))))))
    return total + math.log(x) - 0.5 / x - series


log2 = _function("log2", inline(lambda x: np.log2(x)), inline(lambda x, y: 1.0 / (_LN2 * x)), steep=True)
log10 = _function("log10", inline(lambda x: np.log10(x)), inline(lambda x, y: 1.0 / (_LN10 * x)), steep=True)
exp2 = _function("exp2", inline(lambda x: np.exp2(x)), inline(lambda x, y: _LN2 * y))
cbrt = _function("cbrt", inline(lambda x: np.cbrt(x)), inline(lambda x, y: 1.0 / (3.0 * y * y)), steep=True)
arcsinh = _function("arcsinh", inline(lambda x: math.asinh(x)), inline(lambda x, y: 1.0 / math.hypot(1.0, x)))
arccosh = _function(
    "arccosh", inline(lambda x: math.acosh(x)), inline(lambda x, y: 1.0 / np.sqrt(x - 1.0) / np.sqrt(x + 1.0)), steep=True
)
arctanh = _function("arctanh", inline(lambda x: math.atanh(x)), inline(lambda x, y: 1.0 / (1.0 - x) / (1.0 + x)), steep=True)
sinc = _function("sinc", inline(lambda x: np.sinc(x)), _sinc_slope)
gamma = _function("gamma", inline(lambda x: math.gamma(x)), inline(lambda x, y: y * _digamma(x)))
lgamma = _function("lgamma", inline(lambda x: math.lgamma(x)), inline(lambda x, y: _digamma(x)))
radians = _function("radians", inline(lambda x: x * _DEGREE), inline(lambda x, y: _DEGREE))
degrees = _function("degrees", inline(lambda x: x / _DEGREE), inline(lambda x, y: 1.0 / _DEGREE))


@overload(log, jit_options=OPTIONS)
def _log_to_base(x, base):
    return lambda x, base: log(x) / log(base)


def _steps(name: str, plain: Any, whole: Any = None) -> Any:
    """A function that is constant but for jumps; ``whole``, where given, makes integers of real numbers (as indices)."""
    real = whole or plain

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = stub.__qualname__ = name

    @overload(stub, jit_options=OPTIONS)
    def chosen(x):
        if x is DUAL:
            return lambda x: dual(plain(x.value), 0.0)
        return (lambda x: real(x)) if is_real(x) else None

    return stub


def _test(name: str, plain: Any) -> Any:
    """A question about a number, which is one about its value."""

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = stub.__qualname__ = name
    overload(stub, jit_options=OPTIONS)(lambda x: (lambda x: plain(x.value)) if x is DUAL else (lambda x: plain(x)))
    return stub


floor = _steps("floor", inline(lambda x: np.floor(x)))
ceil = _steps("ceil", inline(lambda x: np.ceil(x)))
trunc = _steps("trunc", inline(lambda x: np.trunc(x)))
sign = _steps("sign", inline(lambda x: np.sign(x)))
isnan = _test("isnan", inline(lambda x: np.isnan(x)))
isinf = _test("isinf", inline(lambda x: np.isinf(x)))
isfinite = _test("isfinite", inline(lambda x: np.isfinite(x)))
whole_floor = _steps("floor", inline(lambda x: np.floor(x)), inline(lambda x: math.floor(x)))
whole_ceil = _steps("ceil", inline(lambda x: np.ceil(x)), inline(lambda x: math.ceil(x)))
whole_trunc = _steps("trunc", inline(lambda x: np.trunc(x)), inline(lambda x: math.trunc(x)))


def _of_many(stub: Any) -> Any:
    """A length of two numbers, of one and of many too."""
    overload(stub, jit_options=OPTIONS)(lambda a: lambda a: abs(a))
    overload(stub, jit_options=OPTIONS)(lambda a, b, c, *more: lambda a, b, c, *more: stub(stub(a, b), c, *more))
    return stub


def _function_of_two(name: str, plain: Any, both: Any = None) -> Any:
    """A function of two numbers: ``both`` takes two duals, ``plain`` two reals, or whatever operators of duals take."""

    def stub(a, b):
        raise NotImplementedError(name)

    def chosen(a, b):
        if both is None or DUAL not in (a, b):
            return plain
        return lambda a, b: both(a + dual(0.0, 0.0), b + dual(0.0, 0.0))

    stub.__name__ = stub.__qualname__ = name
    overload(stub, jit_options=OPTIONS, prefer_literal=True)(chosen)
    return stub


@inline
def _angle(y, x):
    r = math.hypot(x.value, y.value)
    slope = chained(x.value / r / r, y.slope) - chained(y.value / r / r, x.slope)
    return dual(math.atan2(y.value, x.value), slope)


@inline
def _signed(a, b):
    value = math.copysign(a.value, b.value)
    return dual(value, a.slope if value == a.value else -a.slope)


@inline
def _remainder(a, b):
    value = np.fmod(a.value, b.value)
    return dual(value, a.slope - np.rint((a.value - value) / b.value) * b.slope)


@inline
def _log_of_sum(a, b):
    first, second = 1.0 / (1.0 + elementary.exp(b.value - a.value)), 1.0 / (1.0 + elementary.exp(a.value - b.value))
    return dual(np.logaddexp(a.value, b.value), first * a.slope + second * b.slope)


@inline
def _step(a, b):
    """Of numpy: 0, or b at a = 0, or 1; not a number where a is none."""
    value = b.value if a.value == 0.0 else (1.0 if a.value > 0.0 else (0.0 if a.value < 0.0 else a.value))
    return dual(value, b.slope if a.value == 0.0 else 0.0)


power = _function_of_two("power", lambda a, b: a**b)
maximum = _function_of_two("maximum", lambda a, b: max(a, b))
minimum = _function_of_two("minimum", lambda a, b: min(a, b))
hypot = _of_many(_function_of_two("hypot", lambda a, b: sqrt(a * a + b * b)))
plain_hypot = _of_many(_function_of_two("hypot", lambda a, b: math.hypot(a, b)))
fmax = _function_of_two("fmax", lambda a, b: np.fmax(a, b), inline(lambda a, b: a if a >= b or b != b else b))
fmin = _function_of_two("fmin", lambda a, b: np.fmin(a, b), inline(lambda a, b: a if a <= b or b != b else b))
plain_fmod = inline(lambda a, b: np.fmod(float(a), float(b)))
fmod = _function_of_two("fmod", lambda a, b: np.fmod(a, b), _remainder)
logaddexp = _function_of_two("logaddexp", lambda a, b: np.logaddexp(a, b), _log_of_sum)
heaviside = _function_of_two(
    "heaviside", lambda a, b: float(b) if a == 0.0 else (1.0 if a > 0.0 else (0.0 if a < 0.0 else float(a))), _step
)
arctan2 = _function_of_two("arctan2", lambda a, b: math.atan2(a, b), _angle)
copysign = _function_of_two("copysign", lambda a, b: math.copysign(a, b), _signed)


def where(condition, a, b):
    """numpy's, of numbers; arrays, which a filled drift may have, go to numpy's own."""
    raise NotImplementedError("where")


@overload(where, jit_options=OPTIONS)
def _where(condition, a, b):
    if DUAL in (a, b):
        # Both are made duals: what is chosen has one type.
        return lambda condition, a, b: a + dual(0.0, 0.0) if condition else b + dual(0.0, 0.0)
    if is_real(a) and is_real(b) and (is_real(condition) or condition is DUAL):
        return lambda condition, a, b: a if condition else b
    return lambda condition, a, b: np.where(condition, a, b)


def clip(a, a_min, a_max):
    """numpy's, of numbers; a bound may be None."""
    raise NotImplementedError("clip")


@overload(clip, jit_options=OPTIONS)
def _clip(a, a_min, a_max):
    if a is not DUAL and not is_real(a):
        return lambda a, a_min, a_max: np.clip(a, a_min, a_max)
    if isinstance(a_min, types.NoneType):
        return lambda a, a_min, a_max: where(a > a_max, a_max, a)
    if isinstance(a_max, types.NoneType):
        return lambda a, a_min, a_max: where(a < a_min, a_min, a)
    # Of bounds in the wrong order the upper one counts, as with numpy.
    return lambda a, a_min, a_max: where(a > a_max, a_max, where(a < a_min, where(a_min > a_max, a_max, a_min), a))


def dist(p, q):
    """math's, of two points as tuples."""
    raise NotImplementedError("dist")


def prod(numbers):
    """math's, of a tuple."""
    raise NotImplementedError("prod")


@overload(dist, jit_options=OPTIONS)
def _dist(p, q):
    if not isinstance(p, types.BaseTuple) or not isinstance(q, types.BaseTuple) or len(p) != len(q):
        return None
    # Written out: no loop takes a tuple of floats and duals.
    return eval(f"lambda p, q: sqrt({' + '.join(f'(p[{i}] - q[{i}]) ** 2' for i in range(len(p)))})", {"sqrt": sqrt})


@overload(prod, jit_options=OPTIONS)
def _prod(numbers):
    if not isinstance(numbers, types.BaseTuple):
        return None
    return eval(f"lambda numbers: {' * '.join(f'numbers[{i}]' for i in range(len(numbers))) or 1}")


def total(values, axis=None):
    """numpy's sum, of a list or tuple, or of an array of floats."""
    raise NotImplementedError("sum")


def inner(a, b):
    """numpy's dot, of two points, lists or tables, or of arrays of floats."""
    raise NotImplementedError("dot")


total.__name__, inner.__name__ = "sum", "dot"


@overload(total, jit_options=OPTIONS)
def _total(values, axis=None):
    if isinstance(values, types.Array):
        return lambda values, axis=None: np.sum(values, axis)
    plain = axis is None or isinstance(axis, types.NoneType | types.Omitted)
    return (lambda values, axis=None: sum(values)) if plain and isinstance(values, types.IterableType) else None


@overload(inner, jit_options=OPTIONS)
def _inner(a, b):
    arrays = [kind for kind in (a, b) if isinstance(kind, types.Array)]
    if len(arrays) == 2:
        return lambda a, b: np.dot(a, b)
    if any(kind.ndim != 1 for kind in arrays) or not all(isinstance(kind, types.IterableType) for kind in (a, b)):
        return None

    def summed(a, b):
        found = 0.0
        for left, right in zip(a, b):  # noqa: B905 (Numba has no strict=)
            found = found + left * right
        return found

    return summed


def _of_floats(name: str, scalar: Any, arrays: Any) -> Any:
    """A function of numpy where there are no duals: ``scalar`` of a number, numpy's own of an array."""

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = stub.__qualname__ = name
    overload(stub, jit_options=OPTIONS)(lambda x: (lambda x: scalar(float(x))) if is_real(x) else (lambda x: arrays(x)))
    return stub


REPLACED = {
    math.exp: exp, math.expm1: expm1, math.exp2: exp2, math.log: log, math.log1p: log1p, math.log2: log2, math.log10: log10,
    math.sqrt: sqrt, math.cbrt: cbrt, math.sin: sin, math.cos: cos, math.tan: tan, math.sinh: sinh, math.cosh: cosh,
    math.tanh: tanh, math.asin: arcsin, math.acos: arccos, math.atan: arctan, math.asinh: arcsinh, math.acosh: arccosh,
    math.atanh: arctanh, math.erf: erf, math.erfc: erfc, math.gamma: gamma, math.lgamma: lgamma,
    math.radians: radians, math.degrees: degrees, math.fabs: absolute,
    math.floor: whole_floor, math.ceil: whole_ceil, math.trunc: whole_trunc,
    math.isnan: isnan, math.isinf: isinf, math.isfinite: isfinite,
    math.pow: power, math.hypot: hypot, math.atan2: arctan2, math.copysign: copysign, math.fmod: fmod,
    math.dist: dist, math.prod: prod,
    np.exp: exp, np.expm1: expm1, np.exp2: exp2, np.log: log, np.log1p: log1p, np.log2: log2, np.log10: log10,
    np.sqrt: sqrt, np.cbrt: cbrt, np.sin: sin, np.cos: cos, np.tan: tan, np.sinh: sinh, np.cosh: cosh,
    np.tanh: tanh, np.arcsin: arcsin, np.arccos: arccos, np.arctan: arctan, np.arcsinh: arcsinh, np.arccosh: arccosh,
    np.arctanh: arctanh, np.sinc: sinc,
    np.radians: radians, np.deg2rad: radians, np.degrees: degrees, np.rad2deg: degrees, np.abs: absolute, np.fabs: absolute,
    np.floor: floor, np.ceil: ceil, np.trunc: trunc, np.sign: sign,
    np.isnan: isnan, np.isinf: isinf, np.isfinite: isfinite,
    np.power: power, np.float_power: power, np.hypot: hypot, np.arctan2: arctan2, np.copysign: copysign, np.fmod: fmod,
    np.maximum: maximum, np.minimum: minimum, np.fmax: fmax, np.fmin: fmin, np.logaddexp: logaddexp,
    np.heaviside: heaviside, np.where: where, np.clip: clip, np.sum: total, np.dot: inner,
    np.negative: operator.neg, np.add: operator.add, np.subtract: operator.sub, np.multiply: operator.mul,
    np.divide: operator.truediv, np.remainder: operator.mod, np.floor_divide: operator.floordiv,
    np.square: inline(lambda x: x * x), np.reciprocal: inline(lambda x: 1.0 / x),
}  # fmt: skip
"""What stands for a function of ``math`` or ``numpy`` where duals come in."""

PLAIN = {
    math.exp: elementary.exp, math.expm1: elementary.expm1, math.log: log, math.sin: _sin, math.cos: _cos,
    math.tanh: elementary.tanh, math.sqrt: np.sqrt,
    np.exp: _of_floats("exp", elementary.exp, np.exp), np.expm1: _of_floats("expm1", elementary.expm1, np.expm1),
    np.log: _of_floats("log", elementary.log, np.log), np.tanh: _of_floats("tanh", elementary.tanh, np.tanh),
    np.sin: _of_floats("sin", _sin, np.sin), np.cos: _of_floats("cos", _cos, np.cos),
    math.exp2: np.exp2, math.cbrt: np.cbrt, math.fmod: plain_fmod, math.hypot: plain_hypot, math.dist: dist, math.prod: prod,
    np.heaviside: heaviside, np.where: where, np.clip: clip,
}  # fmt: skip
"""The same for plain floats, which compile faster; other functions stay as they are."""
