"""Systems whose thermodynamics is known in closed form, each with its exact value and a way to measure it.

    for case in td.cases.CASES:
        print(case.name, case.exact, case.measure(rng=0))

`names` lists them, `get` finds one; ``case.data(n, rng)`` hands out samples or trajectories for an estimator of your own,
and ``case.exact`` is what it should find.  The command ``thermodiff validate`` measures them all.
"""

from thermodiff.cases.base import Case as Case
from thermodiff.cases.base import DiffusionCase as DiffusionCase
from thermodiff.cases.base import LangevinCase as LangevinCase
from thermodiff.cases.base import LikelihoodCase as LikelihoodCase
from thermodiff.cases.base import Trajectories as Trajectories
from thermodiff.cases.diffusions import DIFFUSIONS
from thermodiff.cases.langevin import LANGEVINS

CASES: tuple[Case, ...] = (*DIFFUSIONS, *LANGEVINS)
"""All cases, in the order in which they are shown."""


def names() -> tuple[str, ...]:
    """Names of all cases."""
    return tuple(case.name for case in CASES)


def get(name: str) -> Case:
    """The case of this name.

    Raises
    ------
    KeyError
        If there is none, with the names there are.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise KeyError(f"there is no case {name!r}; choose among {', '.join(names())}.")
