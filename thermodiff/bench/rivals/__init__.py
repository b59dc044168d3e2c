"""The same works done by other means; each module is one rival, and imports its library when it is loaded.

A function of a rival is named by the work, takes its problem (see `thermodiff.bench.problems`), makes ready whatever can be
made ready, and returns a function without arguments that does the work and returns its result as NumPy arrays or numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

LIBRARIES = {
    "c": (), "numpy_": ("numpy",), "numba_": ("numba",), "jax_": ("jax", "jaxlib"), "diffrax_": ("diffrax",),
    "torchsde_": ("torchsde", "torch"), "torchdiffeq_": ("torchdiffeq", "torch"), "azula_": ("azula", "torch"),
    "scipy_": ("scipy",), "pyito_": ("pyito",),
}  # fmt: skip
"""Distributions that each rival takes; their versions are part of a result."""


class Absent(ImportError):
    """A rival that cannot run here; the message says why."""


def load(name: str, work: str) -> Callable[..., Callable[[], Any]]:
    """The function of rival ``name`` for a work.

    Raises
    ------
    Absent
        If its library is not installed, or no compiler is found.
    """
    try:
        module = import_module(f"thermodiff.bench.rivals.{name}")
    except Absent:
        raise
    except ImportError as error:
        raise Absent(f"{LIBRARIES[name][0]} is not installed ({error})") from None
    return getattr(module, work)


def versions() -> dict[str, str]:
    """Versions of the rivals' libraries that are installed."""
    found = {}
    for library in dict.fromkeys(name for names in LIBRARIES.values() for name in names):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
