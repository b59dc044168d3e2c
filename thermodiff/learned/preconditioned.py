"""A wrapper that lets any network start from the Gaussian answer, for vectors and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import array
from thermodiff.learned.networks import schedule_tensors
from thermodiff.schedules import Schedule

CLOCK = 4.0
"""Nats of log-SNR over which the clock shown to the inner network changes by a factor e at its ends."""


class Preconditioned(nn.Module):
    """The control e of the isotropic Gaussian with the moments of the data, and a network for the rest.

    With the mean m of the data, the mean c of its variances, and v = alpha**2 c + sigma**2,

        e = (2 kappa / sigma**2 - 1 / v) x + (alpha / v) m + (alpha / sigma) sqrt(c / v) NN(w, clock),
        w = (x - alpha m) / sqrt(v),     clock = 1 / (1 + exp((lam + ln c) / 4)).

    The first two terms are the control of N(m, c); where the last layer of the network is called ``last`` it is set to
    zero, so that training starts there.  The factor of the third is the size that sigma e can differ by from the first
    two (Karras et al., 2206.00364).  One variance for all coordinates, since that of single pixels can vanish on the
    training images and not on others; `ControlMLP` takes the whole covariance.

    Parameters
    ----------
    net : Module
        Called as ``net(w, clock)``, or ``net(w, clock, y)`` with labels; the clock goes from 0 (data) to 1 (noise).
        Gives the shape of w.

    Notes
    -----
    `precondition` must be called before use; `train` does it.
    """

    predicts = "entropy"
    double_time = True
    host_time = True
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"Preconditioned: net must be a torch module, got {net!r:.80}.")
        self.net, self.noise = net, None
        self.learning_rate = getattr(net, "learning_rate", 2e-4)
        self.classes = getattr(net, "classes", None)
        # The moments stay float64: in 2 kappa / sigma**2 - 1 / v they are subtracted.
        self.register_buffer("mean", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_load_state_dict_pre_hook(self._resize)
        last = getattr(net, "last", None)
        if isinstance(last, nn.Module):
            for weight in last.parameters():
                nn.init.zeros_(weight)

    noise: Schedule | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The inner network and its arguments."""
        return {"net": type(self.net).__name__, **(getattr(self.net, "arguments", None) or {})}

    def precondition(self, mean: npt.ArrayLike, cov: npt.ArrayLike, noise: Schedule) -> None:
        """Set the moments of the data and the schedule.

        Parameters
        ----------
        mean : array, shape (d,)
            Mean of the flattened data.
        cov : array, shape (d, d) or (d,)
            Covariance or variances; only the mean of the variances is used.
        noise : Schedule
            The schedule that turns times into alpha and sigma.
        """
        center, spread = array("mean", mean, "(d,)", 1), np.asarray(cov, dtype=np.float64)
        variance = float(np.mean(np.diag(spread) if spread.ndim == 2 else spread))
        if not variance > 0.0:
            raise ValueError(f"the data must vary, got a mean variance of {variance:g}.")
        self.mean = torch.from_numpy(center.copy()).to(self.mean.device)
        self.variance.fill_(variance)
        self.noise = noise

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Give the control e at ``x`` (n, ...) and times ``t`` (n,), in inverse data units; shape of ``x``."""
        if self.noise is None:
            raise ValueError(
                "Preconditioned has no moments yet; call precondition(mean, cov, noise), train it or load weights."
            )
        if x[0].numel() != self.mean.numel():
            raise ValueError(f"the moments are those of {self.mean.numel()} coordinates, x has shape {tuple(x.shape)}.")
        lam, alpha, sigma, growth = schedule_tensors(self.noise, t, x)
        c = self.variance
        inverse = 1.0 / (alpha**2 * c + sigma**2)
        scale = inverse.sqrt()
        shift = (alpha * scale).to(x.dtype) * self.mean.to(x.dtype).reshape(x.shape[1:])
        clock = torch.sigmoid(-(lam + c.log()) / CLOCK).flatten().to(x.dtype).expand(x.shape[0])
        inner = x * scale.to(x.dtype) - shift
        rest = self.net(inner, clock) if y is None else self.net(inner, clock, y)
        gain = (alpha / sigma * c.sqrt() * scale).to(x.dtype)
        return (2.0 * growth / sigma**2 - inverse).to(x.dtype) * x + scale.to(x.dtype) * shift + gain * rest.to(x.dtype)

    @staticmethod
    def _resize(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Take the length of the mean from the file: it is that of the data."""
        stored = state.get(f"{prefix}mean")
        if stored is not None and stored.shape != module.mean.shape:
            module.mean = torch.empty_like(stored, device=module.mean.device)  # pyright: ignore[reportArgumentType]
