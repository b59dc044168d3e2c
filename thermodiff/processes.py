"""Stochastic dynamics dx = f(x, t) dt + sqrt(2 D) dW in R^d."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, array, choice, finite_number
from thermodiff.fields import Diffusivity, Drift, Field, Potential, dimension

FloatArray = npt.NDArray[np.float64]

TWISTS = {"ito": 0.0, "stratonovich": 0.5, "isothermal": 1.0}
"""Where on a step a state-dependent D is taken: at its start, in its middle, at its end."""
WALLS = {"periodic": 1, "reflecting": 2}


class Compiled(NamedTuple):
    """What the integrator takes of a process."""

    field: Any
    params: FloatArray
    noise: Any
    noise_params: FloatArray
    twist: float
    walls: FloatArray
    """(d, 3): kind, low, high."""


class Langevin:
    """dx = f dt + sqrt(2 D) dW with a user's drift or potential.

    Parameters
    ----------
    drift : Drift or Potential
        Made by `thermodiff.drift` or `thermodiff.potential`; a potential gives f = -grad U.
    params : sequence of float, or mapping
        Its parameters, in their order or by name.
    diffusivity : float, (d,) array, (d, d) array, callable or Diffusivity
        D: isotropic, diagonal, or a full symmetric positive semi-definite matrix; a plain function of t that returns one
        of these; or a state-dependent diagonal made by `thermodiff.diffusivity`.
    diffusivity_params : sequence of float
        Parameters of a state-dependent D.
    dim : int
        d, 1 to 64; to 4096 with a drift that fills ``out``.
    interpretation : {"ito", "stratonovich", "isothermal"}
        What sqrt(2 D(x)) dW means where D depends on x: the drift of the Ito equation is f_i + theta dD_i/dx_i with
        theta = 0, 1/2, 1.  For other D the three agree.
    boundaries : mapping, optional
        {coordinate: ("periodic" or "reflecting", low, high)}; one end of a reflecting coordinate may be infinite.  Fields
        are evaluated between the walls only.
    """

    def __init__(
        self,
        drift: Field,
        params: Sequence[float] | Mapping[str, float] = (),
        diffusivity: Any = 1.0,
        *,
        dim: int,
        diffusivity_params: Sequence[float] | Mapping[str, float] = (),
        interpretation: str = "ito",
        boundaries: Mapping[int, tuple[str, float, float]] | None = None,
    ) -> None:
        if not isinstance(drift, Drift | Potential):
            raise TypeError(
                f"Langevin: drift must be made by @td.drift or @td.potential, got {type(drift).__name__}; "
                "put the decorator above the function."
            )
        self.dim = dimension(dim, drift)
        self.drift = drift
        self.params = drift.values_of(params)
        self.diffusivity = diffusivity
        self.interpretation = choice("interpretation", interpretation, tuple(TWISTS))
        self.state_dependent = isinstance(diffusivity, Diffusivity)
        self.diffusivity_params = (
            diffusivity.values_of(diffusivity_params, "diffusivity_params") if self.state_dependent else np.zeros(0)
        )
        if not self.state_dependent and np.size(np.asarray(diffusivity_params, dtype=object)):
            raise ValueError(
                "Langevin: diffusivity_params belong to a diffusivity made by @td.diffusivity, "
                f"got {diffusivity_params!r:.60}; leave them out."
            )
        if not self.state_dependent:
            if callable(diffusivity):
                _require_function_of_time(diffusivity)
            else:
                noise_factor(diffusivity, self.dim)
        self.walls = _walls(boundaries or {}, self.dim)

    def __repr__(self) -> str:
        return f"Langevin({self.drift!r}, dim={self.dim})"

    def with_params(self, *params: float, **named: float) -> Langevin:
        """The same process with other parameters of the drift, all in order or some by name; nothing is compiled again."""
        if params and named:
            raise TypeError("with_params: give all parameters in order, or some by name, not both.")
        if not named and len(params) != len(self.drift.parameters):
            number, need = len(self.drift.parameters), ", ".join(self.drift.parameters) or "none"
            raise ValueError(
                f"{self.drift.__name__} takes {number} parameters ({need}), got {len(params)}; give all, or some by name."
            )
        given = dict(zip(self.drift.parameters, self.params.tolist(), strict=True)) | named if named else params
        other = object.__new__(Langevin)
        other.__dict__.update(self.__dict__, params=self.drift.values_of(given))
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self.state_dependent or not callable(self.diffusivity):
            return self.__dict__
        from thermodiff.kernels.user import to_bytes

        return {**self.__dict__, "diffusivity": to_bytes(self.diffusivity)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.diffusivity, bytes):
            from thermodiff.kernels.user import from_bytes

            self.__dict__["diffusivity"] = from_bytes(self.diffusivity)

    def compiled(self) -> Compiled:
        """Fields and numbers for the kernels."""
        field = self.drift.kernel(self.dim, self.params)
        noise, twist = field, 0.0
        if self.state_dependent:
            noise = self.diffusivity.kernel(self.dim, self.diffusivity_params)
            twist = TWISTS[self.interpretation]
        return Compiled(field, self.params, noise, self.diffusivity_params, twist, self.walls)

    def energy(self) -> Any:
        """The compiled potential, U in the first row.

        Raises
        ------
        ValueError
            If the force was not made from a potential.
        """
        drift = getattr(self, "drift", None)
        if not isinstance(drift, Potential):
            raise ValueError(
                f"{self!r} has no energy: write its force as a potential, with @td.potential, for the work done on it."
            )
        return drift.kernel(self.dim, self.params, "energy")

    @property
    def noiseless(self) -> bool:
        """Whether D is the constant zero."""
        return not self.state_dependent and not callable(self.diffusivity) and not np.any(self.diffusivity)

    def mix(self, times: FloatArray) -> FloatArray:
        """B with B B' = 2 D, for the integrator: (1 or times, d, 1) where diagonal, else (1 or times, d, d)."""
        if self.state_dependent:
            return np.zeros((1, self.dim, 1))
        if not callable(self.diffusivity):
            return noise_factor(self.diffusivity, self.dim)[None]
        given = [self.diffusivity(float(t)) for t in times]
        first = noise_factor(given[0], self.dim, float(times[0]))
        levels = _levels_of(given, self.dim)
        if levels is not None:
            return np.sqrt(2.0 * levels)[:, :, None]
        result = np.empty((times.size, *first.shape))
        for k, t in enumerate(times):
            factor = noise_factor(given[k], self.dim, float(t))
            if factor.shape != result.shape[1:]:
                raise ValueError(f"diffusivity(t) must keep its shape; it changes at t = {t:g}.")
            result[k] = factor
        return result

    def force(self, x: npt.ArrayLike, t: float = 0.0) -> FloatArray:
        """f at points (n, d)."""
        return self.drift.at(x, t, self.params)


class Linear(Langevin):
    """dx = (A x + b) dt + sqrt(2 D) dW, which `simulate` steps exactly, whatever the step.

    Parameters
    ----------
    matrix : (d, d) array
        A.
    offset : (d,) array, optional
        b.
    diffusivity : float, (d,) or (d, d) array
        D, constant.
    boundaries : mapping, optional
        As for `Langevin`; they need one of its step rules.
    """

    def __init__(
        self,
        matrix: npt.ArrayLike,
        offset: npt.ArrayLike | None = None,
        diffusivity: Any = 1.0,
        *,
        boundaries: Mapping[int, tuple[str, float, float]] | None = None,
    ) -> None:
        self.matrix = array("matrix", matrix, "(d, d)", 2)
        self.dim = dimension(len(self.matrix))
        if self.matrix.shape != (self.dim, self.dim):
            raise ValueError(f"matrix must be square, got shape {self.matrix.shape}.")
        self.offset = np.zeros(self.dim) if offset is None else array("offset", offset, "(d,)", 1)
        if self.offset.shape != (self.dim,):
            raise ValueError(f"offset must have shape ({self.dim},), got {self.offset.shape}.")
        if callable(diffusivity):
            raise TypeError("Linear: diffusivity must be constant; use Langevin for one that depends on time or state.")
        noise_factor(diffusivity, self.dim)
        self.diffusivity, self.diffusivity_params = diffusivity, np.zeros(0)
        self.params = np.concatenate([self.matrix.ravel(), self.offset])
        self.interpretation, self.state_dependent = "ito", False
        self.walls = _walls(boundaries or {}, self.dim)

    def __repr__(self) -> str:
        return f"Linear(d = {self.dim})"

    def compiled(self) -> Compiled:
        """Fields and numbers for the kernels."""
        from thermodiff.kernels.langevin import affine

        return Compiled(affine, self.params, affine, self.diffusivity_params, 0.0, self.walls)

    def with_params(self, *params: float, **named: float) -> Langevin:
        """Not for a linear process: make another one."""
        raise TypeError("Linear: its numbers are the matrix and the offset; make another Linear.")

    def force(self, x: npt.ArrayLike, t: float = 0.0) -> FloatArray:
        """A x + b at points (n, d)."""
        return np.asarray(x, dtype=np.float64) @ self.matrix.T + self.offset

    def transition(self, h: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(E, m, Q): the state after a time h is normal with mean E x + m and covariance Q, exactly.

        m and Q of a short time come from one exponential each of a block matrix (Van Loan, 1978), those of h by doubling:
        the exponential of -A h would lose them to rounding where A h is large.
        """
        from scipy.linalg import expm

        d, factor = self.dim, noise_factor(self.diffusivity, self.dim)
        spread = np.diag(factor[:, 0] ** 2) if factor.shape[1] == 1 and d > 1 else factor @ factor.T
        doublings = max(int(np.ceil(np.log2(max(h * np.abs(self.matrix).sum(axis=0).max(), 1.0)))), 0)
        short = h / 2**doublings
        moved = _real(expm(short * np.block([[self.matrix, self.offset[:, None]], [np.zeros((1, d + 1))]])))
        step, shift = moved[:d, :d], moved[:d, d]
        # exp of [[-A, S], [0, A']] h holds E^-1 Q above E'.
        block = _real(expm(short * np.block([[-self.matrix, spread], [np.zeros((d, d)), self.matrix.T]])))
        covariance = step @ block[:d, d:]
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(doublings):
                covariance = covariance + step @ covariance @ step.T
                step, shift = step @ step, shift + step @ shift
        if not all(np.all(np.isfinite(part)) for part in (step, shift, covariance)):
            raise DivergenceError(f"Linear: within a time of {h:g} the state grows beyond float64; ask for earlier times.")
        return step, shift, 0.5 * (covariance + covariance.T)

    def exact_step(self, h: float) -> tuple[FloatArray, FloatArray]:
        """(params, mix) with which one Euler step of length h is the exact transition."""
        step, shift, covariance = self.transition(h)
        level, axes = np.linalg.eigh(covariance)
        mix = axes * np.sqrt(np.maximum(level, 0.0) / h)
        return np.concatenate([((step - np.eye(self.dim)) / h).ravel(), shift / h]), mix[None]


def _real(matrix: Any) -> FloatArray:
    return np.asarray(matrix, dtype=np.float64)


def _require_function_of_time(diffusivity: Callable[..., Any]) -> None:
    """Refuse what cannot be called as D(t), a function of (x, t) above all."""
    if isinstance(diffusivity, Field):
        raise TypeError(
            f"diffusivity: {diffusivity.__name__} was made by @td.{diffusivity.maker}; put @td.diffusivity above the "
            "function instead."
        )
    try:
        signature = inspect.signature(diffusivity)
    except (TypeError, ValueError):  # Some built-in functions have none.
        return
    try:
        signature.bind(0.0)
    except TypeError:
        name = getattr(diffusivity, "__name__", type(diffusivity).__name__)
        raise TypeError(
            f"diffusivity: a plain function is called as D(t), got {name}{signature}; for one that depends on x, put "
            "@td.diffusivity above a function of (x, t, ...)."
        ) from None


def noise_factor(diffusivity: Any, dim: int, t: float | None = None) -> FloatArray:
    """B with B B' = 2 D: (d, 1) for a number or a diagonal, (d, d) for a matrix; ``t`` is for messages.

    Raises
    ------
    TypeError, ValueError
        If D has another shape, is negative, or is not symmetric.
    """
    name = "diffusivity" if t is None else f"diffusivity at t = {t:g}"
    if diffusivity is None:
        raise TypeError(f"{name} must be a number, ({dim},) or ({dim}, {dim}), got None; pass 0 for dynamics without noise.")
    shape = np.shape(diffusivity)
    if shape not in ((), (dim,), (dim, dim)):
        raise ValueError(f"{name} must be a number, ({dim},) or ({dim}, {dim}), got shape {shape}.")
    values = array(name, np.atleast_1d(diffusivity), "(d,)" if len(shape) < 2 else "(d, d)", max(len(shape), 1))
    if values.ndim == 1:
        if np.any(values < 0.0):
            raise ValueError(f"{name} must not be negative, got {values.min():g}.")
        return np.sqrt(2.0 * np.broadcast_to(values, (dim,)))[:, None].copy()
    if not np.allclose(values, values.T, rtol=1e-12, atol=1e-14 * np.abs(values).max()):
        raise ValueError(f"{name}: the matrix must be symmetric; pass (D + D.T) / 2.")
    level, axes = np.linalg.eigh(values)
    if level[0] < -1e-12 * max(level[-1], 0.0):
        raise ValueError(f"{name}: the matrix has the negative eigenvalue {level[0]:g}; it must be positive semi-definite.")
    return axes * np.sqrt(2.0 * np.maximum(level, 0.0))


def _levels_of(given: list[Any], dim: int) -> FloatArray | None:
    """Diagonals (times, d) of values that are all numbers or all diagonals without a fault; None for others.

    At once, since looking at each takes longer than the steps of a thousand paths.
    """
    try:
        levels = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if levels.shape not in ((len(given),), (len(given), dim)) or not np.all(np.isfinite(levels)) or np.any(levels < 0.0):
        return None
    return np.broadcast_to(levels[:, None] if levels.ndim == 1 else levels, (len(given), dim)).copy()


def _end(name: str, value: Any, kind: str) -> float:
    """One end of an interval; that of a reflecting wall may be infinite."""
    if kind == "reflecting" and isinstance(value, Real) and np.isinf(float(value)):
        return float(value)
    return finite_number(name, value)


def _walls(boundaries: Mapping[int, tuple[str, float, float]], dim: int) -> FloatArray:
    if not isinstance(boundaries, Mapping):
        raise TypeError(
            'boundaries must be a mapping {coordinate: ("periodic" or "reflecting", low, high)}, '
            f"got {type(boundaries).__name__}."
        )
    walls = np.zeros((dim, 3))
    for coordinate, wall in boundaries.items():
        if not isinstance(coordinate, Integral) or not 0 <= coordinate < dim:
            raise ValueError(f"boundaries: coordinate {coordinate!r} does not exist; use 0 ... {dim - 1}.")
        try:
            kind, low, high = wall
        except (TypeError, ValueError):
            raise ValueError(
                f'boundaries[{coordinate}] must be ("periodic" or "reflecting", low, high), got {wall!r}.'
            ) from None
        choice(f"boundaries[{coordinate}]", kind, tuple(WALLS))
        low, high = _end(f"boundaries[{coordinate}]: low", low, kind), _end(f"boundaries[{coordinate}]: high", high, kind)
        if not low < high:
            raise ValueError(f"boundaries[{coordinate}]: low must be below high, got {low:g} and {high:g}.")
        if np.isinf(low) and np.isinf(high):
            raise ValueError(f"boundaries[{coordinate}]: neither end is finite; leave the coordinate out.")
        walls[coordinate] = WALLS[kind], low, high
    return walls
