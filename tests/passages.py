"""Dynamics and surfaces of first passages, and how far a mean is off in its errors."""

import numpy as np

import thermodiff as td


@td.drift
def free(x, t):
    return (0.0, 0.0)


@td.drift
def steady(x, t, v):
    return (v,)


@td.drift
def oscillator(x, t):
    return (x[1], -x[0])


@td.stop_condition
def first(x, t, level):
    return x[0] - level


@td.stop_condition
def receding(x, t, level, speed):
    return level + speed * t - x[0]


def deviation(values: np.ndarray, mean: float) -> float:
    return abs(values.mean() - mean) / (values.std() / np.sqrt(values.size))
