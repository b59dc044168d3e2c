"""Other people's networks, called as thermodiff calls its own: ``net(x, t)``, or ``net(x, t, y)`` with labels.

==========  ==================================================================================
time        what the module gets for a time t between 0 (data) and 1 (noise)
==========  ==================================================================================
"t"         t
"steps"     the integer round(t steps) - 1, for modules that know steps 0 ... steps - 1: t from 1 / steps to 1
"lam"       the log-SNR of ``noise`` at t
"sigma"     sigma / alpha of ``noise`` at t
==========  ==================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from thermodiff._check import choice, count
from thermodiff.learned.checkpoint import known_window
from thermodiff.learned.devices import placed
from thermodiff.learned.networks import schedule_row
from thermodiff.learned.predict import PREDICTS
from thermodiff.schedules import LAM_NOISE, Schedule

TIMES = ("t", "steps", "lam", "sigma")
"""What a module may take for its time."""

_SLACK = 1e-6  # of a step: times that were single precision once

Clock = Callable[[torch.Tensor], torch.Tensor]
"""Times (n,), float64 -> what the module is given for them, (n,)."""


class Adapted(nn.Module):
    """A module behind the call ``net(x, t, y=None)``; made by `adapt`.

    What the module says of itself by ``predicts``, ``noise`` and ``window``, as after `train`, is said of it too.

    Parameters
    ----------
    module : Module
        The module.
    clock : callable
        Turns times (n,) in float64 into what the module takes; floats are given in the type of x, unless the module has
        ``double_time = True``.
    labels : str or None
        Name of the keyword by which the module takes labels; None if it takes none.
    label : int or None
        The label where the caller gives none.
    output : callable or None
        Turns what the module returns into a tensor of the shape of x.
    classes : int or None
        Number of classes that `train` teaches it; the label ``classes`` then says "not stated".
    call : callable or None
        How the module is called, if not as ``module(x, time)``.

    Attributes
    ----------
    window : (float, float) or None
        Log-SNR at which the module can be asked, where its clock covers a part only and that is known; or else that in
        which it was trained, if it knows.
    """

    double_time = True
    classes: int | None
    window: tuple[float, float] | None

    def __init__(
        self,
        module: nn.Module,
        clock: Clock,
        labels: str | None = None,
        label: int | None = None,
        output: Callable[[Any], torch.Tensor] | None = None,
        classes: int | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.module, self._clock, self._labels, self._label, self._output = module, clock, labels, label, output
        self._call = call
        # Only its clock looks at the times, unless the module does so itself.
        self.host_time = bool(getattr(module if clock is _same else clock, "host_time", False))
        self.classes, self.window = classes, getattr(clock, "window", None) or known_window(module)
        # Only what has this meaning: whatever else a module calls so is its own.
        predicts, noise = getattr(module, "predicts", None), getattr(module, "noise", None)
        if isinstance(predicts, str) and predicts in PREDICTS:
            self.predicts = predicts
        if isinstance(noise, Schedule):
            self.noise = noise

    @property
    def arguments(self) -> dict[str, Any]:
        """The module behind, for records."""
        name = {"module": type(self.module).__name__}
        return name if self.classes is None else {**name, "classes": self.classes}

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off, as every module does; where labels would be left out of it, there is a warning."""
        if mode and self._label is not None and self.classes is None:
            warnings.warn(
                f"adapt was given label={self._label} without classes=, so train takes every sample for one of class "
                f"{self._label}; to train with the labels of Images, give their number, classes=.",
                stacklevel=3,
            )
        return super().train(mode)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """What the module gives at ``x`` (n, ...), times ``t`` (n,) and labels ``y`` (n,); shape of ``x``."""
        clock = self._clock(t.to(torch.float64))
        if clock.is_floating_point() and not getattr(self.module, "double_time", False):
            clock = clock.to(x.dtype)
        if not getattr(self.module, "host_time", False):
            clock = placed(clock, x.device)
        if y is None and self._label is not None:
            y = torch.full((x.shape[0],), self._label, device=x.device)
        if y is not None and self._labels is None:
            raise ValueError("this module was adapted without labels; name their keyword: adapt(module, labels='y').")
        out = self._ask(x, clock, y)
        out = self._picked(out)
        if not isinstance(out, torch.Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"the adapted {type(self.module).__name__} must give a tensor of the shape of x, {tuple(x.shape)}, got "
                f"{got}; say where it is with output=, as in output=lambda out: out.sample."
            )
        return out

    def _ask(self, x: torch.Tensor, clock: torch.Tensor, y: torch.Tensor | None) -> Any:
        """What the module returns; where it fails for its labels, the error says which labels are needed."""
        name = type(self.module).__name__
        module = self.module if self._call is None else partial(self._call, self.module)
        if y is None:
            try:
                return module(x, clock)
            except TypeError as error:
                if self._labels is None and (self._call is not None or "argument" not in str(error)):
                    raise
                if self._labels is None:
                    raise TypeError(
                        f"the adapted {name} failed: {error}; if it is not called as module(x, time), say how: "
                        "adapt(module, call=lambda module, x, time: module(time, x))."
                    ) from error
                raise TypeError(
                    f"the adapted {name}, called without {self._labels}, failed: {error}; if it needs a label, give adapt "
                    "classes=, to train with the labels of Images, or label=, the class meant where none is stated."
                ) from error
        try:
            return module(x, clock, **{str(self._labels): y})
        except IndexError as error:
            raise ValueError(
                f"the adapted {name}, called with labels {int(y.min())} ... {int(y.max())}, failed: {error}; it must take "
                f"the labels {self._known}."
            ) from error
        except TypeError as error:
            raise TypeError(
                f"the adapted {name}, called with labels as {self._labels}=, failed: {error}; labels= must be the keyword "
                "by which it takes them."
            ) from error

    @property
    def _known(self) -> str:
        """The labels that the module takes."""
        return "that it knows" if self.classes is None else f'0 ... {self.classes}, the last for "not stated"'

    def _picked(self, out: Any) -> Any:
        """What ``output`` makes of what the module returns."""
        if self._output is None:
            return out
        try:
            return self._output(out)
        except (LookupError, AttributeError, TypeError) as error:
            raise ValueError(
                f"output= failed on the {type(out).__name__} that {type(self.module).__name__} returns: "
                f"{type(error).__name__}: {error}; let it pick the tensor, as in output=lambda out: out.sample."
            ) from error


def adapt(
    module: nn.Module,
    *,
    time: str = "t",
    steps: int = 1000,
    noise: Schedule | None = None,
    labels: str | None = None,
    label: int | None = None,
    classes: int | None = None,
    output: Callable[[Any], torch.Tensor] | None = None,
    call: Callable[..., Any] | None = None,
) -> Adapted:
    """Wrap any module for `train`, `LearnedDiffusion` and the rest.

    Parameters
    ----------
    module : Module
        Called as ``module(x, time)``, or ``module(x, time, <labels>=y)``.
    time : {"t", "steps", "lam", "sigma"}
        What it takes for the time, see the table of `thermodiff.learned.adapters`.
    steps : int
        For "steps": how many there are.  Step k stands for t = (k + 1) / steps; earlier times than those are refused.
    noise : Schedule, optional
        For "lam" and "sigma": the schedule.  For "steps" it gives the log-SNR that the steps cover, as ``window``.
    labels : str, optional
        Name of the keyword for class labels, if the module takes them.
    label : int, optional
        The class that is meant where the caller names none; default ``classes``, if that is given.
    classes : int, optional
        Number of classes, to train with the labels of `Images`, 0 ... classes - 1.  The module must take one label more,
        ``classes``, for "not stated": `train` shows it that in place of one label in ten.
    output : callable, optional
        Picks the tensor out of what the module returns, as in ``lambda out: out.sample``.
    call : callable, optional
        How the module is called, where that is not ``module(x, time)``: as in ``lambda module, x, time: module(time, x)``,
        or ``lambda module, x, time: module(sample=x, timestep=time)``.  Labels come by the keyword that
        ``labels`` names.

    Returns
    -------
    Adapted
        A module called as ``net(x, t)`` or ``net(x, t, y)``.  It has the ``predicts``, ``noise`` and ``window`` of
        ``module``, if that has them, as after `train`; but the schedule and the window of the steps that ``noise`` says.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"adapt: module must be a torch module, got {type(module).__name__}.")
    steps = count("steps", steps)
    if labels is None and (label is not None or classes is not None):
        given = f"label={label!r}" if label is not None else f"classes={classes!r}"
        raise ValueError(f"adapt: {given} needs labels=, the keyword by which the module takes them.")
    classes = None if classes is None else count("classes", classes)
    label = classes if label is None else count("label", label, 0, classes)
    if noise is not None and not isinstance(noise, Schedule):
        raise TypeError(f"adapt: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
    if choice("time", time, TIMES) in ("lam", "sigma") and noise is None:
        raise ValueError(f"adapt: time={time!r} needs noise=, the schedule, as in noise=VP().")
    if call is not None and not callable(call):
        raise TypeError(f"adapt: call must be a function, as in lambda module, x, time: ..., got {type(call).__name__}.")
    net = Adapted(module, _clock(time, steps, noise), labels, label, output, classes, call)
    if noise is not None and (time != "t" or hasattr(net, "noise")):  # what its clock rests on, no account may change
        net.noise = noise
    return net


def _clock(time: str, steps: int, noise: Schedule | None) -> Clock:
    if time == "t":
        return _same
    if time == "steps":
        return _Steps(steps, noise)
    assert noise is not None
    return _Kernel(noise, time)


def _same(t: torch.Tensor) -> torch.Tensor:
    return t


class _Steps:
    """Times to the nearest of ``steps`` integers; step k stands for t = (k + 1) / steps, other times than those not."""

    host_time = True

    def __init__(self, steps: int, noise: Schedule | None) -> None:
        self.steps = steps
        self.window: tuple[float, float] | None = None
        if noise is not None:
            low, high = (float(edge) for edge in noise.lam(np.array([1.0, 1.0 / steps])))
            low = low if np.isfinite(low) else LAM_NOISE  # where no signal is left at t = 1
            self.window = (low, high) if low < high else None

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        place = t * self.steps
        if not torch.compiler.is_compiling():  # which cannot look at numbers; an account does not compile
            self._check(place)
        return torch.clamp(torch.round(place) - 1.0, 0.0, self.steps - 1.0).to(torch.int64)

    def _check(self, place: torch.Tensor) -> None:
        """Refuse times at which the module could only be asked for those of its first step."""
        first, last = float(place.min()), float(place.max())
        if not (first >= 1.0 - _SLACK and last <= self.steps * (1.0 + _SLACK)):
            known, more = "", ", which adapt(noise=) gives as window"
            if self.window is not None:
                known, more = f", log-SNR {self.window[0]:.4f} ... {self.window[1]:.4f}", ""
            raise ValueError(
                f"the module knows the steps 0 ... {self.steps - 1}, which cover t = {1.0 / self.steps:g} ... 1{known}; it "
                f"was asked at t = {first / self.steps:g} ... {last / self.steps:g}. State a window inside, "
                f"lam=(low, high){more}."
            )


class _Kernel:
    """Times to the log-SNR, or to sigma / alpha."""

    host_time = True

    def __init__(self, noise: Schedule, kind: str) -> None:
        self.noise, self.kind = noise, kind

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        row = schedule_row(self.noise, t)
        return torch.as_tensor(row.lam if self.kind == "lam" else row.sigma / row.alpha, device=t.device)
