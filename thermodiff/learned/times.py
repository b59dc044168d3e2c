"""Functions of the time alone, such as half of a network, evaluated at few times for many samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

NODES = 32
"""Chebyshev nodes between the first and the last time of a batch."""
_CHECKED = 3  # Chebyshev coefficients, the last, that must have fallen to round-off
_ROUND_OFF = 2.0  # in units of the precision: what float32 leaves of them is 0.3 to 0.7 of it (measured)

Function = Callable[[torch.Tensor], torch.Tensor]


def at_few_times(function: Function, t: torch.Tensor) -> tuple[torch.Tensor, Function]:
    """Evaluate a smooth function of the time where samples share times, or at Chebyshev nodes where they do not.

    Parameters
    ----------
    function : callable
        ``function(times)`` for times (m,); gives numbers of order one, shape (m, w).
    t : Tensor, shape (n,)
        The times of the samples.

    Returns
    -------
    values : Tensor, shape (m, w)
        The function at m times, of which there are no more than samples.
    spread : callable
        Takes rows (m, v), formed of ``values`` row by row by an affine map, to the samples, (n, v).

    Notes
    -----
    Interpolation is used where the last Chebyshev coefficients of the values have fallen to round-off, so that it differs
    from the function itself as two orders of summation do; where they have not, each time is evaluated.  Not on a GPU,
    where looking would wait for the device, nor where t has a gradient or a compiler traces the calls.
    """
    if t.device.type != "cpu" or t.requires_grad or torch.compiler.is_compiling():
        return function(t), _as_they_are
    times, place = torch.unique(t, return_inverse=True)
    if len(times) > 2 * NODES:
        middle, half = 0.5 * (times[0] + times[-1]).double(), 0.5 * (times[-1] - times[0]).double()
        nodes, coefficients = _table()
        with torch.autocast("cpu", enabled=False):  # what bf16 leaves of the coefficients tells nothing
            values = function((middle + half * nodes).to(t.dtype))
            if torch._C._functorch.is_batchedtensor(values):  # pyright: ignore[reportAttributeAccessIssue]
                return function(t), _as_they_are  # many sets of weights at once, of which nothing can be asked
            tail = coefficients[-_CHECKED:].to(values.dtype) @ values.detach()
            if bool(tail.abs().max() <= _ROUND_OFF * torch.finfo(values.dtype).eps):
                angles = torch.arccos(((t.double() - middle) / half).clamp(-1.0, 1.0))
                weights = torch.cos(angles[:, None] * _orders()) @ coefficients
                return values, _product(weights.to(values.dtype))
    if 4 * len(times) > 3 * len(t):
        return function(t), _as_they_are
    return function(times), lambda rows: rows[place]


def _as_they_are(rows: torch.Tensor) -> torch.Tensor:
    return rows


def _product(weights: torch.Tensor) -> Function:
    def spread(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return weights @ rows.to(weights.dtype)

    return spread


@cache
def _table() -> tuple[torch.Tensor, torch.Tensor]:
    """Chebyshev nodes of the first kind in [-1, 1], and the matrix that takes values there to coefficients."""
    angles = (_orders() + 0.5) * (math.pi / NODES)
    matrix = torch.cos(_orders()[:, None] * angles) * (2.0 / NODES)
    matrix[0] *= 0.5
    return torch.cos(angles), matrix


def _orders() -> torch.Tensor:
    return torch.arange(NODES, dtype=torch.float64, device="cpu")
