"""Dual numbers v + s eps with eps**2 = 0: exact derivatives of a compiled scalar function (forward mode).

A function that is called with duals in place of floats returns duals, whose slopes are the derivatives in the seeded
direction.  Branches are taken by the values.  Operators are here, functions in `thermodiff.kernels.functions`.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv.castgraph import Conversion
from numba.extending import intrinsic, lower_cast, make_attribute_wrapper, models, overload, register_model

from thermodiff.kernels.jit import FLAGS, inline

OPTIONS = {**{k: v for k, v in FLAGS.items() if k not in ("cache", "nogil")}, "forceinline": True, "no_cfunc_wrapper": True}


def is_real(kind: Any) -> bool:
    """Whether a Numba type is that of real numbers."""
    return isinstance(kind, types.Float | types.Integer | types.Boolean)


class DualType(types.Type):
    """Numba's name for a dual number."""

    def __init__(self) -> None:
        super().__init__(name="Dual")

    def unify(self, typingctx: Any, other: Any) -> Any:
        """A variable that holds a float first and a dual later is a dual."""
        return self if is_real(other) else None

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """Numba asks whether a real number may become a dual."""
        return Conversion.safe if is_real(other) else None


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
        if a is DUAL and is_real(b):
            return left
        return right if is_real(a) and b is DUAL else None

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
def _largest(a, b, c, *more):  # noqa: ANN002 (Numba wants the names alone)
    return (lambda a, b, c, *more: max(max(a, b), c, *more)) if DUAL in (a, b, c, *more) else None


@overload(min, jit_options=OPTIONS)
def _smallest(a, b, c, *more):  # noqa: ANN002 (Numba wants the names alone)
    return (lambda a, b, c, *more: min(min(a, b), c, *more)) if DUAL in (a, b, c, *more) else None


@inline
def chained(derivative, slope):
    """Their product, and 0 where the slope is: a derivative that is infinite at this point then counts for nothing."""
    product = derivative * slope
    return product if slope != 0.0 else 0.0


@overload(pow, jit_options=OPTIONS, prefer_literal=True)
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
    if a is DUAL and is_real(b):
        # x**0 is 1 everywhere, also at 0, where the formula would give 0 times infinity.
        return lambda a, b: dual(a.value**b, chained(b * a.value ** (b - 1.0) if b != 0.0 else 0.0, a.slope))
    if is_real(a) and b is DUAL:

        def exponential(a, b):
            power = a**b.value
            return dual(power, chained(np.log(a) * power, b.slope))

        return exponential
    if a is DUAL and b is DUAL:

        def general(a, b):
            power = a.value**b.value
            slope = chained(b.value * a.value ** (b.value - 1.0) if b.value != 0.0 else 0.0, a.slope)
            # A constant that was made a dual has no slope; the base may be negative then.
            return dual(power, slope + chained(power * np.log(a.value), b.slope))

        return general
    return None


@overload(abs, jit_options=OPTIONS)
def _absolute(a):
    return (lambda a: dual(abs(a.value), a.slope if a.value >= 0.0 else -a.slope)) if a is DUAL else None


@overload(float, jit_options=OPTIONS)
def _float(a):
    return (lambda a: a) if a is DUAL else None


@overload(int, jit_options=OPTIONS)
def _int(a):
    return (lambda a: int(a.value)) if a is DUAL else None


@overload(round, jit_options=OPTIONS)
def _round(a):
    return (lambda a: round(a.value)) if a is DUAL else None


@overload(bool, jit_options=OPTIONS)
def _truth(a):
    return (lambda a: a.value != 0.0) if a is DUAL else None
