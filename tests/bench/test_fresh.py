"""Processes of their own."""

from __future__ import annotations

import shutil
import sys

import pytest

from thermodiff.bench import fresh, timing
from thermodiff.bench.rivals import Absent


def test_the_whole_process_or_what_it_prints() -> None:
    assert 0.2 < fresh.Fresh("import time; time.sleep(0.2)")() < 20.0
    assert fresh.Fresh("print('x'); print(0.25)", inside=True)() == 0.25
    assert timing.seconds_of(fresh.Fresh("print(0.5)", inside=True)) == (0.5, None)


def test_a_process_finds_thermodiff() -> None:
    assert fresh.Fresh("import thermodiff; print(1.0)", inside=True)() == 1.0


def test_a_process_that_fails() -> None:
    with pytest.raises(RuntimeError, match="ValueError: no"):
        fresh.Fresh("raise ValueError('no')")()


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(Absent, match="nonsense is not installed"):
        fresh.fresh("import nonsense", "nonsense")(None)


@pytest.mark.parametrize("code", [fresh.NEW_DRIFT, fresh.NEW_PARAMETERS, fresh.NUMBA, fresh.JAX, fresh.C, fresh.JAX_START])
def test_the_codes_are_python(code: str) -> None:
    compile(code, "<code>", "exec")
    assert code.count("begin =") == 1


def test_new_parameters_compile_nothing() -> None:
    assert fresh.Fresh(fresh.NEW_PARAMETERS, inside=True)() < 0.1


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_the_compiler_is_timed_in_its_own_process() -> None:
    assert 0.0 < fresh.Fresh(fresh.C, inside=True)() < 60.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_by_the_kept_states_alone() -> None:
    """First and final states are kept, which makes 2; the start is the caller's."""
    assert 1.5 < fresh.Fresh(fresh.MEMORY.format(paths=4_000_000), inside=True)() < 3.0
