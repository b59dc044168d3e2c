"""Flags, compilation at first use, one machine code, the cache stamp, and pickling by name."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types
from numba.core.errors import NumbaError
from packed_laws import LAWS

import thermodiff
from thermodiff.kernels import integrands, jit, march, scores
from thermodiff.kernels.jit import LANES

SOURCES = sorted(Path(jit.__file__).parent.glob("*.py"))


def test_flags_keep_rounding_tricks_and_nan_checks() -> None:
    assert jit.FLAGS["fastmath"] == {"contract", "nsz", "arcp"}
    assert jit.FLAGS["error_model"] == "numpy"
    assert jit.FLAGS["nogil"] is True


@pytest.mark.parametrize("name", [path.name for path in SOURCES])
def test_the_cache_stamp_depends_on_every_kernel_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in SOURCES:
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    before = jit._source_stamp()
    with open(tmp_path / name, "a") as file:
        file.write("# changed\n")
    assert jit._source_stamp() != before


def test_the_cache_stamp_is_that_of_the_sources_and_is_handed_to_numba() -> None:
    assert jit._STAMP == jit._source_stamp()
    assert march.march.dispatcher._cache._cache_file._source_stamp == jit._STAMP


def test_nothing_is_compiled_at_import() -> None:
    code = (
        "from thermodiff.kernels import integrands, march, philox, scores\n"
        "from thermodiff.kernels.jit import Kernel\n"
        "found = [v for m in (integrands, march, philox, scores) for v in vars(m).values() if isinstance(v, Kernel)]\n"
        "assert len(found) >= 10, len(found)\n"
        "assert all(kernel._dispatcher is None for kernel in found)\n"
    )
    root = Path(thermodiff.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_one_machine_code_for_all_fields() -> None:
    """Integrator and Gram kernel are compiled once, whatever law they carry."""
    key = np.array([1, 2], dtype=np.uint32)
    codes = set()
    for law in LAWS.values():
        gram_out = np.empty((1, law.dim + 8, LANES))
        integrands.gram(law.draw, law.score, True, key, 0, 1, 0, np.array([[0.7, 0.5]]), law.params, gram_out)
        states = np.zeros((2, law.dim, LANES))
        rows = np.tile([0.7, 0.25, 0.1, 0.1], (2, 3, 1))
        march.march(
            law.score, law.params, key, march.HEUN, 0, 1, rows, np.full(2, 0.1), np.full(2, 0.1), np.array([-1, 1]), states
        )
        assert np.all(np.isfinite(gram_out[:, law.dim :]))
        assert np.all(np.isfinite(states))
        codes.add((id(integrands.gram.dispatcher), id(march.march.dispatcher)))
    assert len(codes) == 1
    assert len(march.march.dispatcher.signatures) == 1
    assert len(integrands.gram.dispatcher.signatures) == 1


def test_helpers_borrow_their_arrays() -> None:
    """Counted references cost a tenth of an Euler step, so a helper has none: it cannot allocate."""

    @jit.inline
    def views(rows):
        for row in range(rows.shape[0]):
            line = rows[row]
            line[0] = 1.0

    views.compile((jit.matrix,))
    assert "NRT_incref" not in "".join(views.inspect_llvm().values())
    with pytest.raises(NumbaError, match="NRT required"):
        jit.subroutine(lambda n: np.empty(n)[0]).compile((types.int64,))


@pytest.mark.parametrize("name", LAWS)
def test_kernels_give_back_the_references_that_they_took(name: str) -> None:
    """A kernel that gets a view from a helper would give back one more with each call, and the array would be freed."""
    law, key, scalars = LAWS[name], np.array([1, 2], dtype=np.uint32), np.array([[0.7, 0.5]])
    x, c, row = np.zeros((law.dim, LANES)), np.zeros((law.dim, LANES)), np.array([0.7, 0.25, 0.0, 1.0])
    out = [np.empty((law.dim + extra, LANES)) for extra in (0, 2)] + [np.empty((2, LANES))]
    arrays = [law.params, key, scalars, x, c, row, *out]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(5):
        law.draw(key, 0, 0, scalars, law.params, x, c)
        law.score(x, row, law.params, out[0])
        law.score(x, row, law.params, out[1])
        law.density(x, row, law.params, out[2])
    assert [sys.getrefcount(array) for array in arrays] == before


def test_memory_of_a_kernel_begins_with_a_cache_line() -> None:
    @njit
    def places(count):
        found = np.empty(count, np.int64)
        for k in range(count):
            memory = jit.lanes(k)
            memory[:] = k
            found[k] = memory.ctypes.data % 64 + (memory.size != k * LANES)
        return found

    assert not np.any(places(40))


def test_a_kernel_refuses_other_types_instead_of_recompiling() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        scores.isotropic_score(np.zeros((1, LANES), np.float32), np.zeros(4), np.zeros(4), np.zeros((1, LANES)))


def test_a_kernel_travels_by_name() -> None:
    assert pickle.loads(pickle.dumps(scores.isotropic_score)) is scores.isotropic_score
    assert len(pickle.dumps(scores.isotropic_score)) < 200


def test_a_kernel_keeps_name_and_docstring() -> None:
    assert scores.isotropic_score.__name__ == "isotropic_score"
    assert "mixture of isotropic Gaussians" in scores.isotropic_score.__doc__


def test_a_warm_cache_needs_no_compiler() -> None:
    """Loading machine code must not import what only compiling needs: it is half of the time of a short program."""
    code = (
        "import sys, numpy as np, thermodiff as td\n"
        "system = td.Diffusion(td.GaussianMixture([[-1.0], [1.0]], stds=0.3), td.VP())\n"
        "print(td.account(system, rng=0, nodes=4, samples=500).total('total').value, td.reverse(system, 300, steps=5, rng=0).final.sum())\n"
        "print('numba.np.arraymath' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert runs[0][:2] == runs[1][:2]
    assert runs[1][2] == "False"
