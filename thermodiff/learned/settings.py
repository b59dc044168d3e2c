"""What a training is called with, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from thermodiff._check import above, choice, count, finite_number
from thermodiff.learned.batches import LamProposal, Source, lam_rows, time_rows
from thermodiff.learned.caller import PRECISIONS
from thermodiff.learned.parallel import local_rank
from thermodiff.learned.predict import PREDICTS, check_window
from thermodiff.learned.pretrained import Pretrained
from thermodiff.schedules import FloatArray, Row, Schedule

MOST_STEPS = (1 << 32) - 1
"""As many as the state of a training counts."""

Rows = Callable[[FloatArray], tuple[Row, FloatArray]]
"""From uniforms to the kernel there and the weights."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `train` that decide its course; ``lr`` and ``predicts`` as filled in from the network."""

    steps: int
    batch: int
    lr: float
    ema: float
    lam: tuple[float, float] | None
    likelihood: bool
    times: str
    predicts: str
    precision: str
    decay: bool

    def __post_init__(self) -> None:
        count("steps", self.steps, most=MOST_STEPS)
        count("batch", self.batch)
        above("lr", self.lr, 0.0, "nothing would be learned")
        if not 0.0 <= finite_number("ema", self.ema) < 1.0:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema!r}.")
        choice("times", self.times, ("lam", "uniform"))
        choice("predicts", self.predicts, PREDICTS)
        choice("precision", self.precision, PRECISIONS)
        if self.times == "uniform" and self.lam is not None:
            raise ValueError("lam was given with times='uniform', which covers all t; drop lam or use times='lam'.")

    def rows(self, source: Source, noise: Schedule) -> Rows:
        """The function from uniforms to kernel and weights."""
        if self.times == "uniform":
            return partial(time_rows, noise, self.likelihood)
        if self.lam is None and noise.diverges:
            raise ValueError(f"{noise.name} grows without bound towards the data; state the window, as in lam=(-8, 8).")
        low, high = self.window(noise)
        return partial(lam_rows, noise, LamProposal(noise, low, high, source.variances()), self.likelihood)

    def window(self, noise: Schedule) -> tuple[float, float]:
        """The log-SNR that is learned; all of it where times are uniform, which leave out 1e-5 at either end."""
        if self.times == "uniform":
            return noise.window()
        return check_window(self.predicts, noise, noise.window(lam=self.lam))

    def record(self, net: nn.Module, source: Source, noise: Schedule) -> dict[str, Any]:
        """All that decides the course of the training but the key of its draws, as JSON values."""
        own = asdict(self)
        if not self.decay:
            own["steps"] = None  # The first steps of a longer training are the same.
        return {
            **own,
            "noise": noise.to_dict(),
            "types": sorted({str(weight.dtype).removeprefix("torch.") for weight in net.parameters()}),
            "network": type(net).__name__,
            "arguments": getattr(net, "arguments", None),
            "data": source.fingerprint(),
        }


def check_fit(net: nn.Module, source: Source) -> None:
    """Whether the network takes such data.

    Raises
    ------
    ValueError
        It does not.
    """
    dim, channels, classes = (getattr(net, name, None) for name in ("dim", "channels", "classes"))
    if dim is not None and source.shape != (dim,):
        raise ValueError(f"the network has dim={dim}, one sample of the data has shape {source.shape}; build it to fit.")
    if channels is not None and (len(source.shape) != 3 or source.shape[0] != channels):
        raise ValueError(
            f"the network takes images of {channels} channels, one sample of the data has shape {source.shape}; build it "
            "to fit."
        )
    if classes is not None and isinstance(net, Pretrained):
        raise ValueError(
            f'the model of diffusers knows the labels 0 ... {classes - 1} and none for "not stated", which train shows in '
            "place of one label in ten; to train it on images of one class, say which: adapt(net, labels='y', label=0)."
        )
    if classes is not None and source.classes is None:
        raise ValueError(f"the network knows {classes} classes, the data has no labels; give Images with labels.")
    if classes is not None and source.classes is not None and source.classes > classes:
        raise ValueError(f"the network knows {classes} classes, the data has {source.classes}; build it to fit.")


def check_type(net: nn.Module, precision: str = "float32") -> None:
    """Whether the weights that learn are float32 or float64, and float32 where multiplications are to be in bf16.

    Raises
    ------
    ValueError
        They are not: small updates of weights in less round to nothing, and those in more are not multiplied in bf16.
    """
    for name, weight in net.named_parameters():
        if weight.requires_grad and weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the weight {name} has type {str(weight.dtype).removeprefix('torch.')}, train keeps weights in float32 or "
                "float64; call net.float(), and for faster multiplications pass precision='bf16'."
            )
        if precision == "bf16" and weight.dtype == torch.float64:
            raise ValueError(
                f"precision='bf16' is for networks in float32, the weight {name} is in float64; call net.float(), or leave "
                "precision out."
            )


def choose_device(net: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where to train: ``device``, on each machine the GPU of this process; or where the network is."""
    if device is None:
        return next(net.parameters()).device
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} cannot be used ({reason}); choose 'cpu' or 'cuda'.") from None
    return torch.device("cuda", local_rank()) if chosen.type == "cuda" and chosen.index is None else chosen
