"""What a network says of itself, ``predicts``, ``noise`` and ``window``, held against what it is asked for."""

from __future__ import annotations

import warnings
from typing import Any

from thermodiff._check import choice
from thermodiff.learned.checkpoint import known_window
from thermodiff.learned.predict import PREDICTS
from thermodiff.schedules import Schedule

BEYOND = 0.05
"""Of lam, beyond the window of the training, that is let pass: rounding, and the first moment of a schedule."""


def require_schedule(net: Any, noise: Schedule, name: str = "net") -> None:
    """Refuse a network that says it belongs to another schedule; whatever else a module calls noise is its own.

    ``name`` is that of the argument, for the message.
    """
    own = getattr(net, "noise", None)
    if isinstance(own, Schedule) and own.to_dict() != noise.to_dict():
        raise ValueError(
            f"{_told(name)} belongs to {own!r}, the diffusion is that of {noise!r}; give noise={name}.noise, or a network "
            "that was trained for this schedule."
        )


def reading_of(predicts: str | None, **nets: Any) -> str:
    """What the networks predict: as stated, or as the first of them says that knows, or "entropy".

    Raises
    ------
    ValueError
        Two of them say different things, or it is none of `PREDICTS`.
    """
    said = {name: getattr(net, "predicts", None) for name, net in nets.items()}
    said = {name: value for name, value in said.items() if isinstance(value, str)}  # what else is called so is its own
    if len(set(said.values())) > 1:
        each = ", ".join(f"{name} predicts {value!r}" for name, value in said.items())
        raise ValueError(f"{each}: their outputs cannot be read alike; train both with the same predicts=.")
    return choice("predicts", predicts or next(iter(said.values()), "entropy"), PREDICTS)


def warn_beyond_training(net: Any, window: tuple[float, float], name: str = "net", stacklevel: int = 3) -> bool:
    """Whether ``window`` goes beyond that of the training, if the network knows it; there is a warning then."""
    learned = known_window(net)
    if learned is None or (window[0] > learned[0] - BEYOND and window[1] < learned[1] + BEYOND):
        return False
    warnings.warn(
        f"the window is lam = {window[0]:.4g} ... {window[1]:.4g}, and {_told(name)} was trained on {learned[0]:.4g} ... "
        f"{learned[1]:.4g}: beyond that its output was never fitted; pass lam=({learned[0]:.4g}, {learned[1]:.4g}), or "
        "train on the whole window.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
    return True


def _told(name: str) -> str:
    """An argument in messages; most functions take one network only."""
    return "the network" if name == "net" else name
