"""Executors of other packages: the same bits as one thread."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from user_dynamics import swirl

import thermodiff as td


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_bits_of_one_thread() -> None:
    distributed = pytest.importorskip("distributed")
    process, x0 = td.Langevin(swirl, params=(1.0, 2.0), diffusivity=0.5, dim=2), np.zeros((3000, 2))
    here = td.simulate(process, x0, [0.0, 0.5, 1.0], 1e-2, rng=1)
    system = td.Diffusion(td.paper_mixture(3), td.VP())
    ledger = td.account(system, nodes=8, samples=1000, rng=2)
    given = {"stop": td.stop_condition(lambda x, t, r: x[0] ** 2 + x[1] ** 2 - r), "stop_params": (1.0,), "rng": 3}
    passage = td.first_passage(process, x0, t_max=5.0, dt=1e-2, **given)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        there = td.simulate(process, x0, [0.0, 0.5, 1.0], 1e-2, rng=1, executor=executor, chunk=4)
        account = td.account(system, nodes=8, samples=1000, rng=2, executor=executor)
        passed = td.first_passage(process, x0, t_max=5.0, dt=1e-2, **given, executor=executor, chunk=4)
    np.testing.assert_array_equal(there.states, here.states)
    np.testing.assert_array_equal(passed.times, passage.times)
    np.testing.assert_array_equal(passed.states, passage.states)
    for row, values in ledger.samples.items():
        np.testing.assert_array_equal(account.samples[row], values, err_msg=row)


PROGRAM = """
import os
import numpy as np
import thermodiff as td
from mpi4py.futures import MPIPoolExecutor
from user_dynamics import closure, process_id, swirl

if __name__ == "__main__":
    x0 = np.zeros((3000, 2))
    processes = [td.Langevin(swirl, (1.0, 2.0), 0.5, dim=2), td.Langevin(closure(0.5), (), 0.5, dim=2)]
    with MPIPoolExecutor(2) as executor:
        for process in processes:
            here = td.simulate(process, x0, 0.5, 1e-2, rng=1)
            there = td.simulate(process, x0, 0.5, 1e-2, rng=1, executor=executor, chunk=4)
            print("the same bits:", np.array_equal(there.states, here.states))
        print("elsewhere:", os.getpid() not in set(executor.map(process_id, range(20))))
"""


@pytest.mark.parametrize(
    "launch", [["mpiexec", "-n", "3"], pytest.param([], marks=pytest.mark.slow)], ids=["mpiexec", "spawned"]
)
def test_mpi_gives_the_bits_of_one_thread(launch: list[str], tmp_path: Path) -> None:
    """Workers that mpiexec starts, and workers that the program itself spawns; closures travel by value."""
    pytest.importorskip("mpi4py")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # MPI from a wheel has its programs beside Python's; Open MPI wants to be told that it may run as root, as in a
    # container, and more processes than there are cores.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    told = {f"{name}_ALLOW_RUN_AS_ROOT{end}": "1" for name in ("OMPI", "PRTE") for end in ("", "_CONFIRM")}
    told["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    environment = os.environ | told | {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launch, sys.executable, *(["-m", "mpi4py.futures"] if launch else []), str(program)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.stdout.splitlines() == ["the same bits: True"] * 2 + ["elsewhere: True"], found.stderr
