"""Dual numbers v + s eps with eps**2 = 0: exact derivatives of a compiled scalar function (forward mode).

A function that is called with duals in place of floats returns duals, whose slopes are the derivatives in the seeded
direction.  Branches are taken by the values.  The elementary functions here take floats and duals alike; in user code they
stand for those of ``math`` and ``numpy`` (see `thermodiff.kernels.user`).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv.castgraph import Conversion
from numba.extending import intrinsic, lower_cast, make_attribute_wrapper, models, overload, register_model

from thermodiff.kernels import elementary
from thermodiff.kernels.jit import FLAGS, inline

OPTIONS = {**{k: v for k, v in FLAGS.items() if k not in ("cache", "nogil")}, "forceinline": True}


def _real(kind: Any) -> bool:
    return isinstance(kind, types.Float | types.Integer | types.Boolean)


class DualType(types.Type):
    """Numba's name for a dual number."""

    def __init__(self) -> None:
        super().__init__(name="Dual")

    def unify(self, typingctx: Any, other: Any) -> Any:
        """A variable that holds a float first and a dual later is a dual."""
        return self if _real(other) else None

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """Numba asks whether a real number may become a dual."""
        return Conversion.safe if _real(other) else None


DUAL = DualType()


@register_model(DualType)
class DualModel(models.StructModel):
    """Two doubles."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, [("value", types.float64), ("slope", types.float64)])


make_attribute_wrapper(DualType, "value", "value")
make_attribute_wrapper(DualType, "slope", "slope")


@lower_cast(types.Float, DualType)
@lower_cast(types.Integer, DualType)
@lower_cast(types.Boolean, DualType)
def _to_dual(context: Any, builder: ir.IRBuilder, given: Any, kind: Any, value: Any) -> Any:
    made = cgutils.create_struct_proxy(DUAL)(context, builder)
    made.value = context.cast(builder, value, given, types.float64)
    made.slope = ir.Constant(ir.DoubleType(), 0.0)
    return made._getvalue()


@intrinsic
def dual(typingctx: Any, value: Any, slope: Any) -> Any:
    """The dual number with these parts."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        made = cgutils.create_struct_proxy(DUAL)(context, builder)
        made.value, made.slope = args
        return made._getvalue()

    return DUAL(types.float64, types.float64), codegen


def _binary(operations: tuple[Any, ...], both: Any, left: Any, right: Any) -> None:
    """Overload operators for (dual, dual), (dual, real) and (real, dual)."""

    def chosen(a, b):
        if a is DUAL and b is DUAL:
            return both
        if a is DUAL and _real(b):
            return left
        return right if _real(a) and b is DUAL else None

    for operation in operations:
        overload(operation, jit_options=OPTIONS)(chosen)


_binary(
    (operator.add, operator.iadd),
    lambda a, b: dual(a.value + b.value, a.slope + b.slope),
    lambda a, b: dual(a.value + b, a.slope),
    lambda a, b: dual(a + b.value, b.slope),
)
_binary(
    (operator.sub, operator.isub),
    lambda a, b: dual(a.value - b.value, a.slope - b.slope),
    lambda a, b: dual(a.value - b, a.slope),
    lambda a, b: dual(a - b.value, -b.slope),
)
_binary(
    (operator.mul, operator.imul),
    lambda a, b: dual(a.value * b.value, a.slope * b.value + a.value * b.slope),
    lambda a, b: dual(a.value * b, a.slope * b),
    lambda a, b: dual(a * b.value, a * b.slope),
)
_binary(
    (operator.truediv, operator.itruediv),
    lambda a, b: dual(a.value / b.value, (a.slope - a.value / b.value * b.slope) / b.value),
    lambda a, b: dual(a.value / b, a.slope / b),
    lambda a, b: dual(a / b.value, -a / b.value * b.slope / b.value),
)


_binary((operator.lt,), lambda a, b: a.value < b.value, lambda a, b: a.value < b, lambda a, b: a < b.value)
_binary((operator.le,), lambda a, b: a.value <= b.value, lambda a, b: a.value <= b, lambda a, b: a <= b.value)
_binary((operator.gt,), lambda a, b: a.value > b.value, lambda a, b: a.value > b, lambda a, b: a > b.value)
_binary((operator.ge,), lambda a, b: a.value >= b.value, lambda a, b: a.value >= b, lambda a, b: a >= b.value)
_binary((operator.eq,), lambda a, b: a.value == b.value, lambda a, b: a.value == b, lambda a, b: a == b.value)
_binary((operator.ne,), lambda a, b: a.value != b.value, lambda a, b: a.value != b, lambda a, b: a != b.value)


@overload(operator.neg, jit_options=OPTIONS)
def _negative(a):
    return (lambda a: dual(-a.value, -a.slope)) if a is DUAL else None


@overload(operator.pos, jit_options=OPTIONS)
def _positive(a):
    return (lambda a: a) if a is DUAL else None


_binary(
    (operator.mod, operator.imod),
    lambda a, b: dual(a.value % b.value, a.slope - (a.value // b.value) * b.slope),
    lambda a, b: dual(a.value % b, a.slope),
    lambda a, b: dual(a % b.value, -(a // b.value) * b.slope),
)
_binary(
    (operator.floordiv, operator.ifloordiv),
    lambda a, b: dual(a.value // b.value, 0.0),
    lambda a, b: dual(a.value // b, 0.0),
    lambda a, b: dual(a // b.value, 0.0),
)
_binary(
    (max,),
    lambda a, b: a if a.value >= b.value else b,
    lambda a, b: a if a.value >= b else dual(b + 0.0, 0.0),
    lambda a, b: dual(a + 0.0, 0.0) if a >= b.value else b,
)
_binary(
    (min,),
    lambda a, b: a if a.value <= b.value else b,
    lambda a, b: a if a.value <= b else dual(b + 0.0, 0.0),
    lambda a, b: dual(a + 0.0, 0.0) if a <= b.value else b,
)


@overload(max, jit_options=OPTIONS)
def _largest(a, b, c):
    return (lambda a, b, c: max(max(a, b), c)) if DUAL in (a, b, c) else None


@overload(min, jit_options=OPTIONS)
def _smallest(a, b, c):
    return (lambda a, b, c: min(min(a, b), c)) if DUAL in (a, b, c) else None


@overload(operator.ipow, jit_options=OPTIONS, prefer_literal=True)
@overload(operator.pow, jit_options=OPTIONS, prefer_literal=True)
def _power(a, b):
    if a is DUAL and isinstance(b, types.IntegerLiteral):
        n, below = b.literal_value, b.literal_value - 1
        if n == 0:
            return lambda a, b: dual(1.0, 0.0)
        if n == 2:
            return lambda a, b: dual(a.value * a.value, 2.0 * a.value * a.slope)

        def fixed(a, b):
            power = a.value**below
            return dual(power * a.value, n * power * a.slope)

        return fixed
    if a is DUAL and _real(b):
        # x**0 is 1 everywhere, also at 0, where the formula would give 0 times infinity.
        return lambda a, b: dual(a.value**b, b * a.value ** (b - 1.0) * a.slope if b != 0.0 else 0.0)
    if _real(a) and b is DUAL:

        def exponential(a, b):
            power = a**b.value
            return dual(power, np.log(a) * power * b.slope if b.slope != 0.0 else 0.0)

        return exponential
    if a is DUAL and b is DUAL:

        def general(a, b):
            power = a.value**b.value
            slope = b.value * a.value ** (b.value - 1.0) * a.slope if b.value != 0.0 else 0.0
            # A constant that was made a dual: the base may be negative.
            return dual(power, slope + power * np.log(a.value) * b.slope if b.slope != 0.0 else slope)

        return general
    return None


@overload(abs, jit_options=OPTIONS)
def _absolute(a):
    return (lambda a: dual(abs(a.value), a.slope if a.value >= 0.0 else -a.slope)) if a is DUAL else None


@overload(float, jit_options=OPTIONS)
def _float(a):
    return (lambda a: a) if a is DUAL else None


def _function(name: str, plain: Any, derivative: Any) -> Any:
    """An elementary function of floats and duals; ``derivative(x, f(x))`` is f'(x)."""

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = name

    @overload(stub, jit_options=OPTIONS)
    def chosen(x):
        if x is DUAL:

            def with_slope(x):
                value = plain(x.value)
                return dual(value, derivative(x.value, value) * x.slope)

            return with_slope
        if _real(x):
            return lambda x: plain(float(x))
        return None

    return stub


_BELL = 2.0 / math.sqrt(math.pi)


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
log = _function("log", elementary.log, inline(lambda x, y: 1.0 / x))
log1p = _function("log1p", inline(lambda x: math.log1p(x)), inline(lambda x, y: 1.0 / (1.0 + x)))
sqrt = _function("sqrt", inline(lambda x: np.sqrt(x)), inline(lambda x, y: 0.5 / y))
sin = _function("sin", _sin, inline(lambda x, y: _cos(x)))
cos = _function("cos", _cos, inline(lambda x, y: -_sin(x)))
tan = _function("tan", inline(lambda x: math.tan(x)), inline(lambda x, y: 1.0 + y * y))
tanh = _function("tanh", elementary.tanh, inline(lambda x, y: 1.0 - y * y))
sinh = _function("sinh", inline(lambda x: math.sinh(x)), inline(lambda x, y: math.cosh(x)))
cosh = _function("cosh", inline(lambda x: math.cosh(x)), inline(lambda x, y: math.sinh(x)))
arctan = _function("arctan", inline(lambda x: math.atan(x)), inline(lambda x, y: 1.0 / (1.0 + x * x)))
arcsin = _function("arcsin", inline(lambda x: math.asin(x)), inline(lambda x, y: 1.0 / np.sqrt(1.0 - x * x)))
arccos = _function("arccos", inline(lambda x: math.acos(x)), inline(lambda x, y: -1.0 / np.sqrt(1.0 - x * x)))
absolute = _function("absolute", inline(lambda x: abs(x)), inline(lambda x, y: 1.0 if x >= 0.0 else -1.0))
erf = _function("erf", inline(lambda x: math.erf(x)), inline(lambda x, y: _BELL * elementary.exp(-x * x)))
erfc = _function("erfc", inline(lambda x: math.erfc(x)), inline(lambda x, y: -_BELL * elementary.exp(-x * x)))


def _steps(name: str, plain: Any, whole: Any = None) -> Any:
    """A function that is constant but for jumps; ``whole``, where given, makes integers of real numbers (as indices)."""
    real = whole or plain

    def stub(x):
        raise NotImplementedError(name)

    stub.__name__ = name

    @overload(stub, jit_options=OPTIONS)
    def chosen(x):
        if x is DUAL:
            return lambda x: dual(plain(x.value), 0.0)
        return (lambda x: real(x)) if _real(x) else None

    return stub


floor = _steps("floor", inline(lambda x: np.floor(x)))
ceil = _steps("ceil", inline(lambda x: np.ceil(x)))
trunc = _steps("trunc", inline(lambda x: np.trunc(x)))
sign = _steps("sign", inline(lambda x: np.sign(x)))
whole_floor = _steps("floor", inline(lambda x: np.floor(x)), inline(lambda x: math.floor(x)))
whole_ceil = _steps("ceil", inline(lambda x: np.ceil(x)), inline(lambda x: math.ceil(x)))
whole_trunc = _steps("trunc", inline(lambda x: np.trunc(x)), inline(lambda x: math.trunc(x)))


def _function_of_two(name: str, plain: Any, both: Any = None) -> Any:
    """A function of two numbers: ``both`` takes two duals, ``plain`` two reals, or whatever operators of duals take."""

    def stub(a, b):
        raise NotImplementedError(name)

    def chosen(a, b):
        if both is None or DUAL not in (a, b):
            return plain
        return lambda a, b: both(a + dual(0.0, 0.0), b + dual(0.0, 0.0))

    stub.__name__ = name
    overload(stub, jit_options=OPTIONS, prefer_literal=True)(chosen)
    return stub


@inline
def _angle(y, x):
    r = math.hypot(x.value, y.value)
    return dual(math.atan2(y.value, x.value), (x.value / r * y.slope - y.value / r * x.slope) / r)


@inline
def _signed(a, b):
    value = math.copysign(a.value, b.value)
    return dual(value, a.slope if value == a.value else -a.slope)


power = _function_of_two("power", lambda a, b: a**b)
maximum = _function_of_two("maximum", lambda a, b: max(a, b))
minimum = _function_of_two("minimum", lambda a, b: min(a, b))
hypot = _function_of_two("hypot", lambda a, b: sqrt(a * a + b * b))
arctan2 = _function_of_two("arctan2", lambda a, b: math.atan2(a, b), _angle)
copysign = _function_of_two("copysign", lambda a, b: math.copysign(a, b), _signed)


REPLACED = {
    math.exp: exp, math.expm1: expm1, math.log: log, math.log1p: log1p, math.sqrt: sqrt, math.sin: sin, math.cos: cos,
    math.tan: tan, math.tanh: tanh, math.sinh: sinh, math.cosh: cosh, math.atan: arctan, math.asin: arcsin,
    math.acos: arccos, math.fabs: absolute, math.erf: erf, math.erfc: erfc,
    math.floor: whole_floor, math.ceil: whole_ceil, math.trunc: whole_trunc,
    np.exp: exp, np.expm1: expm1, np.log: log, np.log1p: log1p, np.sqrt: sqrt, np.sin: sin, np.cos: cos,
    np.tan: tan, np.tanh: tanh, np.sinh: sinh, np.cosh: cosh, np.arctan: arctan, np.arcsin: arcsin,
    np.arccos: arccos, np.abs: absolute, np.fabs: absolute, np.floor: floor, np.ceil: ceil, np.trunc: trunc, np.sign: sign,
    math.pow: power, math.hypot: hypot, np.power: power, np.hypot: hypot, np.maximum: maximum, np.minimum: minimum,
    math.atan2: arctan2, np.arctan2: arctan2, math.copysign: copysign, np.copysign: copysign,
    np.square: inline(lambda x: x * x),
}  # fmt: skip
"""What stands for a function of ``math`` or ``numpy`` where duals come in."""

PLAIN = {
    math.exp: elementary.exp, math.expm1: elementary.expm1, math.log: elementary.log, math.sin: _sin, math.cos: _cos,
    math.tanh: elementary.tanh, math.sqrt: np.sqrt,
    np.exp: elementary.exp, np.expm1: elementary.expm1, np.log: elementary.log, np.sin: _sin, np.cos: _cos,
    np.tanh: elementary.tanh,
}  # fmt: skip
"""The same for plain floats, which compile faster; other functions stay as they are."""
