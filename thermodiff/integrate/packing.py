"""Nested Python values and arrays as one ``.npz`` without a pickle: what a reducer has so far."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

KINDS = "numbers, strings, None, arrays, and tuples, lists and dicts of them"


def packed(value: Any) -> bytes:
    """``value`` as the content of a file.

    Raises
    ------
    TypeError
        If there is anything else in it than `KINDS`.
    """
    arrays: list[np.ndarray] = []
    tree = _tree(value, arrays)
    buffer = io.BytesIO()
    named = {f"a{k}": array for k, array in enumerate(arrays)}
    np.savez(buffer, allow_pickle=False, tree=np.array(json.dumps(tree)), **named)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """What `packed` was given, with its types and bits."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return _value(json.loads(str(stored["tree"])), stored)


def _tree(value: Any, arrays: list[np.ndarray]) -> list[Any]:
    if value is None or type(value) in (bool, str):
        return ["plain", value]
    if type(value) is int:
        return ["int", str(value)]
    if type(value) is float:
        return ["float", value.hex()]
    if type(value) is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if type(value) is np.ndarray or isinstance(value, np.generic):
        array: np.ndarray = np.asarray(value)
        if array.dtype.kind not in "biufcSU":
            raise TypeError(f"array of {array.dtype}, and only {KINDS} are kept; return these")
        arrays.append(array)
        return ["scalar" if isinstance(value, np.generic) else "array", len(arrays) - 1]
    if type(value) in (tuple, list):
        return [type(value).__name__, [_tree(entry, arrays) for entry in value]]
    if type(value) is dict:
        return ["dict", [[_tree(key, arrays), _tree(entry, arrays)] for key, entry in value.items()]]
    raise TypeError(f"{type(value).__name__}, and only {KINDS} are kept; return these")


def _value(tree: list[Any], arrays: Any) -> Any:
    kind, *rest = tree
    if kind == "plain":
        return rest[0]
    if kind == "int":
        return int(rest[0])
    if kind == "float":
        return float.fromhex(rest[0])
    if kind == "complex":
        return complex(*(float.fromhex(part) for part in rest))
    if kind in ("scalar", "array"):
        array = arrays[f"a{rest[0]}"]
        return array[()] if kind == "scalar" else array
    if kind == "dict":
        return {_value(key, arrays): _value(entry, arrays) for key, entry in rest[0]}
    values = [_value(entry, arrays) for entry in rest[0]]
    return tuple(values) if kind == "tuple" else values
