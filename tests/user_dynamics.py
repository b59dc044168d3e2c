"""Drifts that worker processes import by name."""

import math
import os

import thermodiff as td


@td.drift
def double_well(x, t, height):
    return (4.0 * height * (x[0] - x[0] ** 3),)


@td.drift
def swirl(x, t, kappa, omega):
    return -kappa * x[0] + omega * x[1] + math.sin(t), -kappa * x[1] - omega * x[0]


@td.potential
def dragged(x, t, stiffness, speed):
    return 0.5 * stiffness * (x[0] - speed * t) ** 2


@td.diffusivity
def warm(x, t, level):
    return level * (1.0 + 0.5 * math.sin(x[0])), level


def closure(shift: float):
    """A drift that no module holds."""

    @td.drift
    def moved(x, t):
        return -x[0] + shift, math.tanh(x[1])

    return moved


def lengthening(t: float) -> float:
    return 0.5 + t


def process_id(k: int) -> int:
    return os.getpid()
