"""Lane fields from a user's plain scalar function.

The function takes a point (a tuple of d numbers), the time and its parameters, and returns a tuple.  `lane_field` writes
the loop over lanes around it and compiles the whole once; parameters travel as numbers in ``params``.  Inside, functions
of ``math`` and ``numpy`` are replaced by those of `thermodiff.kernels.elementary`, which vectorise, or by those of
`thermodiff.kernels.functions`, which take duals too.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import math
import random
import re
import types as python_types
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

import numba
import numba.cloudpickle
import numpy as np
from numba import types
from numba.core.errors import NumbaError, UnsupportedBytecodeError

from thermodiff.kernels import dual, functions, points
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

_DIRECTIONS = """
def field(x, row, params, out):
    xs, os, t = x[0], out[0], row[0]
    {unpack}
    for i in range({dim}):
        for lane in range(LANES):
            {body}
"""
"""Derivatives in many dimensions: the function is compiled once and not d times, and runs as fast."""

_MANY = 8
"""Coordinates from which on it is so written, and a point is a view (`thermodiff.kernels.points`); below, the many zeros
among the seeds compile to less."""

_FILLED = """
def field(x, row, params, out):
    t, dim = row[0], x.shape[0]
    {unpack}
    point, slope = np.empty(dim), np.empty(dim)
    for lane in range(LANES):
        for i in range(dim):
            point[i], slope[i] = x[i, lane], 0.0
        guarded(point, t, slope{given})
        for i in range(dim):
            out[i, lane] = slope[i]
"""

_GUARDED = """
def guarded(point, t, slope{given}):
    try:
        function(point, t, slope{given})
    except Exception:
        slope[:] = np.nan
"""
"""Around a filling function.  A function of its own: within a loop, Numba on Python 3.13 catches the first error only."""


_GUARDED_CALL = """
def guarded(point, t{given}):
    try:
        return function(point, t{given})
    except Exception:
        return {nan}
"""
"""Around a function that returns."""


_REFUSALS = (
    NumbaError,
    UnsupportedBytecodeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    IndexError,
    TypeError,
)
"""What Numba raises of a function that it does not take."""

_TEXT = "makes text, by an f-string or str, which cannot be compiled; work with numbers."
_REFUSED = {
    "RAISE_VARARGS": "raises an error, which cannot be done for one path among many; remove raise and assert, and return "
    "nan where a path must not go: that is noticed.",
    "WITH_EXCEPT_START": "has a with statement, which cannot be compiled; remove it.",
    # Also where Numba would take it: the error is not there to be caught.
    "PUSH_EXC_INFO": "has a try statement, which cannot be compiled: what is an error in Python, as math.log(-1.0), gives "
    "nan here; write an if.",
    "random": "has random numbers of its own, which rng= could not fix; let diffusivity= make the noise.",
    "print": "prints, which it would do for every path at every step; remove that.",
    # Also where Numba would take it: its text of a number has other digits.
    **dict.fromkeys(("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "str"), _TEXT),
}
"""What is said of instructions, builtins and attributes that are refused; the first that is there counts."""


class UserFunctionError(TypeError):
    """A function of the user's that cannot be compiled; the message says why in a sentence."""


def lane_field(function: Callable[..., Any], dim: int, parameters: int, kind: str) -> UserKernel:
    """Compile a field; raises `UserFunctionError`.

    ``kind``: "values" (the function returns the d values), "filled" (it fills its third argument), "gradient" (it returns
    a number, and the field is minus its gradient), "energy" (it returns a number, the first row of the field), "level" (it
    returns a number, and the field holds that and then its gradient) or "spread" (it returns d values D_i, and the field
    holds them and then dD_i/dx_i).
    """
    replaced = functions.PLAIN if kind in ("values", "filled") else functions.REPLACED
    compiled = _compiled(function, replaced, inlined=kind != "filled", outer=(), builtin={"tuple": points.tuple_of(dim)})
    try:
        if kind == "filled":
            dispatcher = _filled(compiled, parameters)
        elif dim < _MANY:
            dispatcher = _safe(compiled, dim, parameters, kind, viewed=False)
        else:
            dispatcher = _safe_view(compiled, dim, parameters, kind)
    except _REFUSALS as error:
        _check_returned(function.__name__, compiled, dim, kind)
        raise UserFunctionError(_reason(function.__name__, str(error))) from None
    _check_returned(function.__name__, compiled, dim, kind)
    return UserKernel(dispatcher)


def _scope(compiled: Any) -> dict[str, Any]:
    """What the source of a field uses."""
    made = (
        dual.dual, points.floats_at, points.duals_at, points.view_of_floats, points.view_of_duals, points.store_at,
        points.store_dual_at, points.repeated,
    )  # fmt: skip
    return {"function": compiled, "LANES": LANES, "np": np, **{one.__name__: one for one in made}}


def _filled(compiled: Any, parameters: int) -> Any:
    scope, given = _scope(compiled), _given(parameters)
    exec(_GUARDED.format(given=given), scope)
    scope["guarded"] = numba.njit(**_OPTIONS)(scope["guarded"])
    return _made(_FILLED.format(unpack=_unpack(parameters), given=given), scope)


def _safe_view(compiled: Any, dim: int, parameters: int, kind: str) -> Any:
    """The field of a function of a view; of a tuple, where the function does what only a tuple can, or is wrong."""
    try:
        return _safe(compiled, dim, parameters, kind, viewed=True)
    except _REFUSALS:
        return _safe(compiled, dim, parameters, kind, viewed=False)


def _safe(compiled: Any, dim: int, parameters: int, kind: str, *, viewed: bool) -> Any:
    """The field, with nan where the function ends in an error."""
    entry = types.float64 if kind in ("values", "energy") else dual.DUAL
    point = points.PointType(entry, dim) if viewed else types.UniTuple(entry, dim)
    arguments = (point, *[types.float64] * (1 + parameters))
    compiled.compile(arguments)
    scope = _scope(compiled)
    if _may_raise(compiled, arguments):
        scope["function"] = _guarded(scope, dim, parameters, kind)
    return _made(_source(dim, parameters, kind, viewed), scope)


def _made(source: str, scope: dict[str, Any]) -> Any:
    exec(compile(source, f"<field of {scope['function'].__name__}>", "exec"), scope)
    dispatcher = numba.njit(**_OPTIONS)(scope["field"])
    dispatcher.compile(field_signature)
    return dispatcher


def _may_raise(compiled: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the compiled function can end in an error, which no kernel would hear of: an index that is out of range."""
    made = compiled.overloads[arguments]
    name = re.escape(made.fndesc.mangled_name)
    own = re.search(rf'^define [^\n]*@"?{name}"?\([^\n]*\{{$.*?^\}}', made.library.get_llvm_str(), re.DOTALL | re.MULTILINE)
    return own is None or any(status != "0" for status in re.findall(r"ret i32 (\S+)", own.group()))


def _guarded(scope: dict[str, Any], dim: int, parameters: int, kind: str) -> Any:
    """The function of a scope, which gives nan where it ends in an error.

    Around its call alone: within ``try`` Numba cuts the code after every operation, and a point of 20 duals, made there,
    took it ten times as long as all else.
    """
    nan = "dual(np.nan, np.nan)" if kind in ("gradient", "level", "spread") else "np.nan"
    if kind in ("values", "spread"):
        nan = f"repeated({nan}, {dim})"
    source = _GUARDED_CALL.format(given=_given(parameters), nan=nan)
    made = dict(scope)
    exec(source, made)
    return numba.njit(**_OPTIONS, forceinline=True)(made["guarded"])


def _check_returned(name: str, compiled: Any, dim: int, kind: str) -> None:
    """What the function was found to return by compiling it: a trial call may not have come to an end."""
    returned = [made.signature.return_type for made in compiled.overloads.values()]
    if kind == "filled" or not returned:
        return
    if kind in ("values", "spread"):
        if not isinstance(returned[0], types.BaseTuple):
            raise UserFunctionError(f"{name} must return a tuple of d numbers, as (a, b) for dim = 2.")
        if len(returned[0]) != dim:
            raise UserFunctionError(
                f"{name} returns {len(returned[0])} numbers, but dim = {dim}; return one for each coordinate."
            )
    entries = returned[0].types if isinstance(returned[0], types.BaseTuple) else returned
    if any(isinstance(entry, types.Optional | types.NoneType) for entry in entries):
        raise UserFunctionError(f"{name} gives None in some branch; give a number in each, or nan where a path must not go.")


def _given(parameters: int) -> str:
    return "".join(f", p{j}" for j in range(parameters))


def _unpack(parameters: int) -> str:
    return "; ".join(f"p{j} = params[{j}]" for j in range(parameters)) or "pass"


def _source(dim: int, parameters: int, kind: str, viewed: bool = False) -> str:
    entries = "floats" if kind in ("values", "energy") else "duals"
    made = f"view_of_{entries}" if viewed else f"{entries}_at"
    call = f"function({made}(xs, lane, {dim}, {{i}}), t{_given(parameters)})"
    body = {
        "values": f"store_at(os, lane, {call})",
        "energy": f"os[lane] = {call}",
        "gradient": f"os[{{i}} * LANES + lane] = -({call} + dual(0.0, 0.0)).slope",
        "level": f"made = {call} + dual(0.0, 0.0); os[lane] = made.value; os[({{i}} + 1) * LANES + lane] = made.slope",
        "spread": f"store_dual_at(os, lane, {call}, {{i}})",
    }[kind]
    if entries == "floats":
        return _LOOP.format(unpack=_unpack(parameters), body=body.format(i=0))
    if dim >= _MANY:
        return _DIRECTIONS.format(unpack=_unpack(parameters), dim=dim, body=body.format(i="i"))
    return _LOOP.format(unpack=_unpack(parameters), body="\n        ".join(body.format(i=i) for i in range(dim)))


def _compiled(
    function: Callable[..., Any],
    replaced: Mapping[Any, Any],
    *,
    inlined: bool,
    outer: tuple[Any, ...],
    builtin: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The function under Numba, with replacements for what it takes from math and numpy, and for functions of Python's own.

    ``outer`` functions call it.
    """
    if function in outer:
        raise UserFunctionError(f"{outer[0].__name__}: {function.__name__} calls itself; write it as a loop.")
    outer = (*outer, function)
    _require_plain_code(function)
    _require_plain_arguments(function)
    names = _globals(function.__code__)
    scope = {name: _substitute(value, replaced, outer) for name, value in function.__globals__.items() if name in names}
    scope = {name: value for name, value in builtin.items() if name in names} | scope
    cells = function.__closure__ or ()
    closure = tuple(python_types.CellType(_substitute(cell.cell_contents, replaced, outer)) for cell in cells)
    copy = python_types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    # An index beyond an array, of a table of the user's say, would read what happens to stand there.
    return numba.njit(**_OPTIONS, forceinline=inlined, boundscheck=True)(copy)


def _require_plain_code(function: python_types.FunctionType) -> None:
    code = function.__code__
    # Names of builtins and attributes, as np.random, but not of what is around the function.
    used = _instructions(code).union(_names(code)) - (_globals(code) & function.__globals__.keys())
    for mark, why in _REFUSED.items():
        if mark in used:
            raise UserFunctionError(f"{function.__name__} {why}")


def _require_plain_arguments(function: python_types.FunctionType) -> None:
    """Refuse what Numba mistakes: arguments by name only, and any number of them by name."""
    code = function.__code__
    if code.co_kwonlyargcount or code.co_flags & inspect.CO_VARKEYWORDS:
        raise UserFunctionError(
            f"{function.__name__} takes arguments by name only (after a * or as **), which cannot be compiled; make them "
            "plain arguments."
        )


def fingerprint(value: Any, seen: tuple[Any, ...] = ()) -> str:
    """What a function computes, as text: its code, and the numbers and functions that it takes from around it."""
    function = _plain(value)
    if function is None:
        return _content(value, seen)
    if function in seen:
        return function.__name__
    names, seen = set(_names(function.__code__)), (*seen, function)
    taken = _globals(function.__code__)
    around = [(name, value) for name, value in sorted(function.__globals__.items()) if name in taken]
    around += [(str(k), cell.cell_contents) for k, cell in enumerate(function.__closure__ or ())]
    inner = ";".join(f"{name}={_attributes(value, names, seen)}" for name, value in around)
    return f"{_code(function.__code__)}|{function.__defaults__!r}|{function.__kwdefaults__!r}|{inner}"


def _attributes(value: Any, names: set[str], seen: tuple[Any, ...]) -> str:
    """`fingerprint`; of a module, that of what is taken from it."""
    if not isinstance(value, python_types.ModuleType) or value in (math, np):
        return fingerprint(value, seen)
    return ";".join(f"{name}={fingerprint(vars(value)[name], seen)}" for name in sorted(names & set(vars(value))))


def _content(value: Any, seen: tuple[Any, ...]) -> str:
    """The content of a value that is no function."""
    if isinstance(value, bool | int | float | complex | str | bytes | np.generic | type(None)):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({','.join(fingerprint(entry, seen) for entry in value)})"
    if isinstance(value, dict):
        return f"dict({','.join(f'{key!r}:{fingerprint(entry, seen)}' for key, entry in value.items())})"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
    if isinstance(value, type | python_types.BuiltinFunctionType | python_types.ModuleType | np.ufunc):
        return f"{type(value).__name__} {getattr(value, '__qualname__', value.__name__)}"
    try:
        return hashlib.sha256(numba.cloudpickle.dumps(value)).hexdigest()
    except Exception:  # What cannot be written down is known by its type alone.
        return type(value).__qualname__


def _code(code: python_types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, python_types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{code.co_freevars}{constants}"


@lru_cache(maxsize=1024)
def _globals(code: python_types.CodeType) -> frozenset[str]:
    """Names that the code takes from around it; an attribute, as in np.tanh, is no such name."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_globals(constant) for constant in code.co_consts if isinstance(constant, python_types.CodeType)]
    return frozenset(own.union(*inner))


@lru_cache(maxsize=1024)
def _instructions(code: python_types.CodeType) -> frozenset[str]:
    own = {step.opname for step in dis.get_instructions(code)}
    inner = [_instructions(constant) for constant in code.co_consts if isinstance(constant, python_types.CodeType)]
    return frozenset(own.union(*inner))


def _names(code: python_types.CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, python_types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
"""Numba would compile some of their functions, with a state of its own."""


def _substitute(value: Any, replaced: Mapping[Any, Any], outer: tuple[Any, ...]) -> Any:
    if value is math or value is np:
        return _module(value, replaced is functions.PLAIN)
    if value is random or value is np.random or isinstance(getattr(value, "__self__", value), _RANDOM):
        raise UserFunctionError(f"{outer[-1].__name__} {_REFUSED['random']}")
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
    replaced = functions.PLAIN if plain else functions.REPLACED
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


def _reason(name: str, text: str) -> str:
    """Numba's message in one sentence, for the mistakes that people make."""
    found = _taken_from_around(text)
    if found:
        return f"{name}: {found}"
    found = re.search(r"Use of unsupported opcode \((\w+)\)", text)
    if found and found.group(1) in _STATEMENTS:
        return f"{name}: {_STATEMENTS[found.group(1)]} cannot be used in it; {_USE}."
    if "unify return type" in text:
        return f"{name}: every return must give the same, a tuple of d numbers (a potential: one number)."
    if "wrong tuple length" in text:
        return f"{name}: a tuple is unpacked into a wrong number of names; x holds d numbers."
    if "list_to_tuple" in text:
        return f"{name}: it has a list in brackets beside a tuple of more than 30 entries; write the list as a loop."
    if "use of yield in a closure" in text:
        return f"{name}: a generator cannot be used in it; write a loop, or a list, as sum([v**2 for v in x])."
    if "Int value is too large" in text:
        return f"{name}: a whole number in it is too large; write it with a point or an exponent, as 1e20."
    if re.search(r"(>>> .*|of type |BoundFunction\()(Literal\[str\]|unicode_type)", text):
        return f"{name}: text in quotes can only be compared in it; work with numbers."
    # Of a function of math or numpy the name can be told, further down.
    wrong_count = "too many positional arguments" in text or "missing a required argument" in text
    if wrong_count and "No implementation of function" not in text:
        return f"{name}: a function that it calls takes another number of arguments; compare the calls with the definitions."
    if "index out of range" in text.lower() or "out of bounds" in text.lower() or "tuple index" in text.lower():
        return f"{name}: an index is out of range; it must use x[0] ... x[d - 1] and return a tuple of d numbers."
    found = re.search(r"Unknown attribute '(\w+)'|has no attribute '(\w+)'", text)
    if found:
        attribute = found.group(1) or found.group(2)
        known = hasattr(math, attribute) or hasattr(np, attribute)
        return f"{name}: the attribute {attribute!r} {'cannot be used here' if known else 'does not exist'}; {_USE}."
    found = re.search(r"No implementation of function Function\(<\D*?[ '](\w+)(?:'>| at |>)", text)
    if found:
        return f"{name}: {found.group(1)} cannot be used in it, or not on these arguments; {_USE}."
    if "Cannot unify" in text:
        return f"{name}: a variable holds now a number, now something else; {_USE}."
    # The line of the user's that Numba points at; its words are about other things.
    found = re.search(r"^ *(\S.*)\n *\^$", text, re.MULTILINE)
    where = f" at {found.group(1)[:70]!r}" if found else ""
    return f"{name} cannot be compiled{where}; {_USE}."


_STATEMENTS = {
    "IMPORT_NAME": "import",
    "UNPACK_EX": "a, *rest = ...",
    "STORE_GLOBAL": "global",
    "DELETE_FAST": "del",
    "LOAD_BUILD_CLASS": "class",
    "MATCH_SEQUENCE": "match with a pattern",
}


def _taken_from_around(text: str) -> str | None:
    """The reason where Numba's message is about a name that is not defined, or whose value it does not take."""
    found = re.search(r"name '(\w+)' is not defined", text)
    if found:
        return f"the name {found.group(1)!r} is not defined."
    found = re.search(r"Unknown attribute '(\w+)' of type Module\(<module '(?!math'|numpy\b)([\w.]+)'", text)
    if found:
        return (
            f"{found.group(1)} of {found.group(2)} cannot be compiled; call functions of math, numpy or your own (by name: "
            "from m import f), or read a table made before, a numpy array."
        )
    found = re.search(r"(?:Untyped global name '|assigned to variable '|= freevar\()(\w+)", text)
    if not found:
        return None
    kind = re.search(r"type of <class '(?:[^']*\.)?(\w+)'>|(?:reflected |empty |type |\()([Ll]ist|set)\b", text)
    what = f"of type {kind.group(1) or kind.group(2).lower()}" if kind else "no number"
    return (
        f"{found.group(1)}, from around it, is {'a class' if what == 'of type type' else what} and cannot be compiled; pass "
        "numbers by params=, or take them out before, as numbers, tuples or arrays; functions are those of math, numpy and "
        "your own."
    )
