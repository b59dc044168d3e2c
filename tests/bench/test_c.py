"""The C program is the same algorithm: its states are those of thermodiff."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from thermodiff.bench import ours
from thermodiff.bench.problems import DoubleWell
from thermodiff.bench.rivals import Absent, c

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize(("paths", "steps", "seed"), [(1, 1, 0), (256, 4, 1), (700, 37, 2), (2000, 203, 3)])
def test_the_same_states(paths: int, steps: int, seed: int) -> None:
    problem = DoubleWell(paths, steps, dt=0.01, a=1.2, b=0.7, diffusivity=0.6, start=-0.4, seed=seed)
    np.testing.assert_allclose(c.double_well(problem)(), ours.double_well(problem, threads=1)()[:, 0], rtol=0.0, atol=1e-10)


@needs_compiler
def test_another_key_gives_other_states() -> None:
    one, two = (c.double_well(DoubleWell(300, 5, seed=seed))() for seed in (0, 1))
    assert not np.any(one == two)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c.shutil, "which", lambda name: None)
    c.program.cache_clear()
    with pytest.raises(Absent, match="no C compiler"):
        c.program()


@pytest.mark.skipif(shutil.which("false") is None, reason="no program that fails")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = shutil.which("false")
    monkeypatch.setattr(c.shutil, "which", lambda name: fails)
    c.program.cache_clear()
    with pytest.raises(Absent, match="compiler failed"):
        c.program()


@needs_compiler
def test_loading_it_leaves_subnormal_numbers_alone() -> None:
    """The start-up code that gcc links with -ffast-math would flush them to zero from here on."""
    c.program.cache_clear()
    c.program()
    assert np.array([2.0**-1070])[0] * np.array([0.5])[0] == 2.0**-1071
