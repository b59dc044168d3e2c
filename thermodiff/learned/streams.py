"""Random numbers for one purpose each: draws of one call that have equal keys must not be the same numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PURPOSES = {"grey levels": 0x6C6576656C, "log-SNR": 0x6C6F67534E52, "probes": 0x70726F626573}
"""A word for each, far above the numbers of chunks in a training, which are spawn keys as well."""


def stream(key: npt.NDArray[np.uint32], purpose: str, *index: int) -> np.random.Generator:
    """The generator of ``key`` for a purpose, one of `PURPOSES`, and for a part of it."""
    words = [int(word) for word in key]
    return np.random.default_rng(np.random.SeedSequence(words, spawn_key=(PURPOSES[purpose], *index)))
