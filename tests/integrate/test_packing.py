"""Nested values as the content of a file."""

import numpy as np
import pytest

from thermodiff.integrate.packing import packed, unpacked


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(10**40), 0.1, float("inf"), complex(0.0, -0.0), "text", np.float32(0.1), np.int64(4), np.bool_(True),
        (), [], {}, (1, [2.0, (None,)], {"a": 1, 2: "b", (1, 2): [3]}),
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value) -> None:
    found = unpacked(packed(value))
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2)), np.array(1.5), np.arange(8)[::2],
        np.array([True, False]), np.array(["a", "bc"]), np.array([np.nan, -0.0]), np.arange(3, dtype=">f4"),
    ],
)  # fmt: skip
def test_arrays_come_back_with_their_bits(array: np.ndarray) -> None:
    found = unpacked(packed({"x": [array, array + array if array.dtype.kind != "U" else array]}))["x"][0]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array([None]), np.ma.ones(3), [1, (2, len)], {"a": range(3)}])
def test_what_needs_a_pickle_is_refused(value) -> None:
    with pytest.raises(TypeError, match=r"and only numbers, strings, None, arrays, and tuples, lists and dicts of them"):
        packed(value)
