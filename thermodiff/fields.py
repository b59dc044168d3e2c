"""Drifts, potentials, diffusivities and stop conditions: plain Python functions, compiled once into fields.

    @td.drift
    def swirl(x, t, kappa, omega):
        return -kappa * x[0] + omega * x[1], -kappa * x[1] - omega * x[0]

``x`` is a tuple of d numbers, ``t`` the time, the rest are parameters: numbers that travel at run time, so that new values
compile nothing.  Functions of ``math`` and ``numpy`` inside are replaced by vectorising ones.
"""

from __future__ import annotations

import dis
import inspect
import io
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache, partial
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._agreement import disagreement, slope_disagreement
from thermodiff._check import count, finite_number, points

FloatArray = npt.NDArray[np.float64]


LONGEST_TRIAL = 1.0
"""Seconds of calls in plain Python after which a function is tried no further."""


_ODD = {
    inspect.Parameter.VAR_POSITIONAL: "*{} is any number of them",
    inspect.Parameter.VAR_KEYWORD: "**{} is any number of them",
    inspect.Parameter.KEYWORD_ONLY: "{} is given by name only, after a *",
}
"""Arguments that no field can have."""


class Field:
    """A function of point, time and parameters that is compiled when it is first used.

    Calling it calls the plain Python function: ``swirl((1.0, 0.0), 0.0, 1.0, 2.0)``.
    """

    kind = "values"
    maker = "drift"
    """The decorator that makes it."""
    stale = False
    """Whether this is a stand-in in a worker, see `_arrived`."""
    form = "{name}(x, t, ...)"
    gives = "a tuple of d numbers"

    def __init__(self, function: Callable[..., Any]) -> None:
        if isinstance(function, Field) or not inspect.isfunction(function):
            bound = inspect.ismethod(function) or isinstance(function, partial)
            raise TypeError(
                f"{self.maker}: it decorates a plain Python function {self.form.format(name='f')}, "
                f"got {type(function).__name__}"
                + ("; write a function that calls it, and pass what is bound by params=." if bound else ".")
            )
        self.function = function
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__
        self._kernels: dict[tuple[int, str, str], Any] = {}
        arguments = list(inspect.signature(function).parameters.values())
        leading = 3 if self.kind == "filled" else 2
        odd = next((argument for argument in arguments if argument.kind in _ODD), None)
        if odd or len(arguments) < leading:
            but = f" with plain named parameters, in a known number: {_ODD[odd.kind].format(odd.name)}" if odd else ""
            raise TypeError(f"{self.__name__}: it must be written as {self.form.format(name=self.__name__)}{but}.")
        self.parameters = tuple(argument.name for argument in arguments[leading:])

    @property
    def timed(self) -> bool:
        """Whether the function looks at the time."""
        name, code = list(inspect.signature(self.function).parameters)[1], self.function.__code__
        return name in code.co_cellvars or any(
            "LOAD_FAST" in step.opname and name in np.ravel(step.argval) for step in dis.get_instructions(code)
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__name__}({', '.join(('x', 't', *self.parameters))}))"

    def values_of(self, params: Sequence[float] | FloatArray | Mapping[str, float], name: str = "params") -> FloatArray:
        """The parameters as an array, (p,), from numbers in their order or by name; those with defaults may be left out.

        ``name`` is that of the argument, for messages.

        Raises
        ------
        TypeError, ValueError
            If they are not numbers, or not as many as the function takes.
        """
        defaults = self.function.__defaults__ or ()
        if isinstance(params, Mapping):
            params = self._in_order(params)
        given = list(np.atleast_1d(np.asarray(params, object)))
        missing = len(self.parameters) - len(given)
        if 0 < missing <= len(defaults):
            given += defaults[-missing:]
        numbers = [finite_number(f"{name}[{j}]", value) for j, value in enumerate(given)]
        if len(numbers) != len(self.parameters):
            need = ", ".join(self.parameters) or "none"
            raise ValueError(
                f"{self.__name__} takes {len(self.parameters)} parameters ({need}), got {len(numbers)}.  They follow the "
                "point and the time, its first two arguments."
            )
        return np.array(numbers)

    def _in_order(self, named: Mapping[str, float]) -> list[Any]:
        """Parameters by name in the order of the function, with its defaults for those left out."""
        defaults = self.function.__defaults__ or ()
        known = dict(zip(self.parameters[len(self.parameters) - len(defaults) :], defaults, strict=False)) | dict(named)
        if set(known) != set(self.parameters):
            need = ", ".join(self.parameters) or "none"
            raise ValueError(f"{self.__name__} has the parameters {need}, got {', '.join(map(str, named))}.")
        return [known[name] for name in self.parameters]

    def kernel(self, dim: int, params: FloatArray, kind: str | None = None) -> Any:
        """The compiled field for d = ``dim``; compiled at first use, 0.2 to 0.5 s.  ``kind`` asks for another than its own.

        Raises
        ------
        TypeError, ValueError
            If the function cannot be called or compiled, with the reason.
        """
        from thermodiff.kernels.user import fingerprint, lane_field

        if self.stale:
            raise ValueError(
                f"{self.__name__} takes other numbers from around it in a worker than here: a constant of the module "
                f"{self.__module__} was changed after it was imported; pass it by params=, or change it in the file."
            )
        kind = kind or self.kind
        # Also by the numbers that the function takes from around it: they may have changed since.
        key = (dim, kind, fingerprint(self.function))
        if key not in self._kernels:
            self._try_out(dim, params)
            made = lane_field(self.function, dim, len(self.parameters), kind)
            if kind == self.kind:
                self._require_agreement(made, dim, params)
            self._kernels[key] = made
        return self._kernels[key]

    def _require_agreement(self, made: Any, dim: int, params: FloatArray) -> None:
        """Refuse a compiled field that does not compute what the plain function does."""
        from thermodiff.kernels.tasks import at_points
        from thermodiff.kernels.user import UserFunctionError

        def compiled(x: FloatArray, t: float) -> FloatArray:
            return at_points(made, params, (t, 0.0, 0.0, 0.0), x[None], self._rows(dim))[0, : self._own_rows(dim)]

        check = slope_disagreement if self.kind == "gradient" else disagreement
        found = check(lambda x, t: self._plainly(x, t, params), compiled, dim)
        if found is None:
            return
        what = "the slope along a line" if self.kind == "gradient" else "the values"
        raise UserFunctionError(
            f"{self.__name__}, compiled, does not compute what it does in plain Python: at x = {_shown(found.x)}, t = "
            f"{found.t:g}, {what} {_shown(found.plain)} became {_shown(found.compiled)}. Compiled whole numbers have 64 "
            "bits and wrap, and a whole number to a negative power is 0: write numbers with a point (10.0, not 10)."
        )

    def _plainly(self, x: FloatArray, t: float, params: FloatArray) -> Any:
        """The plain function at x (d,)."""
        return self.function(tuple(x.tolist()), t, *params.tolist())

    def at(self, x: npt.ArrayLike, t: float = 0.0, params: Sequence[float] | FloatArray = ()) -> FloatArray:
        """The compiled field at points (n, d)."""
        from thermodiff.kernels.tasks import at_points

        x, numbers = points("x", x), self.values_of(params)
        kernel = self.kernel(x.shape[1], numbers)
        return at_points(kernel, numbers, (finite_number("t", t), 0.0, 0.0, 0.0), x, self._rows(x.shape[1]))

    def _rows(self, dim: int) -> int:
        return dim

    def _own_rows(self, dim: int) -> int:
        """Rows that the function itself gives; derivatives follow."""
        return dim

    def _try_out(self, dim: int, params: FloatArray) -> None:
        """Call the plain function once: Python's own complaints are clearer than a compiler's."""
        point = tuple(0.1 + 0.01 * i for i in range(dim))
        arguments: list[Any] = [point, 0.0, *params.tolist()]
        if self.kind == "filled":
            arguments[:2] = [np.array(point), 0.0, np.zeros(dim)]
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                result = self.function(*arguments)
                filled = None
                if self.kind == "filled":
                    filled, arguments[2] = arguments[2], np.zeros(dim)
                again = self.function(*arguments)
        except (ArithmeticError, ValueError):
            return  # This point is not in its domain; that says nothing about the code.
        except Exception as error:
            raise TypeError(
                f"{self.__name__} fails when called with d = {dim} and {len(params)} parameters: {error}; "
                f"it is called as {self.form.format(name=self.__name__)} with x[0]{f' ... x[{dim - 1}]' if dim > 1 else ''}."
            ) from error
        if printed.getvalue():
            raise ValueError(f"{self.__name__} prints, which it would do for every path at every step; remove that.")
        self._check_result(result, dim)
        before, after = (result, again) if filled is None else (filled, arguments[2])
        if not np.array_equal(np.asarray(before, np.float64), np.asarray(after, np.float64), equal_nan=True):
            raise ValueError(
                f"{self.__name__} gives different values for the same point and time; rng= could not fix random numbers of "
                "its own: let diffusivity= make the noise."
            )

    def _check_result(self, result: Any, dim: int) -> None:
        if not isinstance(result, tuple) or not all(_is_number(value) for value in result):
            raise TypeError(f"{self.__name__} must return {self.gives}, got {result!r:.60}.")
        if len(result) != dim:
            raise ValueError(
                f"{self.__name__} returns {len(result)} numbers, but dim = {dim}; return one for each coordinate."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        from thermodiff.kernels.user import fingerprint, to_bytes

        function = self.function
        if _lookup(self.__module__, function.__qualname__) is self and self.__module__ != "__main__":
            return _arrived, (self.__module__, function.__qualname__, fingerprint(function))
        return _rebuild, (type(self), to_bytes(function))


def _shown(values: FloatArray) -> str:
    return np.array2string(values, precision=9, threshold=6)


def _is_number(value: Any) -> bool:
    """A real number; also numpy's array without axes, as np.where gives."""
    return isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "biuf")


def _lookup(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    if found is None:
        from importlib import import_module

        found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _arrived(module: str, name: str, known: str) -> Field:
    """The field of a module in a worker process.

    Where the numbers that it takes from around it are other ones there, a stand-in that says so when it is used: an error
    here would end the worker.
    """
    from thermodiff.kernels.user import fingerprint

    found = _lookup(module, name)
    if fingerprint(found.function) == known:
        return found
    other = object.__new__(type(found))
    other.__dict__.update(found.__dict__, stale=True)
    return other


@lru_cache(maxsize=64)
def _rebuild(kind: type[Field], content: bytes) -> Field:
    """A worker process meets a field with every task; it compiles it once."""
    from thermodiff.kernels.user import from_bytes

    return kind(from_bytes(content))


class Drift(Field):
    """f(x, t, ...) -> (f_0, ..., f_{d-1})."""


class FilledDrift(Drift):
    """f(x, t, out, ...), which writes its d values into ``out``; for long chains."""

    kind = "filled"
    form = "{name}(x, t, out, ...)"

    def _plainly(self, x: FloatArray, t: float, params: FloatArray) -> FloatArray:
        out = np.zeros(x.size)
        self.function(x, t, out, *params.tolist())
        return out

    def _check_result(self, result: Any, dim: int) -> None:
        if result is not None:
            raise TypeError(f"{self.__name__} must fill out and return nothing, got {result!r:.60}.")

    def _try_out(self, dim: int, params: FloatArray) -> None:
        """The same, and whether all of ``out`` is written, which nothing else would tell."""
        name, begin = list(inspect.signature(self.function).parameters)[2], time.monotonic()
        self._require_kept(name)
        super()._try_out(dim, params)
        if time.monotonic() - begin < LONGEST_TRIAL:
            self._warn_of_gaps(name, dim, params)

    def _require_kept(self, name: str) -> None:
        """Refuse a function that gives the name of ``out`` to something else."""
        before = None
        for step in dis.get_instructions(self.function):
            stored = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            # out += x changes the array in place, and then stores it under its name.
            in_place = before is not None and before.opname == "BINARY_OP" and before.argrepr.endswith("=")
            if step.opname.startswith("STORE_FAST") and name in stored and not in_place:
                raise TypeError(
                    f"{self.__name__} gives the name {name} to something else, which fills nothing; write {name}[:] = ... "
                    f"or {name}[i] = ..."
                )
            before = step

    def _warn_of_gaps(self, name: str, dim: int, params: FloatArray) -> None:
        """Warn of entries that are never written: those which come back as they were given, twice."""
        outs = np.zeros(dim), 0.618 + np.arange(dim)
        uneven = np.random.default_rng(0).uniform(0.1, 0.4, dim)  # between even places, forces would cancel
        try:
            with redirect_stdout(io.StringIO()):
                for out in outs:
                    self.function(uneven.copy(), 0.0, out, *params.tolist())
        except (ArithmeticError, ValueError):
            return
        left = np.flatnonzero((outs[0] == 0.0) & (outs[1] == 0.618 + np.arange(dim)))
        if left.size:
            which = ", ".join(f"{name}[{i}]" for i in left[:4]) + (", ..." if left.size > 4 else "")
            warnings.warn(
                f"{self.__name__} left {which} as given when it was tried at one point; what it does not write is 0. "
                f"If that is meant, begin with {name}[:] = 0.0.",
                RuntimeWarning,
                stacklevel=5,
            )


class Potential(Field):
    """U(x, t, ...) -> energy; as a field it is the force -grad U, differentiated exactly at the cost of d evaluations."""

    kind, maker = "gradient", "potential"
    gives = "one number, the energy"

    def _check_result(self, result: Any, dim: int) -> None:
        if not _is_number(result):
            raise TypeError(f"{self.__name__} must return {self.gives}, got {result!r:.60}.")


class Diffusivity(Field):
    """D(x, t, ...) -> (D_0, ..., D_{d-1}); as a field it carries the derivatives dD_i/dx_i too, exactly."""

    kind, maker = "spread", "diffusivity"

    def _rows(self, dim: int) -> int:
        return 2 * dim


class StopCondition(Field):
    """g(x, t, ...) -> one number, zero where paths stop; as a field it carries its gradient too, exactly."""

    kind, maker = "level", "stop_condition"
    gives = "one number, which is zero where paths stop"

    def _check_result(self, result: Any, dim: int) -> None:
        if not _is_number(result) or isinstance(result, bool | np.bool_):
            raise TypeError(
                f"{self.__name__} must return {self.gives}, got {result!r:.60}; write the difference of what becomes equal "
                "there, as x[0] - 1.0."
            )

    def _rows(self, dim: int) -> int:
        return 1 + dim

    def _own_rows(self, dim: int) -> int:
        return 1


def drift(function: Callable[..., Any] | None = None, *, fills: bool = False) -> Any:
    """Make a drift of a plain scalar function ``f(x, t, *params)`` that returns a tuple of d numbers.

    Parameters
    ----------
    function : callable
        Used as a decorator.
    fills : bool
        The function is ``f(x, t, out, *params)`` and writes into ``out``, which comes filled with zeros: for chains with
        many coordinates, up to 4096.

    Returns
    -------
    Drift
    """
    kind = FilledDrift if fills else Drift
    return kind if function is None else kind(function)


def potential(function: Callable[..., Any]) -> Potential:
    """Make a potential of a scalar function ``U(x, t, *params)``; the drift is -grad U, differentiated exactly."""
    return Potential(function)


def diffusivity(function: Callable[..., Any]) -> Diffusivity:
    """Make a state-dependent diagonal diffusivity of a function ``D(x, t, *params)`` that returns (D_0, ..., D_{d-1})."""
    return Diffusivity(function)


def stop_condition(function: Callable[..., Any]) -> StopCondition:
    """Make a stop condition of a scalar function ``g(x, t, *params)``: `first_passage` ends a path where g passes zero."""
    return StopCondition(function)


MOST_COORDINATES = 64
"""Of a function that returns a tuple, which is compiled for each coordinate; of one that fills ``out``, FILLED."""
FILLED = 4096


def dimension(value: Any, drift: Field | None = None) -> int:
    """A number of coordinates that fields are compiled for: 1 to 64, or 4096 of a drift that fills ``out``."""
    dim, most = count("dim", value), FILLED if isinstance(drift, FilledDrift) else MOST_COORDINATES
    if dim > most:
        more = f"; with @td.drift(fills=True) it may be up to {FILLED}" if most < FILLED else ""
        raise ValueError(f"dim must be at most {most}, got {dim}{more}.")
    return dim
