"""Compile flags, the kernel signature types, and compilation at first use.

Kernels and their helpers are made by one of the three decorators here; what is compiled for functions of the user's, by
`thermodiff.kernels.user` and the modules that it takes from.

``inline``
    A small helper that is compiled into its callers.
``subroutine``
    A larger helper, left as a call.
``kernel(signature)``
    An entry point with one fixed signature, which allocates what it and its helpers need.  Nothing is compiled at import:
    the first call compiles it, or loads it from Numba's disk cache.  All calls share that one machine code, whatever field
    or schedule they carry.

Flags
-----
``error_model="numpy"``: a division under Python's model can raise, and that branch stops vectorisation.
``fastmath={"contract", "nsz", "arcp"}`` and no more: ``reassoc`` deletes rounding tricks such as
``(y + 1.5 * 2**52) - 1.5 * 2**52``; ``nnan`` and ``ninf`` delete the checks for NaN.
``_nrt=False`` for the helpers: they borrow their arrays and cannot allocate.  Numba would count a reference for each view of
an array, dozens in a step of a block, by instructions that wait for all writing before them (decision 22).  A helper that
returns a view must be called by helpers only: a kernel would give back a reference that nobody took.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys

LANES = 256
"""Paths per block: the innermost loops run over this many lanes (a multiple of every vector width)."""

CACHE_LINE = 8
"""Numbers in a line of the cache."""

FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp"},
    "cache": True,
}

BORROWING: dict[str, Any] = {**FLAGS, "cache": False, "_nrt": False}


def _source_stamp() -> str:
    """Hash of all kernel sources: a kernel inlines helpers of other files, which Numba's own stamp does not see."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP = _source_stamp()

vector = types.float64[::1]
matrix = types.float64[:, ::1]
tensor = types.float64[:, :, ::1]
words = types.uint32[::1]
integers = types.int64[::1]

field_signature = types.void(matrix, vector, vector, matrix)
"""``field(x[d, LANES], row, params, out[d or d + 1, LANES])``: the one signature that drifts and scores share."""

field_pointer = types.FunctionType(field_signature)


def inline(function: Any) -> Any:
    """Compile a helper into its callers; a helper left as a call would stop the vectorisation of its caller's loop."""
    return numba.njit(**BORROWING, forceinline=True)(function)


def subroutine(function: Any) -> Any:
    """Compile a helper that is called once per block or more rarely, and too large to be copied into its callers."""
    return numba.njit(**BORROWING)(function)


@numba.njit(**{**FLAGS, "cache": False})
def lanes(rows):
    """Memory of a kernel for rows of a block, (rows, LANES), not initialised.

    It begins with a cache line, so that no vector lies across two of them (decision 5).
    """
    memory = np.empty(rows * LANES + CACHE_LINE)
    first = -memory.ctypes.data % (8 * CACHE_LINE) // 8
    return memory[first : first + rows * LANES].reshape(rows, LANES)


class Kernel:
    """A function of one signature, compiled (or loaded from the disk cache) when first used."""

    def __init__(self, function: Any, signature: Any) -> None:
        self._function = function
        self._signature = signature
        self._dispatcher: Any = None
        self._pointer: Any = None
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    @property
    def dispatcher(self) -> Any:
        """The compiled Numba dispatcher."""
        if self._dispatcher is None:
            dispatcher = numba.njit(**FLAGS)(self._function)
            dispatcher._cache._cache_file._source_stamp = _STAMP
            if not _load(dispatcher, self._signature):
                dispatcher.compile(self._signature)
            dispatcher.disable_compile()
            self._dispatcher = dispatcher
        return self._dispatcher

    @property
    def pointer(self) -> Any:
        """What a kernel takes in place of this one, with its address looked up once (Numba looks it up at every call)."""
        if self._pointer is None:
            self._pointer = Address(self.dispatcher, types.FunctionType(self._signature))
        return self._pointer

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        # What travels to another process is a name; the machine code is made or loaded there.
        return _find, (self._function.__module__, self.__name__)

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*(a.pointer if isinstance(a, Kernel | UserKernel) else a for a in arguments))


def _load(dispatcher: Any, signature: Any) -> bool:
    """Add the machine code of a signature from the disk cache, if it is there.

    `dispatcher.compile` does the same, after it has imported all that a compiler needs, SciPy's linear algebra among it:
    half of the time of a short program.
    """
    with global_compiler_lock:
        try:
            rtsys.initialize(dispatcher.targetctx)
            found = dispatcher._cache._load_overload(signature, dispatcher.targetctx)
        except Exception:  # Whatever is wrong with the cache, compiling mends it, or says what it is.
            return False
        if found is None:
            return False
        dispatcher.targetctx.insert_user_function(found.entry_point, found.fndesc, [found.library])
        dispatcher.add_overload(found)
        return True


class UserKernel:
    """A compiled field that no module of thermodiff holds."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher
        self.pointer = Address(dispatcher, field_pointer)


class Address:
    """A compiled kernel as an argument, by Numba's protocol for foreign functions."""

    def __init__(self, dispatcher: Any, pointer_type: Any) -> None:
        self._numba_type_ = pointer_type
        compiled = dispatcher.get_compile_result(pointer_type.signature)
        self._keep = dispatcher
        self._address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)

    def __wrapper_address__(self) -> int:
        return self._address


def _find(module: str, name: str) -> Kernel:
    return getattr(importlib.import_module(module), name)


def kernel(signature: Any) -> Any:
    """Decorate an entry point: fixed ``signature``, compiled at first use, cached on disk."""

    def decorate(function: Any) -> Kernel:
        return Kernel(function, signature)

    return decorate
