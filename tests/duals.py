"""Functions of duals, compiled together, and their exact values."""

import mpmath
import numba
import numpy as np

import thermodiff as td
from thermodiff.kernels import dual, functions, user

POINTS = [(0.7, 1.3), (1.9, 0.4), (0.31, 0.32)]


def exact(function, a: float, b: float) -> tuple[float, float, float]:
    """Value and derivatives by mpmath."""
    with mpmath.workdps(40):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        slopes = mpmath.diff(lambda u: function(u, b), a), mpmath.diff(lambda u: function(a, u), b)
        return float(function(a, b)), float(slopes[0]), float(slopes[1])


def together(written, given: str):
    """All of the written compiled as one, which returns a tuple; a compilation each would take half a minute."""
    names = {f"f{k}": function for k, function in enumerate(written)}
    exec(f"def all_of_them({given}): return {', '.join(f'{name}({given})' for name in names)},", names)
    return user._compiled(names["all_of_them"], functions.REPLACED, inlined=True, outer=())


def in_both_directions(written):
    """(a, b) -> (written, 3): values, derivatives by a, derivatives by b."""
    compiled = together(written, "a, b")

    @numba.njit
    def flat(a, b, out):
        for k in range(2):
            found = compiled(dual.dual(a, 1.0 - k), dual.dual(b, 0.0 + k))
            for j in range(len(found)):
                out[j, 0], out[j, 1 + k] = found[j].value, found[j].slope

    def evaluate(a: float, b: float) -> np.ndarray:
        out = np.empty((len(written), 3))
        flat(a, b, out)
        return out

    return evaluate


def force(function, x, params=()) -> np.ndarray:
    return td.potential(function).at(np.array([x]), 0.0, params)[0]
