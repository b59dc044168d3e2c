"""Fit a network to a diffusion: denoising loss, Adam, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import DivergenceError, above, choice, count, finite_number, seed_words
from thermodiff.learned.batches import LamProposal, Source, batches, lam_rows, time_rows
from thermodiff.learned.checkpoint import save_weights
from thermodiff.learned.losses import denoising_loss
from thermodiff.learned.networks import torch_generator
from thermodiff.learned.predict import PREDICTS
from thermodiff.learned.progress import TrainingBar
from thermodiff.schedules import Schedule

_WARM_UP = 100  # steps of rising learning rate, or a tenth of the training if that is less
_CLIP = 3.0  # gradients longer than this many times their running mean are cut


@runtime_checkable
class _Preconditioned(Protocol):
    def precondition(self, mean: npt.ArrayLike, cov: npt.ArrayLike, noise: Schedule) -> None: ...


N = TypeVar("N", bound=nn.Module)


def train(
    net: N,
    data: Any,
    noise: Schedule,
    *,
    steps: int = 2000,
    batch: int = 1024,
    lr: float | None = None,
    ema: float = 0.998,
    rng: Any = None,
    lam: tuple[float, float] | None = None,
    likelihood: bool = True,
    times: str = "lam",
    predicts: str | None = None,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    metrics: Callable[[int, float], None] | None = None,
) -> N:
    """Train ``net`` in place on a diffusion of ``data`` by ``noise``.

    Parameters
    ----------
    net : Module
        ``net(x, t)`` with x of shape (n, ...) float32 in data units and t of shape (n,) float64.  If it has a method
        ``precondition(mean, cov, noise)``, that is called first.
    data : density, Samples, or array
        Has ``sample(n, rng=)``, ``mean()``, ``covariance()``; or points (n, d); or images (n, channels, height, width).
    noise : Schedule
        The schedule.
    steps, batch : int
        Number of updates, and samples for each.
    lr : float, optional
        Highest learning rate; rises over the first 100 steps and falls to zero as a cosine.  Default: the
        ``learning_rate`` of the network, or 2e-4.
    ema : float
        Decay per step of the average of the weights that is returned.
    rng : int, SeedSequence, Generator or None
        Draws everything but the initial weights, which are the caller's.
    lam : (float, float), optional
        Window of log-SNR; default that of the schedule.  Schedules that diverge towards the data need it.
    likelihood : bool
        Maximum-likelihood weight (in lam: 1/2 everywhere), or none (the mean over t, as published).
    times : {"lam", "uniform"}
        Draw lam by importance, stratified, with paired noise; or t uniform in [1e-5, t_end - 1e-5] as published (then
        ``lam`` must not be given).
    predicts : str, optional
        What the network predicts; default its own ``predicts``, or "entropy".
    progress : bool
        Whether a bar may be shown.
    checkpoint : path, optional
        Where to save the trained weights, see `save_weights`.
    metrics : callable, optional
        ``metrics(step, loss)`` is called after every step.

    Returns
    -------
    Module
        ``net`` with averaged weights, in evaluation mode.

    Raises
    ------
    DivergenceError
        The loss became nan or infinite.

    Notes
    -----
    The same ``rng``, device, number of threads and starting weights give the same weights.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"train: net must be a torch module, got {type(net).__name__}.")
    if not isinstance(noise, Schedule):
        raise TypeError(f"train: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
    steps, batch = count("steps", steps), count("batch", batch)
    predicts = choice("predicts", predicts or getattr(net, "predicts", "entropy"), PREDICTS)
    lr = above("lr", getattr(net, "learning_rate", 2e-4) if lr is None else lr, 0.0, "nothing would be learned")
    if not 0.0 <= finite_number("ema", ema) < 1.0:
        raise ValueError(f"ema must be at least 0 and below 1, got {ema!r}.")
    source = Source(data)
    _check_dim(net, source)
    rows = _rows(source, noise, lam, likelihood, times)
    words = seed_words(rng)
    device = next(net.parameters()).device
    stream = batches(
        source, rows, batch, times == "lam", np.random.default_rng(words), torch_generator(_second(words)), device
    )
    if isinstance(net, _Preconditioned):
        net.precondition(*source.moments(), noise)

    net.train()
    optimiser = _Optimiser(net, lr, ema, steps)
    bar = TrainingBar(steps, progress)
    try:
        for step in range(1, steps + 1):
            x0, z, row, weights = next(stream)
            loss = denoising_loss(net, x0, z, row, noise, predicts, weights)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergenceError(f"the training loss became {value} at step {step} of {steps}; lower lr (now {lr:g}).")
            optimiser.step(loss, step)
            bar.update(step, value)
            if metrics is not None:
                metrics(step, value)
    finally:
        bar.close()
    optimiser.finish()
    if checkpoint is not None:
        save_weights(net, checkpoint, noise=noise, predicts=predicts)
    return net.eval()


def _second(words: npt.NDArray[np.uint32]) -> np.random.SeedSequence:
    """Derive a second stream of the same key."""
    return np.random.SeedSequence([int(word) for word in words], spawn_key=(1,))


def _check_dim(net: nn.Module, source: Source) -> None:
    dim = getattr(net, "dim", None)
    if dim is not None and source.shape != (dim,):
        raise ValueError(f"the network has dim={dim}, one sample of the data has shape {source.shape}; build it to fit.")


def _rows(source: Source, noise: Schedule, lam: Any, likelihood: bool, times: str) -> Any:
    """Choose the function from uniforms to kernel and weights."""
    if choice("times", times, ("lam", "uniform")) == "uniform":
        if lam is not None:
            raise ValueError("lam was given with times='uniform', which covers all t; drop lam or use times='lam'.")
        return partial(time_rows, noise, likelihood)
    if lam is None and noise.diverges:
        raise ValueError(f"{noise.name} grows without bound towards the data; state the window, as in lam=(-8, 8).")
    low, high = noise.window(lam=lam)
    return partial(lam_rows, noise, LamProposal(noise, low, high, source.variances()), likelihood)


class _Optimiser:
    """Adam with warm-up, cosine decay, gradient clipping relative to the running norm, and averaged weights."""

    def __init__(self, net: nn.Module, lr: float, ema: float, steps: int) -> None:
        self._weights: list[torch.Tensor] = [weight for weight in net.parameters() if weight.requires_grad]
        self._average = [weight.detach().clone() for weight in self._weights]
        # The memory of squared gradients is short: their size changes much during a training of some thousand steps.
        self._adam = torch.optim.Adam(self._weights, lr=lr, betas=(0.9, 0.99), fused=True)
        self._lr, self._ema, self._steps = lr, ema, steps
        self._warm_up = max(1, min(_WARM_UP, steps // 10))
        self._norm: torch.Tensor | None = None

    def step(self, loss: torch.Tensor, step: int) -> None:
        """Update the weights, and their average."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate(step)
        self._adam.zero_grad()
        loss.backward()
        self._clip()
        self._adam.step()
        with torch.no_grad():
            # Early weights are soon forgotten: the average is over the last tenth of a short run at most.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                self._average, self._weights, 1.0 - min(self._ema, step / (step + 9.0))
            )

    def finish(self) -> None:
        """Put the averaged weights into the network."""
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._average)  # pyright: ignore[reportPrivateImportUsage]

    def _rate(self, step: int) -> float:
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self._steps))
        return self._lr * min(1.0, step / self._warm_up) * cosine

    def _clip(self) -> None:
        """Shorten a gradient far above the usual size; relative, so that the scale of the loss does not matter."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        usual = norm if self._norm is None else self._norm
        cut = torch.clamp(_CLIP * usual / torch.clamp(norm, min=1e-30), max=1.0)
        torch._foreach_mul_(gradients, cut)  # pyright: ignore[reportPrivateImportUsage]
        self._norm = usual.lerp(norm * cut, 0.02)
