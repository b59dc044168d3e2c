"""The point of one lane, as a user's function sees it: a tuple, or in many dimensions a view of memory.

An index into a tuple that is known at run time only becomes a jump to one of d places, and a loop over such indices a
program that takes a compiler minutes at d = 64.  `PointType` has the same indices, slices and loops, and reads memory; what
else a tuple can do it leaves to the tuple.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.core.imputils import RefType, iternext_impl
from numba.core.typing.templates import AbstractTemplate, infer, infer_global
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

from thermodiff.kernels.dual import DUAL, OPTIONS, is_real
from thermodiff.kernels.jit import LANES

_WORD = ir.IntType(64)


class PointIterator(types.SimpleIteratorType):
    """Numba's name for a loop over a point."""

    def __init__(self, point: PointType) -> None:
        self.point = point
        super().__init__(f"iter({point.name})", point.dtype)


class PointType(types.IterableType):
    """Numba's name for the coordinates of one lane, or some of them: floats or duals; a part has no fixed ``count``."""

    def __init__(self, dtype: Any, count: int | None) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Point({dtype}, {count})")

    @property
    def iterator_type(self) -> PointIterator:
        """What a loop over it is."""
        return PointIterator(self)


@register_model(PointType)
class PointModel(models.StructModel):
    """Where the first row of the lane is, the direction with slope 1, and which coordinates these are."""

    def __init__(self, manager: Any, kind: Any) -> None:
        words = [(name, types.int64) for name in ("direction", "first", "step", "count")]
        super().__init__(manager, kind, [("lane", types.CPointer(types.float64)), *words])


@register_model(PointIterator)
class IteratorModel(models.StructModel):
    """A point, and how far the loop is."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, [("place", types.EphemeralPointer(types.int64)), ("point", kind.point)])


def _at_lane(context: Any, builder: ir.IRBuilder, rows: Any, kind: Any, lane: Any) -> Any:
    """Where a lane is in the first row; all others stand at constant distances from there."""
    return builder.gep(context.make_array(kind)(context, builder, rows).data, [lane])


def _row(builder: ir.IRBuilder, lane: Any, j: Any) -> Any:
    j = ir.Constant(_WORD, j) if isinstance(j, int) else j
    return builder.gep(lane, [builder.mul(j, ir.Constant(_WORD, LANES))])


def _seeded(context: Any, builder: ir.IRBuilder, value: Any, direction: Any, j: Any) -> Any:
    """A dual with the slope 1 in its direction, and 0 in others."""
    made = cgutils.create_struct_proxy(DUAL)(context, builder)
    j = ir.Constant(_WORD, j) if isinstance(j, int) else j
    made.value = value
    made.slope = builder.uitofp(builder.icmp_signed("==", direction, j), ir.DoubleType())
    return made._getvalue()


@intrinsic(prefer_literal=True)
def floats_at(typingctx: Any, rows: Any, lane: Any, dim: Any, direction: Any) -> Any:
    """The point of a lane as a tuple of floats; ``rows`` is the first row, and the direction counts for duals only.

    One call, where Python would index ``dim`` times: the front of the compiler takes its time with each.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start = _at_lane(context, builder, args[0], rows, args[1])
        entries = [builder.load(_row(builder, start, j)) for j in range(dim.literal_value)]
        return context.make_tuple(builder, signature.return_type, entries)

    return types.UniTuple(types.float64, dim.literal_value)(rows, types.int64, dim, types.int64), codegen


@intrinsic(prefer_literal=True)
def duals_at(typingctx: Any, rows: Any, lane: Any, dim: Any, direction: Any) -> Any:
    """The same of duals, with the slope 1 in one direction."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start = _at_lane(context, builder, args[0], rows, args[1])
        values = [builder.load(_row(builder, start, j)) for j in range(dim.literal_value)]
        entries = [_seeded(context, builder, value, args[3], j) for j, value in enumerate(values)]
        return context.make_tuple(builder, signature.return_type, entries)

    return types.UniTuple(DUAL, dim.literal_value)(rows, types.int64, dim, types.int64), codegen


def _view(rows: Any, dim: Any, dtype: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        made = cgutils.create_struct_proxy(signature.return_type)(context, builder)
        made.lane = _at_lane(context, builder, args[0], rows, args[1])
        made.direction = args[3]
        made.first, made.step = ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)
        made.count = ir.Constant(_WORD, dim.literal_value)
        return made._getvalue()

    return PointType(dtype, dim.literal_value)(rows, types.int64, dim, types.int64), codegen


@intrinsic(prefer_literal=True)
def view_of_floats(typingctx: Any, rows: Any, lane: Any, dim: Any, direction: Any) -> Any:
    """The point of a lane as a view of floats."""
    return _view(rows, dim, types.float64)


@intrinsic(prefer_literal=True)
def view_of_duals(typingctx: Any, rows: Any, lane: Any, dim: Any, direction: Any) -> Any:
    """The same of duals, with the slope 1 in one direction."""
    return _view(rows, dim, DUAL)


@intrinsic
def store_at(typingctx: Any, rows: Any, lane: Any, values: Any) -> Any:
    """Write a tuple of real numbers into the rows of a lane."""
    if not isinstance(values, types.BaseTuple) or not all(is_real(kind) for kind in values):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start = _at_lane(context, builder, args[0], rows, args[1])
        for j, kind in enumerate(values):
            value = context.cast(builder, builder.extract_value(args[2], j), kind, types.float64)
            builder.store(value, _row(builder, start, j))
        return context.get_dummy_value()

    return types.none(rows, types.int64, values), codegen


@intrinsic
def store_dual_at(typingctx: Any, rows: Any, lane: Any, values: Any, i: Any) -> Any:
    """Write entry i of a tuple of d numbers into row i, and its slope into row d + i."""
    if not isinstance(values, types.BaseTuple) or not all(is_real(kind) or kind is DUAL for kind in values):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        parts = [ir.Constant(ir.DoubleType(), 0.0)] * 2
        for j, kind in enumerate(values):
            made = context.cast(builder, builder.extract_value(args[2], j), kind, DUAL)
            entry, here = cgutils.create_struct_proxy(DUAL)(context, builder, value=made), ir.Constant(_WORD, j)
            this = builder.icmp_signed("==", args[3], here)
            parts = [builder.select(this, *pair) for pair in zip((entry.value, entry.slope), parts, strict=True)]
        row = _row(builder, _at_lane(context, builder, args[0], rows, args[1]), args[3])
        builder.store(parts[0], row)
        builder.store(parts[1], _row(builder, row, len(values)))
        return context.get_dummy_value()

    return types.none(rows, types.int64, values, types.int64), codegen


@intrinsic(prefer_literal=True)
def repeated(typingctx: Any, value: Any, dim: Any) -> Any:
    """A tuple of ``dim`` times the same."""
    kind = types.unliteral(value)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [args[0]] * dim.literal_value)

    return types.UniTuple(kind, dim.literal_value)(kind, dim), codegen


def _read(context: Any, builder: ir.IRBuilder, kind: Any, point: Any, i: Any) -> Any:
    """Entry i of a point, which must have it."""
    point = cgutils.create_struct_proxy(kind)(context, builder, value=point)
    j = i if kind.count is not None else builder.add(point.first, builder.mul(point.step, i))
    value = builder.load(_row(builder, point.lane, j))
    return _seeded(context, builder, value, point.direction, j) if kind.dtype is DUAL else value


@intrinsic
def _part(typingctx: Any, point: Any, first: Any, step: Any, count: Any) -> Any:
    """``count`` entries from ``first`` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        whole = cgutils.create_struct_proxy(point)(context, builder, value=args[0])
        made = cgutils.create_struct_proxy(signature.return_type)(context, builder)
        made.lane, made.direction = whole.lane, whole.direction
        made.first = builder.add(whole.first, builder.mul(whole.step, args[1]))
        made.step, made.count = builder.mul(whole.step, args[2]), args[3]
        return made._getvalue()

    return PointType(point.dtype, None)(point, types.int64, types.int64, types.int64), codegen


@intrinsic
def _count(typingctx: Any, point: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return cgutils.create_struct_proxy(point)(context, builder, value=args[0]).count

    return types.int64(point), codegen


@overload(len, jit_options=OPTIONS)
def _length(x):
    if not isinstance(x, PointType):
        return None
    # A number where it is known: loops of so many rounds need no check of their indices.
    dim = x.count
    return (lambda x: _count(x)) if dim is None else (lambda x: dim)


@overload(operator.getitem, jit_options=OPTIONS)
def _slice(x, i):
    if not isinstance(x, PointType) or not isinstance(i, types.SliceType):
        return None

    def some(x, i):
        first, stop, step = i.indices(len(x))
        return _part(x, first, step, max(0, (stop - first + step - (1 if step > 0 else -1)) // step))

    return some


@infer_global(operator.getitem)  # pyright: ignore[reportOptionalCall]
class Item(AbstractTemplate):
    """The type of an entry.  No function is compiled for it: an energy in explicit terms would need one for each index."""

    def generic(self, args: Any, kws: Any) -> Any:
        """The signature, of a point and a whole number."""
        x, i = args
        return x.dtype(x, types.int64) if isinstance(x, PointType) and isinstance(i, types.Integer) else None


@infer
class KnownItem(AbstractTemplate):
    """An index that is written as a number is refused where it is out of range; all others are entries as any."""

    key = "static_getitem"

    def generic(self, args: Any, kws: Any) -> None:
        """No signature of its own."""
        x, i = args
        if isinstance(x, PointType) and isinstance(i, int) and x.count is not None and not -x.count <= i < x.count:
            raise errors.NumbaIndexError("tuple index out of range")


@lower_builtin(operator.getitem, PointType, types.int64)
def _item(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    kind, i = signature.args[0], args[1]
    zero = ir.Constant(_WORD, 0)
    count = cgutils.create_struct_proxy(kind)(context, builder, value=args[0]).count
    count = count if kind.count is None else ir.Constant(_WORD, kind.count)
    i = builder.select(builder.icmp_signed("<", i, zero), builder.add(i, count), i)
    # As an unsigned number, one below zero is a large one.
    with builder.if_then(builder.icmp_unsigned(">=", i, count), likely=False):
        context.call_conv.return_user_exc(builder, IndexError, ("tuple index out of range",))
    return _read(context, builder, kind, args[0], i)


@lower_builtin("getiter", PointType)
def _getiter(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    made = context.make_helper(builder, signature.return_type)
    made.place = cgutils.alloca_once_value(builder, ir.Constant(_WORD, 0))
    made.point = args[0]
    return made._getvalue()


@lower_builtin("iternext", PointIterator)
@iternext_impl(RefType.UNTRACKED)
def _iternext(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, result: Any) -> None:
    kind = signature.args[0].point
    made = context.make_helper(builder, signature.args[0], value=args[0])
    i = builder.load(made.place)
    count = cgutils.create_struct_proxy(kind)(context, builder, value=made.point).count
    there = builder.icmp_signed("<", i, count if kind.count is None else ir.Constant(_WORD, kind.count))
    result.set_valid(there)
    with builder.if_then(there):
        result.yield_(_read(context, builder, kind, made.point, i))
        builder.store(builder.add(i, ir.Constant(_WORD, 1)), made.place)


@overload(sum, jit_options=OPTIONS)
def _sum(x, start=0):
    if not isinstance(x, PointType):
        return None

    def total(x, start=0):
        found = start
        for value in x:
            found = found + value
        return found

    return total


@overload(max, jit_options=OPTIONS)
def _largest(x):
    if not isinstance(x, PointType):
        return None

    def largest(x):
        found = x[0]
        for value in x:
            found = max(found, value)
        return found

    return largest


@overload(min, jit_options=OPTIONS)
def _smallest(x):
    if not isinstance(x, PointType):
        return None

    def smallest(x):
        found = x[0]
        for value in x:
            found = min(found, value)
        return found

    return smallest


@intrinsic(prefer_literal=True)
def _entries(typingctx: Any, values: Any, dim: Any) -> Any:
    """The first entries of a list, an array or a point, as a tuple."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        read = context.get_function(operator.getitem, values.dtype(values, types.intp))
        entries = [read(builder, (args[0], ir.Constant(_WORD, j))) for j in range(dim.literal_value)]
        return context.make_tuple(builder, signature.return_type, entries)

    return types.UniTuple(values.dtype, dim.literal_value)(values, dim), codegen


@cache
def tuple_of(dim: int) -> Any:
    """What stands for Python's ``tuple`` in a function of ``dim`` coordinates: of a list or an array, it has so many."""

    def stub(values):
        raise NotImplementedError("tuple")

    stub.__name__ = stub.__qualname__ = "tuple"

    @overload(stub, jit_options=OPTIONS)
    def chosen(values):
        if isinstance(values, types.BaseTuple):
            return lambda values: values
        flat = isinstance(values, types.Array) and values.ndim == 1
        if not flat and not isinstance(values, types.List | PointType):
            return None

        def made(values):
            if len(values) != dim:
                raise ValueError("a tuple made of a list has another length than d")
            return _entries(values, dim)

        return made

    return stub
