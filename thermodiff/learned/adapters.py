"""Other people's networks, called as thermodiff calls its own: ``net(x, t)``, or ``net(x, t, y)`` with labels.

==========  ==================================================================================
time        what the module gets for a time t between 0 (data) and 1 (noise)
==========  ==================================================================================
"t"         t
"steps"     the integer round(t steps) - 1, at least 0: for modules that know steps 0 ... steps - 1
"lam"       the log-SNR of ``noise`` at t
"sigma"     sigma / alpha of ``noise`` at t
==========  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from thermodiff._check import choice, count
from thermodiff.learned.networks import schedule_row
from thermodiff.schedules import Schedule

TIMES = ("t", "steps", "lam", "sigma")
"""What a module may take for its time."""

Clock = Callable[[torch.Tensor], torch.Tensor]
"""Times (n,), float64 -> what the module is given for them, (n,)."""


class Adapted(nn.Module):
    """A module behind the call ``net(x, t, y=None)``; made by `adapt`.

    Parameters
    ----------
    module : Module
        The module.
    clock : callable
        Turns times (n,) in float64 into what the module takes; floats are given in the type of x.
    labels : str or None
        Name of the keyword by which the module takes labels; None if it takes none.
    label : int or None
        The label where the caller gives none.
    output : callable or None
        Turns what the module returns into a tensor of the shape of x.
    """

    double_time = True

    def __init__(
        self,
        module: nn.Module,
        clock: Clock,
        labels: str | None = None,
        label: int | None = None,
        output: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.module, self._clock, self._labels, self._label, self._output = module, clock, labels, label, output

    @property
    def arguments(self) -> dict[str, Any]:
        """The module behind, for records."""
        return {"module": type(self.module).__name__}

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """What the module gives at ``x`` (n, ...), times ``t`` (n,) and labels ``y`` (n,); shape of ``x``."""
        clock = self._clock(t.to(torch.float64))
        clock = clock.to(x.dtype) if clock.is_floating_point() else clock
        if y is None and self._label is not None:
            y = torch.full((x.shape[0],), self._label, device=x.device)
        if y is not None and self._labels is None:
            raise ValueError("this module was adapted without labels; name their keyword: adapt(module, labels='y').")
        out = self.module(x, clock) if y is None else self.module(x, clock, **{str(self._labels): y})
        out = out if self._output is None else self._output(out)
        if not isinstance(out, torch.Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"the adapted {type(self.module).__name__} must give a tensor of the shape of x, {tuple(x.shape)}, got "
                f"{got}; say where it is with output=, as in output=lambda out: out.sample."
            )
        return out


def adapt(
    module: nn.Module,
    *,
    time: str = "t",
    steps: int = 1000,
    noise: Schedule | None = None,
    labels: str | None = None,
    label: int | None = None,
    output: Callable[[Any], torch.Tensor] | None = None,
) -> Adapted:
    """Wrap any module for `train`, `LearnedDiffusion` and the rest.

    Parameters
    ----------
    module : Module
        Called as ``module(x, time)``, or ``module(x, time, <labels>=y)``.
    time : {"t", "steps", "lam", "sigma"}
        What it takes for the time, see the table of `thermodiff.learned.adapters`.
    steps : int
        For "steps": how many there are.
    noise : Schedule, optional
        For "lam" and "sigma": the schedule.
    labels : str, optional
        Name of the keyword for class labels, if the module takes them.
    label : int, optional
        The class that is meant where the caller names none.
    output : callable, optional
        Picks the tensor out of what the module returns, as in ``lambda out: out.sample``.

    Returns
    -------
    Adapted
        A module called as ``net(x, t)`` or ``net(x, t, y)``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"adapt: module must be a torch module, got {type(module).__name__}.")
    steps = count("steps", steps)
    if label is not None and labels is None:
        raise ValueError(f"adapt: label={label!r} needs labels=, the keyword by which the module takes it.")
    if choice("time", time, TIMES) in ("lam", "sigma") and not isinstance(noise, Schedule):
        raise ValueError(f"adapt: time={time!r} needs noise=, the schedule, as in noise=VP().")
    if time == "t":
        clock: Clock = _same
    elif time == "steps":
        clock = _Steps(steps)
    else:
        assert noise is not None
        clock = _Kernel(noise, time)
    return Adapted(module, clock, labels, None if label is None else count("label", label, 0), output)


def _same(t: torch.Tensor) -> torch.Tensor:
    return t


class _Steps:
    """Times to the nearest of ``steps`` integers; step k stands for t = (k + 1) / steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        return torch.clamp(torch.round(t * self.steps) - 1.0, 0.0, self.steps - 1.0).to(torch.int64)


class _Kernel:
    """Times to the log-SNR, or to sigma / alpha."""

    def __init__(self, noise: Schedule, kind: str) -> None:
        self.noise, self.kind = noise, kind

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        row = schedule_row(self.noise, t)
        return torch.as_tensor(row.lam if self.kind == "lam" else row.sigma / row.alpha, device=t.device)
