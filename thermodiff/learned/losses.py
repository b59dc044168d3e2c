"""Denoising losses.

At x = alpha x_0 + sigma z a network with dimensionless score b_theta = sigma s_theta is fitted by the squared residual
|b_theta(x) + z|**2, whose mean is least for the score of p_t.  Two weightings (Premkumar, 2409.03817):

==================  ==============================================  ==============================================
weighting           average over t uniform                          integral over lam
==================  ==============================================  ==============================================
maximum likelihood  E (D / sigma**2) |b_theta + z|**2               1/2 int dlam E|b_theta + z|**2
unweighted          E |b_theta + z|**2  (the published runs)        int dlam sigma**2 / (2 D) E|b_theta + z|**2
==================  ==============================================  ==============================================

They differ by a function of time alone: D dt = -(sigma**2 / 2) dlam.  The value of the loss holds the irreducible part
E|b + z|**2 too, so that it is not a divergence; only differences of losses are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from thermodiff.learned.predict import ask, dimensionless_score
from thermodiff.schedules import FloatArray, Row, Schedule

Net = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""net(x, t): x of shape (n, ...) and t of shape (n,), see `predict.ask`; gives the shape of x."""


def squared_residual(
    net: Net, x0: torch.Tensor, z: torch.Tensor, row: Row, noise: Schedule, predicts: str = "entropy"
) -> torch.Tensor:
    """|b_theta + z|**2 of each sample.

    Parameters
    ----------
    net : callable
        ``net(x, t)``.
    x0, z : Tensor, shape (n, ...)
        Data and standard normals.
    row : Row
        Tensors of shape (n, 1, ...), from `predict.tensor_row`.
    noise : Schedule
        The schedule of ``row``.
    predicts : str
        What the network predicts.

    Returns
    -------
    Tensor, shape (n,)
    """
    alpha: Any = row.alpha
    x = alpha * x0 + row.sigma * z
    output = ask(net, predicts, x, row)
    if not isinstance(output, torch.Tensor) or output.shape != x.shape:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"the network must return a tensor of the shape of x, {tuple(x.shape)}, got {got}.")
    b = dimensionless_score(predicts, output, x, row, noise)
    return (b + z).square().flatten(1).sum(1)


def denoising_loss(
    net: Net,
    x0: torch.Tensor,
    z: torch.Tensor,
    row: Row,
    noise: Schedule,
    predicts: str = "entropy",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of weight times |b_theta + z|**2 over the batch.

    Arguments as for `squared_residual`; ``weights`` has shape (n,), None for ones.
    """
    squares = squared_residual(net, x0, z, row, noise, predicts)
    return squares.mean() if weights is None else (weights * squares).mean()


def likelihood_weight(row: Row, noise: Schedule) -> FloatArray:
    """D / sigma**2, the maximum-likelihood weight for times uniform in t; per unit time, shape of the row (NumPy)."""
    return noise.diffusivity(row.time) / np.square(row.sigma)
