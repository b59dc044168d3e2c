"""What a network may predict, and the dimensionless score b = sigma s that follows (s = grad log p_t).

With x = alpha x_0 + sigma z, kappa = d ln alpha / d lam and a = sigma f / D = -(2 kappa / sigma) x:

=========  =======================================  ======================================================
predicts   output                                   b
=========  =======================================  ======================================================
entropy    e = s - f / D, entropy-matching control  sigma e + a
score      s                                        sigma s
eps        E[z | x]                                 -eps
x0         E[x_0 | x]                               (alpha x0 - x) / sigma
v          alpha z - (sigma / scale) x_0            -(alpha v + (sigma / scale) x) / (alpha**2 + sigma**2 / scale)
flow       dx/dt = f - D s, per unit time           a - sigma flow / D
edm        E[x_0 | x], asked at (x, sigma) / alpha  (alpha edm - x) / sigma
=========  =======================================  ======================================================

All but "edm" are called as ``net(x, t)``.  An EDM denoiser D(x; sigma) knows no schedule: it is called as
``net(x / alpha, sigma / alpha)``, the point and the noise level beside data of factor 1 (Karras et al., 2206.00364).

Plain arithmetic in the type given, for NumPy arrays and tensors alike.  At the data end sigma is small and ``x0``
and ``edm`` lose their digits in alpha x0 - x: give float64 there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from thermodiff._check import choice
from thermodiff.learned.devices import placed
from thermodiff.schedules import Row, Schedule

PREDICTS = ("entropy", "score", "eps", "x0", "v", "flow", "edm")
"""What a network may predict."""
ROUNDING = 0.2
"""In lam, by which a window may begin beyond the end of a schedule, a hundredth of its time: -8 passes for VE's -7.82."""


def tensor_row(row: Row, like: torch.Tensor, dtype: torch.dtype | None = None) -> Row:
    """Make the scalars of each sample tensors that broadcast against ``like``.

    Parameters
    ----------
    row : Row
        NumPy scalars or arrays of shape (n,).
    like : Tensor, shape (n, ...)
        Gives the number of axes, the device and, unless ``dtype`` is given, the type.
    dtype : torch.dtype, optional
        Type of the result.

    Returns
    -------
    Row
        Tensors of shape (n, 1, ...).  The time stays float64, since 1 - t loses its digits in float32, and on the CPU,
        where schedules can be asked about it.
    """
    shape = (-1,) + (1,) * (like.ndim - 1)

    def convert(values: Any, kind: torch.dtype) -> Any:
        return torch.as_tensor(np.asarray(values), dtype=kind).reshape(shape)

    def move(values: Any) -> Any:
        return placed(convert(values, kind), like.device)

    kind = like.dtype if dtype is None else dtype
    return Row(
        move(row.lam),
        convert(row.time, torch.float64),
        move(row.alpha),
        move(row.sigma),
        move(row.growth),
    )


def call(net: Any, x: torch.Tensor, t: torch.Tensor) -> Any:
    """Call ``net(x, t)`` with times in the type of ``x``, or in float64 for a network that says ``double_time``.

    They are where x is, or on the CPU for a network that says ``host_time``, which looks at their values: there it does not
    wait for a GPU, but for the noise levels of "edm", which are formed on the device.

    Errors of Torch and of values, and short memory, come out as they are; others as a RuntimeError that names them.
    """
    kind = torch.float64 if getattr(net, "double_time", False) else x.dtype
    t = t.to(kind)
    try:
        return net(x, t.cpu() if getattr(net, "host_time", False) else placed(t, x.device))
    except (RuntimeError, TypeError, ValueError, MemoryError):
        raise
    except Exception as error:  # whose own text, such as 'a', says little
        raise RuntimeError(f"the network raised {type(error).__name__}: {error}") from error


def ask(net: Any, predicts: str, x: torch.Tensor, row: Row, dtype: torch.dtype | None = None) -> Any:
    """What ``net`` puts out at points ``x`` (n, ...), called as its kind is called.

    ``row`` holds scalars, or tensors of `tensor_row`; ``dtype`` is the type of the input, default that of ``x``.  The
    network gets copies: one that works in place changes neither ``x`` nor ``row``.
    """
    dtype = x.dtype if dtype is None else dtype
    if predicts == "edm":
        return call(net, (x / row.alpha).to(dtype), _each(row.sigma / row.alpha, len(x)))
    return call(net, x.to(dtype, copy=True), _each(row.time, len(x)))


def _each(values: Any, n: int) -> torch.Tensor:
    """A scalar, or one number for each sample, as float64 of shape (n,), in memory of its own."""
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1).expand(n).clone()


def check_window(predicts: str, noise: Schedule, window: tuple[float, float]) -> tuple[float, float]:
    """``window``, refused where it begins beyond the end of the schedule: no network is asked, or trained, there.

    An "edm" denoiser knows no time, so that there is no end to it.
    """
    lowest = float(noise.lam(noise.t_end))
    if predicts != "edm" and window[0] < lowest - ROUNDING:
        raise ValueError(
            f"the window begins at lam = {window[0]:g}, but {noise.name} ends at lam = {lowest:.6g}, t = {noise.t_end:g}, "
            f"and no network is asked at later times; begin at {lowest:.6g} or above."
        )
    return window


def drift_term(x: Any, row: Row) -> Any:
    """Give a = sigma f / D, the dimensionless drift; shape of ``x``."""
    return (-2.0 * row.growth / row.sigma) * x


def dimensionless_score(predicts: str, output: Any, x: Any, row: Row, noise: Schedule) -> Any:
    """Find the dimensionless score b = sigma s from what the network gives.

    Parameters
    ----------
    predicts : str
        One of `PREDICTS`.
    output, x : array or Tensor, shape (n, ...)
        Output of the network, and its input in data units.
    row : Row
        Scalars, or arrays that broadcast against ``x``: `tensor_row` makes them.
    noise : Schedule
        Gives the scale (for "v") and the diffusivity (for "flow").

    Returns
    -------
    array or Tensor
        b, shape of ``x``.
    """
    choice("predicts", predicts, PREDICTS)
    if predicts == "entropy":
        return row.sigma * output + drift_term(x, row)
    if predicts == "score":
        return row.sigma * output
    if predicts == "eps":
        return -output
    if predicts in ("x0", "edm"):
        return (row.alpha * output - x) / row.sigma
    if predicts == "v":
        turn = row.sigma / _scale(noise)
        return -(row.alpha * output + turn * x) / (row.alpha**2 + row.sigma * turn)
    return drift_term(x, row) - (row.sigma / _diffusivity(row, noise)) * output


def target(predicts: str, b: Any, x: Any, row: Row, noise: Schedule) -> Any:
    """Find what a network of the given kind must put out at ``x`` for the dimensionless score ``b``.

    The inverse of `dimensionless_score`, with the same arguments.
    """
    choice("predicts", predicts, PREDICTS)
    if predicts == "entropy":
        return (b - drift_term(x, row)) / row.sigma
    if predicts == "score":
        return b / row.sigma
    if predicts == "eps":
        return -b
    if predicts in ("x0", "edm"):
        return (x + row.sigma * b) / row.alpha
    if predicts == "v":
        return -row.alpha * b - (row.sigma / _scale(noise)) * (x + row.sigma * b) / row.alpha
    return (_diffusivity(row, noise) / row.sigma) * (drift_term(x, row) - b)


def _scale(noise: Schedule) -> float:
    return float(getattr(noise, "scale", 1.0))


def _diffusivity(row: Row, noise: Schedule) -> Any:
    """D(t) in the type of ``row.sigma``, from the time in float64."""
    time: Any = row.time
    sigma: Any = row.sigma
    if not isinstance(time, torch.Tensor):
        return noise.diffusivity(time)
    value = noise.diffusivity(time.detach().cpu().numpy())
    return placed(torch.as_tensor(value, dtype=sigma.dtype), sigma.device)
