"""Lane fields from a user's plain scalar function.

The function takes a point (a tuple of d numbers), the time and its parameters, and returns a tuple.  `lane_field` writes
the loop over lanes around it and compiles the whole once; parameters travel as numbers in ``params``.  Inside, functions
of ``math`` and ``numpy`` are replaced by those of `thermodiff.kernels.elementary`, which vectorise, or by those of
`thermodiff.kernels.dual`, which take duals too.
"""

from __future__ import annotations

import math
import re
import types as python_types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numba
import numba.cloudpickle
import numpy as np
from numba.core.errors import NumbaError

from thermodiff.kernels import dual
from thermodiff.kernels.jit import FLAGS, LANES, UserKernel, field_signature

_OPTIONS = {**FLAGS, "cache": False}

_LOOP = """
def field(x, row, params, out):
    xs, os, t = x[0], out[0], row[0]
    {unpack}
    for lane in range(LANES):
        {body}
"""
"""All rows are reached from the first, at constant distances (the arrays are contiguous, and indices are not checked): LLVM
then needs a single overlap check, and vectorises for every d."""

_FILLED = """
def field(x, row, params, out):
    t, dim = row[0], x.shape[0]
    {unpack}
    point, slope = np.empty(dim), np.empty(dim)
    for lane in range(LANES):
        for i in range(dim):
            point[i], slope[i] = x[i, lane], 0.0
        function(point, t, slope{given})
        for i in range(dim):
            out[i, lane] = slope[i]
"""


class UserFunctionError(TypeError):
    """A function of the user's that cannot be compiled; the message says why in a sentence."""


def lane_field(function: Callable[..., Any], dim: int, parameters: int, kind: str) -> UserKernel:
    """Compile a field; raises `UserFunctionError`.

    ``kind``: "values" (the function returns the d values), "filled" (it fills its third argument), "gradient" (it returns
    a number, and the field is minus its gradient), "energy" (it returns a number, the first row of the field) or "spread"
    (it returns d values D_i, and the field holds them and then dD_i/dx_i).
    """
    replaced = dual.PLAIN if kind in ("values", "filled") else dual.REPLACED
    scope: dict[str, Any] = {
        "function": _compiled(function, replaced, inlined=kind != "filled", outer=()),
        "LANES": LANES,
        "np": np,
        "dual": dual.dual,
    }
    exec(compile(_source(dim, parameters, kind), f"<field of {function.__name__}>", "exec"), scope)
    dispatcher = numba.njit(**_OPTIONS)(scope["field"])
    try:
        dispatcher.compile(field_signature)
    except (NumbaError, AttributeError, NotImplementedError) as error:
        raise UserFunctionError(_reason(function.__name__, str(error), filled=kind == "filled")) from None
    return UserKernel(dispatcher)


def _source(dim: int, parameters: int, kind: str) -> str:
    names = [f"p{j}" for j in range(parameters)]
    unpack = "; ".join(f"{name} = params[{j}]" for j, name in enumerate(names)) or "pass"
    given = "".join(f", {name}" for name in names)
    if kind == "filled":
        return _FILLED.format(unpack=unpack, given=given)
    place = [f"lane + {i * LANES}" for i in range(dim)]
    point = "".join(f"xs[{at}], " for at in place)
    if kind == "values":
        body = [f"value = function(({point}), t{given})", *(f"os[{at}] = value[{i}]" for i, at in enumerate(place))]
        return _LOOP.format(unpack=unpack, body="\n        ".join(body))
    if kind == "energy":
        return _LOOP.format(unpack=unpack, body=f"os[lane] = function(({point}), t{given})")
    body = []
    for i, at in enumerate(place):
        seeded = "".join(f"dual(xs[{other}], {1.0 if j == i else 0.0}), " for j, other in enumerate(place))
        body.append(f"value = function(({seeded}), t{given})")
        if kind == "gradient":
            body.append(f"os[{at}] = -(value + dual(0.0, 0.0)).slope")
        else:
            body.append(f"level = value[{i}] + dual(0.0, 0.0)")
            body.append(f"os[{at}] = level.value; os[lane + {(dim + i) * LANES}] = level.slope")
    return _LOOP.format(unpack=unpack, body="\n        ".join(body))


def _compiled(function: Callable[..., Any], replaced: Mapping[Any, Any], *, inlined: bool, outer: tuple[Any, ...]) -> Any:
    """The function under Numba, with replacements for what it takes from math and numpy; ``outer`` functions call it."""
    if function in outer:
        raise UserFunctionError(f"{outer[0].__name__}: {function.__name__} calls itself; write it as a loop.")
    outer = (*outer, function)
    names = set(_names(function.__code__))
    scope = {name: _substitute(value, replaced, outer) for name, value in function.__globals__.items() if name in names}
    cells = function.__closure__ or ()
    closure = tuple(python_types.CellType(_substitute(cell.cell_contents, replaced, outer)) for cell in cells)
    copy = python_types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    return numba.njit(**_OPTIONS, forceinline=inlined)(copy)


def fingerprint(value: Any, seen: tuple[Any, ...] = ()) -> str:
    """What a function computes, as text: its code, and the numbers and functions that it takes from around it."""
    function = _plain(value)
    if function is None:
        plain = (bool, int, float, complex, str, tuple, type(None))
        return repr(value) if isinstance(value, plain) else getattr(value, "__qualname__", type(value).__qualname__)
    if function in seen:
        return function.__name__
    names, seen = set(_names(function.__code__)), (*seen, function)
    around = [(name, value) for name, value in sorted(function.__globals__.items()) if name in names]
    around += [(str(k), cell.cell_contents) for k, cell in enumerate(function.__closure__ or ())]
    inner = ";".join(f"{name}={fingerprint(value, seen)}" for name, value in around)
    return f"{_code(function.__code__)}|{function.__defaults__!r}|{inner}"


def _code(code: python_types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, python_types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{code.co_freevars}{constants}"


def _names(code: python_types.CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, python_types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _substitute(value: Any, replaced: Mapping[Any, Any], outer: tuple[Any, ...]) -> Any:
    if value is math or value is np:
        return _module(value, replaced is dual.PLAIN)
    if callable(value) and value.__hash__ is not None and value in replaced:
        return replaced[value]
    helper = _plain(value)
    # A helper of the user's own gets the same replacements.
    return value if helper is None else _compiled(helper, replaced, inlined=True, outer=outer)


def _plain(value: Any) -> python_types.FunctionType | None:
    """The plain function of a function, of Numba's wrapper of one, and of another field."""
    found = getattr(value, "py_func", None) or getattr(value, "function", None) or value
    return found if isinstance(found, python_types.FunctionType) else None


@cache
def _module(original: python_types.ModuleType, plain: bool) -> python_types.ModuleType:
    replaced = dual.PLAIN if plain else dual.REPLACED
    copy = python_types.ModuleType(original.__name__)
    for name, value in vars(original).items():
        known = callable(value) and getattr(value, "__hash__", None) is not None and value in replaced
        setattr(copy, name, replaced[value] if known else value)
    return copy


_USE = "use numbers, tuples, arithmetic, and functions of math or numpy"


def to_bytes(function: Callable[..., Any]) -> bytes:
    """A function for another process of the same run (never for a file), where that cannot import it by name."""
    return numba.cloudpickle.dumps(function)


def from_bytes(content: bytes) -> Callable[..., Any]:
    """The function that `to_bytes` was given."""
    return numba.cloudpickle.loads(content)


def _reason(name: str, text: str, *, filled: bool) -> str:
    """Numba's message in one sentence, for the mistakes that people make."""
    form = f"{name}(x, t, out, *params)" if filled else f"{name}(x, t, *params)"
    found = re.search(r"name '(\w+)' is not defined|Untyped global name '(\w+)'", text)
    if found:
        return f"{name}: the name {found.group(1) or found.group(2)!r} is not defined, or not a number or function."
    if "unify return type" in text:
        return f"{name}: every return must give the same, a tuple of d numbers (a potential: one number)."
    if "wrong tuple length" in text:
        return f"{name}: a tuple is unpacked into a wrong number of names; x holds d numbers."
    if "too many positional arguments" in text or "missing a required argument" in text:
        return f"{name}: a function in it is called with a wrong number of arguments; it is called as {form}."
    if "index out of range" in text.lower() or "out of bounds" in text.lower() or "tuple index" in text.lower():
        return f"{name}: an index is out of range; it must use x[0] ... x[d - 1] and return a tuple of d numbers."
    found = re.search(r"Unknown attribute '(\w+)'|has no attribute '(\w+)'", text)
    if found:
        return f"{name}: the attribute {found.group(1) or found.group(2)!r} does not exist, or cannot be used here; {_USE}."
    found = re.search(r"No implementation of function Function\(<\D*?[ '](\w+)(?:'>| at |>)", text)
    if found:
        return f"{name}: {found.group(1)} cannot be used in it, or not on these arguments; {_USE}."
    if "Cannot unify" in text:
        return f"{name}: a variable holds now a number, now something else; {_USE}."
    cause = next((line.strip() for line in text.splitlines() if line.strip() and "pipeline" not in line), "unknown")
    return f"{name} cannot be compiled ({cause.rstrip(' .:')}); {_USE}."
