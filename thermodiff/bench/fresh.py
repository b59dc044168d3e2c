"""Times in processes of their own: imports, first results, compilation."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import thermodiff
from thermodiff.bench.rivals import Absent

ROOT = Path(thermodiff.__file__).parent.parent

OURS = """
import time
import numpy as np, thermodiff as td
@td.drift
def known(x, t, k):
    return (-k * x[0],)
start = np.zeros((512, 1))
td.simulate(td.Langevin(known, params=(1.0,), diffusivity=0.5, dim=1), start, 0.1, 0.01, rng=0)
@td.drift
def well(x, t, a, b):
    return (a * x[0] - b * x[0] ** 3,)
process = td.Langevin(well, params=(1.0, 1.0), diffusivity=0.5, dim=1)
def run():
    td.simulate(process, start, 0.1, 0.01, rng=0)
begin = time.perf_counter()
{work}
print(time.perf_counter() - begin)
"""

NEW_DRIFT = OURS.format(work="run()")
NEW_PARAMETERS = OURS.format(work="process = process.with_params(2.0, 3.0); run()").replace("begin =", "run(); begin =", 1)

NUMBA = """
import time, numba, numpy as np
@numba.njit(parallel=True, fastmath=True)
def known(x, steps):
    for path in numba.prange(x.size):
        for _ in range(steps):
            x[path] += 0.01 * -x[path] + 0.1 * np.random.normal()
x = np.zeros(512)
known(x, 10)
begin = time.perf_counter()
@numba.njit(parallel=True, fastmath=True)
def well(x, steps, a, b):
    for path in numba.prange(x.size):
        for _ in range(steps):
            x[path] += 0.01 * (a * x[path] - b * x[path] ** 3) + 0.1 * np.random.normal()
well(x, 10, 1.0, 1.0)
print(time.perf_counter() - begin)
"""

JAX = """
import time, jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
def solver(drift):
    def run(x, key, *params):
        def step(x, k):
            z = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            return x + 0.01 * drift(x, *params) + 0.1 * z, None
        return jax.lax.scan(step, x, jnp.arange(10))[0]
    return jax.jit(run)
x, key = jnp.zeros(512), jax.random.key(0)
jax.block_until_ready(solver(lambda x, k: -k * x)(x, key, 1.0))
begin = time.perf_counter()
jax.block_until_ready(solver(lambda x, a, b: a * x - b * x**3)(x, key, 1.0, 1.0))
print(time.perf_counter() - begin)
"""

C = """
import time
from thermodiff.bench.rivals.c import program
begin = time.perf_counter()
program()
print(time.perf_counter() - begin)
"""

MEMORY = """
import re
import numpy as np, thermodiff as td
def most():
    return 1024 * int(re.search(r"VmHWM:\\s*([0-9]+)", open("/proc/self/status").read())[1])
@td.drift
def well(x, t, a, b):
    return (a * x[0] - b * x[0] ** 3,)
process = td.Langevin(well, params=(1.0, 1.0), diffusivity=0.5, dim=1)
td.simulate(process, np.zeros((512, 1)), 0.1, 0.01, rng=0)
start = np.ones(({paths}, 1))
before = most()
td.simulate(process, start, 1.0, 0.01, rng=0)
print((most() - before) / start.nbytes)
"""
"""Prints the growth of the resident memory over the size of the array of states.  (Linux keeps the most that a process
had in its status; what getrusage gives starts from the most of the parent.)"""

ACCOUNT = "import thermodiff as td\nprint(td.account(td.Diffusion(td.paper_mixture(3), td.VP()), rng=0).total('total'))"
REVERSE = "import thermodiff as td\nprint(td.reverse(td.Diffusion(td.paper_mixture(2), td.VP()), 10_000, rng=0).final[0])"
JAX_START = JAX.replace("jax.block_until_ready(solver(lambda x, k: -k * x)(x, key, 1.0))\n", "")


@dataclass(frozen=True)
class Fresh:
    """A piece of code to be run in a process of its own.

    Attributes
    ----------
    code : str
    needs : str
        Package without which it cannot run.
    inside : bool
        Whether the code prints the seconds that count; else they are those of the whole process.
    """

    code: str
    needs: str = "numpy"
    inside: bool = False
    timed = True

    def __call__(self) -> float:
        """Seconds."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", self.code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        whole = time.perf_counter() - begin
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"the process failed: {reason[0]}")
        return float(done.stdout.split()[-1]) if self.inside else whole


def fresh(code: str, needs: str = "numpy", *, inside: bool = False) -> Callable[[Any], Fresh]:
    """As the ``make`` of a way; it takes no problem."""

    def make(problem: Any) -> Fresh:
        if find_spec(needs) is None:
            raise Absent(f"{needs} is not installed")
        return Fresh(code, needs, inside)

    return make
