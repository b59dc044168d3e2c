"""Fit a network to a diffusion: the loop over denoising batches, and what it is called with."""

from __future__ import annotations

from contextlib import ExitStack
from os import PathLike
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import count, seed_words
from thermodiff.learned.batches import Batch, Source, Stream
from thermodiff.learned.caller import Caller
from thermodiff.learned.checkpoint import check_path, keep_meaning, save_weights
from thermodiff.learned.gradients import Gradients
from thermodiff.learned.interrupts import kept
from thermodiff.learned.losses import denoising_loss
from thermodiff.learned.optimiser import Optimiser
from thermodiff.learned.parallel import processes
from thermodiff.learned.report import Metrics, Report
from thermodiff.learned.resume import State, stored_key
from thermodiff.learned.settings import Settings, check_fit, check_type, choose_device
from thermodiff.schedules import Schedule


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
    decay: bool = True,
    ema: float = 0.998,
    rng: Any = None,
    lam: tuple[float, float] | None = None,
    likelihood: bool = True,
    times: str = "lam",
    predicts: str | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    compile: bool = False,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    every: int | None = None,
    metrics: Metrics | None = None,
) -> N:
    """Train ``net`` in place on a diffusion of ``data`` by ``noise``.

    Parameters
    ----------
    net : Module
        ``net(x, t)`` with x of shape (n, ...) in data units and t of shape (n,), both in the type of its weights, float32 or
        float64; t is float64 where it has ``double_time = True``, and on the CPU where it has ``host_time = True``.  If it
        has a method ``precondition(mean, cov, noise)``, that is called first.  If it has ``classes``, it is called as
        ``net(x, t, y)`` with labels y (n,), of which one in ten is ``classes``, "not stated".
    data : density, Samples, Images, or array
        Has ``sample(n, rng=)``, ``mean()``, ``covariance()``; or is `Images`; or points (n, d); or images (n, channels,
        height, width); or a torch dataset of points or images, whose labels are left out.
    noise : Schedule
        The schedule.
    steps, batch : int
        Number of updates, and samples for each, over all processes.
    lr : float, optional
        Highest learning rate; rises over the first 100 steps.  Default: the ``learning_rate`` of the network, or 2e-4.
    decay : bool
        Whether the rate falls to zero as a cosine; otherwise it stays, and the same call with more ``steps`` goes on
        from a training that was saved with ``every``.
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
        What the network predicts; default its own ``predicts``, or "entropy".  It is kept as ``net.predicts``, the
        schedule as ``net.noise``, and the window as ``net.window``.
    device : str or torch.device, optional
        Where to train; the network is moved there.  Default: where it is.
    precision : {"float32", "bf16"}
        Type of the multiplications of a float32 network; weights, loss and averages keep their type.
    compile : bool
        Whether torch.compile makes the network faster, at the price of a minute at the start.
    progress : bool
        Whether a bar may be shown.
    checkpoint : path, optional
        Where to save the trained weights, see `save_weights`.
    every : int, optional
        Also save the state of the training there, every so many steps and at the end, as ``<path>.state.safetensors``.
        The same call then goes on where the last one ended, and ends with the same weights, to the bit, as one that
        was never stopped.  Ctrl-C stops it after the step at hand, which is saved.
    metrics : callable or path, optional
        ``metrics(step, loss)`` is called for every step, in order; or a file gets a line of JSON for every 50 steps.

    Returns
    -------
    Module
        ``net`` with averaged weights, in evaluation mode.

    Raises
    ------
    DivergenceError
        The loss became nan or infinite.
    ValueError
        An argument, the data, or a checkpoint does not fit.

    Notes
    -----
    The same ``rng``, device, number of threads and starting weights give the same weights.  Several processes, started
    by ``torchrun``, share each batch and give the same weights up to rounding.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"train: net must be a torch module, got {type(net).__name__}.")
    if next(net.parameters(), None) is None:
        raise ValueError(f"train: {type(net).__name__} has no weights; give a network that has something to learn.")
    if metrics is not None and not callable(metrics) and not isinstance(metrics, str | PathLike):
        raise TypeError(f"train: metrics must be a function of step and loss, or a file, got {type(metrics).__name__}.")
    if not isinstance(noise, Schedule):
        raise TypeError(f"train: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
    if every is not None and checkpoint is None:
        raise ValueError("every= says how often to save the state of the training; say where with checkpoint=.")
    every = None if every is None else count("every", every)
    rate: float = getattr(net, "learning_rate", 2e-4) if lr is None else lr
    kind: str = predicts or getattr(net, "predicts", "entropy")
    settings = Settings(steps, batch, rate, ema, lam, likelihood, times, kind, precision, decay)
    if isinstance(net, _Preconditioned) and predicts is not None and predicts != getattr(net, "predicts", predicts):
        raise ValueError(
            f"train: {type(net).__name__} starts from the Gaussian answer for predicts={net.predicts!r}, whatever network "
            f"it holds, got predicts={predicts!r}; leave it out, or train a network without moments."
        )
    source = Source(data)
    check_fit(net, source)
    check_type(net, precision)
    rows = settings.rows(source, noise)
    place = choose_device(net, device)
    if checkpoint is not None:
        check_path(checkpoint)
    with processes(place) as group, ExitStack() as held:
        if batch % group.count:
            raise ValueError(f"batch={batch} cannot be shared evenly by {group.count} processes; choose a multiple.")
        words = group.agree(_key(rng, checkpoint if every is not None else None), place)
        net.to(place)
        if len(source.shape) == 3 and (place.type == "cuda" or precision == "bf16"):
            # Faster there; on a CPU in float32 it is a fifth slower.
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if isinstance(net, _Preconditioned):
            net.precondition(*source.moments(), noise)
        stream = Stream(
            source, rows, batch, times == "lam", words, place,
            rank=group.rank, ranks=group.count, unlabelled=getattr(net, "classes", None),
        )  # fmt: skip
        caller = Caller(net.train(), group, place, precision, compile, words)
        optimiser = Optimiser(net, rate, ema, steps, decay)  # after the weights of all processes have been made equal
        gradients = Gradients(optimiser, group)
        state, done, losses = None, 0, []
        if every is not None and checkpoint is not None:
            call = {**settings.record(net, source, noise), "key": words.tolist(), "compile": bool(compile)}
            state = State(checkpoint, call, every)
            held.enter_context(group.held_by_first(state.alone(), place))
            done, losses = state.load(net, optimiser)
            if done > steps:
                raise ValueError(
                    f"{state.file} has made {done} steps, more than steps={steps}; ask for more, or save elsewhere."
                )
        report = Report(steps, done, optimiser.rate, place, group, progress, metrics, losses)
        # Of several processes each would stop at another step.
        interrupts = kept(state is not None and group.count == 1)
        with report, caller.own_randomness(), interrupts as interrupted:
            for step in range(done + 1, steps + 1):

                def loss(part: Batch, step: int = step) -> torch.Tensor:
                    x0, z, row, weights, labels = part
                    value = denoising_loss(caller.at(step, labels), x0, z, row, noise, kind, weights)
                    return _require_gradient(value, net)

                value = gradients(loss, stream(step - 1))
                optimiser.step(step)
                report.add(step, value)
                stop = interrupted()
                if state is not None and (step % state.every == 0 or step == steps or stop):
                    report.flush()  # where a loss is not finite nothing is saved
                    if group.first:
                        state.save(net, optimiser, step, report.losses)
                    if stop:
                        raise KeyboardInterrupt(f"stopped after step {step} of {steps}, saved in {state.file}.")
        optimiser.finish()
        keep_meaning(net, kind, noise, settings.window(noise))
        if checkpoint is not None and group.first:
            save_weights(net, checkpoint, noise=noise, predicts=kind)
        group.wait()
    return net.eval()


def _require_gradient(loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
    if not loss.requires_grad:
        raise ValueError(
            f"train: the output of {type(net).__name__} does not depend on any weight that learns; use the weights in "
            "forward, without no_grad or detach, and leave requires_grad on."
        )
    return loss


def _key(rng: Any, state: str | PathLike[str] | None) -> npt.NDArray[np.uint32]:
    """The key of all draws; without ``rng`` that of the training which goes on, if one does."""
    stored = stored_key(state) if rng is None and state is not None else None
    return seed_words(rng) if stored is None else np.array(stored, dtype=np.uint32)
