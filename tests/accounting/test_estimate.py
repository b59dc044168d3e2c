"""A number with its error."""

import math

import pytest

from thermodiff import Estimate
from thermodiff.accounting.estimate import format_value


def test_an_estimate_is_a_number() -> None:
    assert float(Estimate(1.5, 0.1)) == 1.5


def test_difference_of_independent_estimates_adds_errors_in_quadrature() -> None:
    assert Estimate(3.0, 0.3) - Estimate(1.0, 0.4) == Estimate(2.0, 0.5)


def test_deviation_is_in_combined_errors() -> None:
    assert Estimate(3.0, 0.3).deviation(Estimate(1.0, 0.4)) == pytest.approx(4.0, rel=1e-14)
    assert Estimate(1.0, 0.0).deviation(Estimate(1.0, 0.0)) == 0.0
    assert Estimate(1.0, 0.0).deviation(Estimate(2.0, 0.0)) == -math.inf


def test_dict_has_z_only_where_there_is_one() -> None:
    assert Estimate(1.0, 0.5).to_dict() == {"value": 1.0, "error": 0.5}
    assert Estimate(1.0, 0.5, 2.0).to_dict() == {"value": 1.0, "error": 0.5, "z": 2.0}
    assert Estimate(**Estimate(1.0, 0.5, 2.0).to_dict()) == Estimate(1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.442788, 0.0004, "1.44279"),
        (122.8546, 0.02, "122.855"),
        (1234.5, 20.0, "1234"),
        (0.123456789, 0.0, "0.123457"),
        (math.inf, 0.1, "inf"),
        (1.0, 1e-30, "1.00000000"),
        (1.25, math.inf, "1.25"),
    ],
)
def test_values_are_printed_to_the_digits_that_the_error_allows(value: float, error: float, text: str) -> None:
    assert format_value(value, error) == text


def test_str_shows_value_and_error() -> None:
    assert str(Estimate(1.442788, 0.0004)) == "1.44279 ± 0.0004"


def test_estimates_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Estimate(1.0, 0.1).value = 2.0
