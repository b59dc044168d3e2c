"""What walls ask of a run; the dynamics between them are in test_walls."""

import warnings

import numpy as np
import pytest
from user_dynamics import closure

import thermodiff as td
from thermodiff.integrate.boundaries import require_inside, warn_of_oblique_mirrors

TILTED = [[1.0, 0.5], [0.5, 1.0]]


def walled(kind: str, diffusivity=0.5) -> td.Langevin:
    return td.Langevin(closure(0.5), (), diffusivity, dim=2, boundaries={1: (kind, 0.0, 1.0)})


def test_starts_behind_mirrors_are_counted() -> None:
    x0 = np.array([[5.0, 0.0], [0.0, 1.0], [0.0, 1.5], [0.0, -0.1]])
    with pytest.raises(ValueError, match="2 of 4 paths start outside the reflecting walls of coordinate 1, 0 and 1"):
        require_inside(walled("reflecting"), x0)
    require_inside(walled("reflecting"), x0[:2])
    require_inside(walled("periodic"), x0)


@pytest.mark.parametrize(
    "run",
    [
        lambda process, x0: td.simulate(process, x0, 0.1, 0.1, rng=0),
        lambda process, x0: td.first_passage(process, x0, t_max=0.1, dt=0.1, high=9.0, rng=0),
    ],
)
def test_mirrors_across_correlated_noise_are_warned_of(run) -> None:
    with pytest.warns(RuntimeWarning, match="the reflecting coordinate 1 shares its noise with others") as found:
        run(walled("reflecting", TILTED), np.full((3, 2), 0.5))
    assert found[0].filename == __file__


def test_no_warning_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for process in (walled("periodic", TILTED), walled("reflecting", [1.0, 0.5]), walled("reflecting", np.eye(2))):
            warn_of_oblique_mirrors(process, process.mix(np.zeros(1))[0], stacklevel=1)
