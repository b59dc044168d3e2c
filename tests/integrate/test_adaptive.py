"""The table of a schedule, the tolerances that are accepted, and what is said where a flow does not arrive."""

from dataclasses import dataclass

import numpy as np
import pytest
from systems import LINE, PLANE

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.integrate import adaptive
from thermodiff.kernels.adaptive import schedule_rows

NOISES = [
    td.VP(), td.VP(scale=0.1), td.VP(1.0, 2.0), td.StraightLine(0.1), td.VE(), td.SubVP(), td.Cosine(0.5), td.CondOT(30.0),
]  # fmt: skip
SYSTEM = td.Diffusion(PLANE, td.VP())


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("window", [(-25.0, 45.0), (-200.0, 200.0), (0.0, 1e-3)], ids=str)
def test_the_table_is_the_schedule_to_rounding(noise: td.Schedule, window: tuple[float, float]) -> None:
    """A relative error of 1e-16 times the logarithms that it holds, and far below what rtol = 1e-11 could see."""
    lam = np.append(np.random.default_rng(0).uniform(*window, 20_000), window)
    table, out, row = adaptive.table(noise, *window), np.empty((lam.size, 4)), noise.at(lam)
    schedule_rows(table, *window, lam, out)
    rounding = 1e-15 * max(20.0, *np.abs(window))
    np.testing.assert_allclose(out[:, 0], row.alpha, rtol=rounding)
    np.testing.assert_allclose(out[:, 1], row.sigma**2, rtol=rounding)
    np.testing.assert_allclose(out[:, 2], row.growth, rtol=0.0, atol=rounding)
    np.testing.assert_array_equal(out[:, 3], 0.5 * out[:, 1])


def test_a_table_has_one_piece_per_unit_of_lam() -> None:
    assert adaptive.table(td.VP(), -8.0, 20.0).shape == (28, 3, adaptive.DEGREE + 1)


@dataclass(frozen=True)
class Steep(td.VP):
    """VP on a clock that makes the rate of alpha ``sharpness`` times as abrupt at lam = 0.3; not a consistent schedule."""

    sharpness: float = 40.0

    def at(self, lam):
        row = super().at(lam)
        bump = np.abs(row.lam - 0.3) if np.isinf(self.sharpness) else np.tanh(self.sharpness * (row.lam - 0.3))
        return row._replace(growth=row.growth + 0.01 * bump)


def test_a_steep_schedule_gets_more_pieces() -> None:
    noise, lam = Steep(), np.linspace(-2.0, 2.0, 5001)
    table, out = adaptive.table(noise, -2.0, 2.0), np.empty((lam.size, 4))
    assert table.shape[0] > 4
    schedule_rows(table, -2.0, 2.0, lam, out)
    np.testing.assert_allclose(out[:, 2], noise.at(lam).growth, rtol=0.0, atol=1e-12)


def test_a_kink_is_refused() -> None:
    system = td.Diffusion(LINE, Steep(sharpness=np.inf))
    with pytest.raises(ValueError, match=r"Steep is not smooth at log-SNR 0\.\d+ .*; use method=\"rk4\", or choose times"):
        td.probability_flow(system, 10, method="dopri5", rng=0)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"rtol": 0.0}, ValueError, "rtol must be positive, got 0"),
        ({"rtol": -1e-6}, ValueError, "rtol must be positive"),
        ({"rtol": 1e-15}, ValueError, "rtol must be at least 1e-13, which float64 can still tell, got 1e-15; loosen it"),
        ({"rtol": np.nan}, ValueError, "rtol must be finite"),
        ({"rtol": "1e-6"}, TypeError, "rtol must be a number"),
        ({"atol": 0.0}, ValueError, "atol must be positive, got 0; it is the error of a step where a coordinate vanishes"),
        ({"atol": np.inf}, ValueError, "atol must be finite"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
    ],
)
def test_refusals(keywords, error, message: str) -> None:
    with pytest.raises(error, match=message):
        td.probability_flow(SYSTEM, np.zeros((3, 2)), method="dopri5", **keywords)


def test_the_limit_of_steps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block that fails is named, whatever the chunk."""
    monkeypatch.setattr(adaptive, "MOST_STEPS", 12)
    x = np.zeros((600, 2))
    x[:256] = 1e-3
    for chunk in (1, 3, None):
        with pytest.raises(
            DivergenceError,
            match=r"paths 0 to 255 reached only log-SNR -?\d.* in 12 attempted steps \(\d+ taken\); loosen rtol and atol",
        ):
            td.probability_flow(SYSTEM, x, method="dopri5", rtol=1e-10, chunk=chunk)


def test_a_path_that_leaves_the_numbers_is_an_error() -> None:
    x = np.zeros((300, 2))
    x[290] = 1e200
    with pytest.raises(DivergenceError, match=r"paths 256 to 299 left the finite numbers at log-SNR .* after 0 steps"):
        td.probability_flow(SYSTEM, x, method="dopri5")
