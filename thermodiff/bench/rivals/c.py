"""C, compiled on the spot: the limit for code that runs on one core."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from thermodiff.bench.problems import DoubleWell, FloatArray
from thermodiff.bench.rivals import Absent

FLAGS = ("-O3", "-march=native", "-ffast-math")


@cache
def program() -> Any:
    """The compiled program.

    Raises
    ------
    Absent
        Without a C compiler, or where it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Absent("there is no C compiler (cc or gcc)")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "euler.c", Path(folder) / "euler.so"
        object_file = Path(folder) / "euler.o"
        source.write_text(files("thermodiff.bench.rivals").joinpath("euler.c").read_text())
        # Linked without -ffast-math: with it, gcc adds start-up code that flushes subnormal numbers in the whole process.
        for command in (
            [compiler, *FLAGS, "-fPIC", "-c", "-o", str(object_file), str(source)],
            [compiler, "-shared", "-o", str(target), str(object_file), "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Absent(f"the C compiler failed: {done.stderr.strip().splitlines()[0] if done.stderr else compiler}")
        # Once loaded, the file may go.
        made = ctypes.CDLL(str(target))
    number, integer, word = ctypes.c_double, ctypes.c_long, ctypes.c_uint32
    pointer = np.ctypeslib.ndpointer(np.float64, ndim=1, flags="C_CONTIGUOUS")
    made.euler_double_well.argtypes = [pointer, integer, integer, number, number, number, number, word, word]
    made.euler_double_well.restype = None
    return made


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """Final states, (n,): those of thermodiff for the same key, to rounding."""
    run, (k0, k1) = program().euler_double_well, problem.key

    def work() -> FloatArray:
        x = np.full(problem.paths, problem.start)
        run(x, x.size, problem.steps, problem.dt, problem.a, problem.b, problem.amplitude, k0, k1)
        return x

    return work
