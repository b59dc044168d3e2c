"""Small networks for vectors; both predict the entropy-matching control e = s - f / D (see `predict`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import array, count, points, seed_words
from thermodiff.learned.devices import placed
from thermodiff.learned.times import Function, at_few_times
from thermodiff.schedules import Row, Schedule

LAM_LIMIT = 80.0
"""Networks see lam no further out than this, so that t = 0 and t = 1 give finite numbers."""
FREQUENCIES = 4
"""Fourier features of lam in ControlMLP, with periods of 64, 32, 16 and 8 nats."""


def torch_generator(rng: Any) -> torch.Generator:
    """Make a private torch generator from ``rng`` (int, SeedSequence, Generator or None)."""
    high, low = (int(word) for word in seed_words(rng))
    return torch.Generator().manual_seed((high << 32 | low) - (1 << 63))


def _row_at(noise: Schedule, t: torch.Tensor) -> Row:
    """What `schedule_row` gives.

    NumPy on purpose: near t = 1 the kernel depends on 1 - t, whose digits float32 has lost, so the schedule's own
    formulas form it in float64.  A table would save nothing: a thousand times cost some 0.1 ms.
    """
    plain = t.detach() if t.requires_grad else t
    # Not numpy(): it fails inside torch.func transforms (jvp, vmap), even of x alone.
    values = np.from_dlpack(plain) if plain.device.type == "cpu" else plain.tolist()
    with np.errstate(divide="ignore"):
        lam = noise.lam(np.array(values, dtype=np.float64))
    return noise.at(np.clip(lam, -LAM_LIMIT, LAM_LIMIT))


_times_to_row: Callable[[Schedule, torch.Tensor], Row] = _row_at


def schedule_row(noise: Schedule, t: torch.Tensor) -> Row:
    """Give the kernel at times ``t``, shape (n,), as NumPy float64, finite also at both ends."""
    return _times_to_row(noise, t)


def schedule_tensors(noise: Schedule, t: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Give lam, alpha, sigma and growth of `schedule_row` as float64 where ``x`` is, shape (n, 1, ...) as x has axes."""
    row = schedule_row(noise, t)
    values = np.stack(np.broadcast_arrays(np.atleast_1d(row.lam), row.alpha, row.sigma, row.growth))
    return placed(torch.from_numpy(values), x.device).reshape(4, -1, *(1,) * max(1, x.ndim - 1)).unbind()


_few_times: Callable[[Function, torch.Tensor], tuple[torch.Tensor, Function]] = at_few_times


def keep_times_uncompiled() -> None:
    """Make torch.compile leave alone what looks at times, which it cannot trace; to be called before compiling.

    Not done at import, where it would load the compiler, which takes seconds.
    """
    global _times_to_row, _few_times
    if _times_to_row is _row_at:
        _times_to_row = torch.compiler.disable(_row_at)  # pyright: ignore[reportAssignmentType]
        _few_times = torch.compiler.disable(at_few_times)  # pyright: ignore[reportAssignmentType]


def _linear(inputs: int, outputs: int, generator: torch.Generator, gain: float) -> nn.Linear:
    """Make a dense layer, uniform in +-gain / sqrt(inputs), drawn without touching torch's global generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = gain / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound / gain, bound / gain, generator=generator) if gain else layer.bias.zero_()
    return layer


class ControlMLP(nn.Module):
    """Gaussian-preconditioned multilayer perceptron for the entropy-matching control e.

    In the eigenbasis of the data covariance C (eigenvalues c_j, mean m), with v_j = alpha**2 c_j + sigma**2,

        e_j = (2 kappa / sigma**2 - 1 / v_j) x_j + alpha m_j / v_j + u_j NN_j(w, lam),
        w_j = (x_j - alpha m_j) / sqrt(v_j),     u_j = alpha sqrt(c_j / v_j) / sqrt(sigma**2 + alpha**2 width**2).

    The first two terms are the control of the Gaussian with the moments of the data; the last layer starts at zero, so
    the untrained network is exact for Gaussian data, and in general its entropy is that of the matched Gaussian.

    The envelope: sigma u_j is the size that b = sigma s can differ by from the Gaussian one.  While the noise is wider
    than the structures of the density it is alpha sqrt(c_j / v_j) (Karras et al., 2206.00364); when the noise is
    narrower it falls like sigma, since the score is finite.  Without that fall the network must cancel itself at large
    lam, where the training target is nearly all noise: on the published D = 3 mixture the error after 1,000 steps is
    4.6 % of the total entropy without, 0.7 % with it.  The width in u_j is trained, in units of the rms deviation, from
    0.15.

    Parameters
    ----------
    dim : int
        Dimension d of the data.
    width, depth : int
        Units per hidden layer, and number of hidden layers.
    rng : int, SeedSequence, Generator or None
        Draws the initial weights.

    Notes
    -----
    `precondition` must be called before use; `train` does it.  Times should come as float64, on the CPU wherever x is.
    """

    predicts = "entropy"
    double_time = True
    host_time = True
    learning_rate = 7e-3
    mean: torch.Tensor
    variances: torch.Tensor
    basis: torch.Tensor

    def __init__(self, dim: int, width: int = 128, depth: int = 3, *, rng: Any = None) -> None:
        super().__init__()
        self.dim, self.width, self.depth = count("dim", dim), count("width", width), count("depth", depth)
        self.noise: Schedule | None = None
        draws = torch_generator(rng)
        inputs = self.dim + 3 + 2 * FREQUENCIES
        # Three times the usual spread in the first layer, and unit gain later: the whitened input varies over less
        # than its own width, and the usual start is too smooth (error after 1,000 steps: 0.7 % usual, 0.2 % this one).
        layers = [_linear(inputs, self.width, draws, 3.0)]
        layers += [_linear(self.width, self.width, draws, math.sqrt(3.0)) for _ in range(self.depth - 1)]
        self.hidden = nn.ModuleList(layers)
        self.last = _linear(self.width, self.dim, draws, 0.0)
        self.log_width = nn.Parameter(torch.tensor(math.log(0.15)))
        # The moments stay float64: in the coefficients 2 kappa / sigma**2 - 1 / v they are subtracted.
        self.register_buffer("mean", torch.zeros(self.dim, dtype=torch.float64))
        self.register_buffer("variances", torch.ones(self.dim, dtype=torch.float64))
        self.register_buffer("basis", torch.eye(self.dim, dtype=torch.float64))

    @property
    def arguments(self) -> dict[str, int]:
        """Arguments that build a network of this shape."""
        return {"dim": self.dim, "width": self.width, "depth": self.depth}

    def precondition(self, mean: npt.ArrayLike, cov: npt.ArrayLike, noise: Schedule) -> None:
        """Set the moments of the data and the schedule.

        Parameters
        ----------
        mean : array, shape (d,)
            Mean of the data.
        cov : array, shape (d, d)
            Covariance; directions without variance are allowed.
        noise : Schedule
            The schedule that turns times into alpha and sigma.
        """
        center, matrix = array("mean", mean, "(d,)", 1), points("cov", cov, self.dim)
        if center.shape != (self.dim,) or matrix.shape != (self.dim, self.dim):
            raise ValueError(
                f"precondition: the network has dim={self.dim}, got mean {center.shape} and cov {matrix.shape}."
            )
        variances, basis = np.linalg.eigh(0.5 * matrix + 0.5 * matrix.T)
        if not variances[-1] > 0.0:
            raise ValueError("cov has no positive eigenvalue; the data must vary.")
        # Round-off leaves tiny variances of either sign where there is none.
        variances = np.where(variances > 1e-12 * variances[-1], variances, 0.0)
        self.variances.copy_(torch.from_numpy(variances))
        self.basis.copy_(torch.from_numpy(basis))
        self.mean.copy_(torch.from_numpy(center @ basis))
        self.noise = noise

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Give the control e at ``x`` (n, d) and times ``t`` (n,), in inverse data units; shape (n, d)."""
        if self.noise is None:
            raise ValueError("ControlMLP has no moments yet; call precondition(mean, cov, noise), train it or load weights.")
        lam, alpha, sigma, growth = schedule_tensors(self.noise, t, x)
        kind = self.last.weight.dtype
        total = self.variances.mean()
        inverse = 1.0 / (alpha**2 * self.variances + sigma**2)
        shift = alpha * self.mean
        slope = (2.0 * growth / sigma**2 - inverse).to(kind)
        scale = inverse.sqrt()
        turn = torch.rsqrt((sigma**2 / total).to(kind) + (alpha**2).to(kind) * torch.exp(2.0 * self.log_width))
        envelope = (alpha * (self.variances / total).sqrt() * scale).to(kind) * turn

        basis = self.basis.to(kind)
        rotated = _turned(x.to(kind), basis)
        hidden = torch.cat([rotated * scale.to(kind) - (shift * scale).to(kind), _clock(lam, total).to(kind)], 1)
        for layer in self.hidden:
            hidden = nn.functional.silu(layer(hidden))
        control = slope * rotated + (shift * inverse).to(kind) + envelope * self.last(hidden).to(kind)
        return _turned(control, basis.T)


def _turned(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """``x @ basis`` in the type given, also in mixed precision: large terms and angles lose too much there."""
    if not torch.is_autocast_enabled(x.device.type):
        return x @ basis
    with torch.autocast(x.device.type, enabled=False):
        return x @ basis


def _clock(lam: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Smooth features of lam, shape (n, 3 + 2 FREQUENCIES), centred where noise and data are equally wide."""
    u = lam + torch.log(variance)
    share = torch.sigmoid(u)
    angle = u * (2.0 ** torch.arange(FREQUENCIES, device=u.device) * (math.pi / 32.0))
    return torch.cat([u / 8.0, share.sqrt(), (1.0 - share).sqrt(), angle.sin(), angle.cos()], 1)


_FOURIER_SCALE = 10.0 * 0.01
"""Standard deviation of the frozen frequencies of `EntropyMLP`, in periods per unit of data or time."""


class EntropyMLP(nn.Module):
    """The network of the published transport experiments (Premkumar, 2409.03817), for comparison with them.

    Point and time each pass through frozen Gaussian Fourier features and a dense layer of 512 with a sigmoid.  The 256
    frequencies have a standard deviation of 0.1: their published scale of 10 multiplies normals of width 0.01, which is
    what the library of the published runs draws by default.  Two hidden layers (512, 256) follow, each dense(h) +
    dense(time), LayerNorm, sigmoid; then a dense layer to d, without time and without output scaling.
    1,314,816 + 257 d trainable parameters.

    Parameters
    ----------
    dim : int
        Dimension d of the data.
    rng : int, SeedSequence, Generator or None
        Draws the frequencies and the initial weights.
    """

    predicts = "entropy"
    learning_rate = 1e-4
    frequencies_x: torch.Tensor
    frequencies_t: torch.Tensor

    def __init__(self, dim: int, *, rng: Any = None) -> None:
        super().__init__()
        self.dim = count("dim", dim)
        draws = torch_generator(rng)
        self.register_buffer("frequencies_x", _FOURIER_SCALE * torch.randn(self.dim, 256, generator=draws))
        self.register_buffer("frequencies_t", _FOURIER_SCALE * torch.randn(1, 256, generator=draws))
        # Variance 1 / inputs and zero offsets, the usual start of the library that the published runs used.
        self.embed_x, self.embed_t = self._dense(512, 512, draws), self._dense(512, 512, draws)
        self.hidden = nn.ModuleList([self._dense(512, 512, draws), self._dense(512, 256, draws)])
        self.times = nn.ModuleList([self._dense(512, 512, draws), self._dense(512, 256, draws)])
        self.norms = nn.ModuleList([nn.LayerNorm(512, eps=1e-6), nn.LayerNorm(256, eps=1e-6)])
        self.last = self._dense(256, self.dim, draws)

    @staticmethod
    def _dense(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
        layer = _linear(inputs, outputs, draws, math.sqrt(3.0))
        nn.init.zeros_(layer.bias)
        return layer

    @property
    def arguments(self) -> dict[str, int]:
        """Arguments that build a network of this shape."""
        return {"dim": self.dim}

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Give the control e at ``x`` (n, d) and times ``t`` (n,), in inverse data units; shape (n, d)."""
        kind = self.last.weight.dtype
        clock, spread = _few_times(lambda times: self._clock(times.to(kind)), t)
        h = torch.sigmoid(self.embed_x(_waves(x.to(kind), self.frequencies_x)))
        for layer, time, norm in zip(self.hidden, self.times, self.norms, strict=True):
            h = torch.sigmoid(norm(layer(h) + spread(time(clock))))
        return self.last(h)

    def _clock(self, times: torch.Tensor) -> torch.Tensor:
        """What the network sees of the times (m,), half of its work; shape (m, 512)."""
        return torch.sigmoid(self.embed_t(_waves(times[:, None], self.frequencies_t)))


def _waves(values: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of 2 pi (values @ frequencies)."""
    angle = (2.0 * math.pi) * _turned(values, frequencies)
    return torch.cat([angle.sin(), angle.cos()], 1)
