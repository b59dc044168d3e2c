"""Executors of other packages: the same bits as one thread."""

import numpy as np
import pytest
from user_dynamics import swirl

import thermodiff as td

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_bits_of_one_thread() -> None:
    distributed = pytest.importorskip("distributed")
    process, x0 = td.Langevin(swirl, params=(1.0, 2.0), diffusivity=0.5, dim=2), np.zeros((3000, 2))
    here = td.simulate(process, x0, [0.0, 0.5, 1.0], 1e-2, rng=1)
    system = td.Diffusion(td.paper_mixture(3), td.VP())
    ledger = td.account(system, nodes=8, samples=1000, rng=2)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        there = td.simulate(process, x0, [0.0, 0.5, 1.0], 1e-2, rng=1, executor=executor, chunk=4)
        account = td.account(system, nodes=8, samples=1000, rng=2, executor=executor)
    np.testing.assert_array_equal(there.states, here.states)
    for row, values in ledger.samples.items():
        np.testing.assert_array_equal(account.samples[row], values, err_msg=row)


def test_mpi_gives_the_bits_of_one_thread() -> None:
    futures = pytest.importorskip("mpi4py.futures")
    process, x0 = td.Langevin(swirl, params=(1.0, 2.0), diffusivity=0.5, dim=2), np.zeros((3000, 2))
    here = td.simulate(process, x0, 0.5, 1e-2, rng=1)
    with futures.MPIPoolExecutor(2) as executor:
        there = td.simulate(process, x0, 0.5, 1e-2, rng=1, executor=executor, chunk=4)
    np.testing.assert_array_equal(there.states, here.states)
