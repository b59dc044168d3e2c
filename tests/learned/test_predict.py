"""Conversions between what a network predicts and b = sigma s."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from thermodiff.learned.predict import PREDICTS, ask, check_window, dimensionless_score, drift_term, target, tensor_row
from thermodiff.schedules import VE, VP, CondOT, Cosine, Row, Schedule, StraightLine, SubVP

SCHEDULES = [VP(), VP(scale=0.1), StraightLine(scale=0.1), VE(), SubVP(), Cosine(scale=2.0), CondOT(scale=0.5)]
# "flow" carries b in a - sigma flow / D without loss everywhere; "x0" and "v" need alpha and sigma of like size.
LAMS = np.linspace(-6.0, 6.0, 13)


def draw(noise: Schedule, predicts: str) -> tuple[np.ndarray, np.ndarray, Row]:
    lam = LAMS - 2.0 * np.log(getattr(noise, "scale", 1.0))
    row = Row(*(values[:, None] for values in noise.at(lam)))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((lam.size, 3))
    return row.alpha * rng.standard_normal(z.shape) + row.sigma * z, -z, row


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_round_trip(noise: Schedule, predicts: str) -> None:
    x, b, row = draw(noise, predicts)
    output = target(predicts, b, x, row, noise)
    np.testing.assert_allclose(dimensionless_score(predicts, output, x, row, noise), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_tensors_agree_with_arrays(noise: Schedule, predicts: str) -> None:
    x, b, row = draw(noise, predicts)
    like = torch.from_numpy(x)
    tensors = tensor_row(Row(*(values[:, 0] for values in row)), like)
    output = target(predicts, torch.from_numpy(b), like, tensors, noise)
    np.testing.assert_allclose(output.numpy(), target(predicts, b, x, row, noise), rtol=1e-13)
    again = dimensionless_score(predicts, output, like, tensors, noise)
    np.testing.assert_allclose(again.numpy(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_meaning(noise: Schedule) -> None:
    """Each kind against its definition, with drift and diffusivity taken from the schedule in t."""
    t = 0.3
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    rng = np.random.default_rng(1)
    x0, z = rng.standard_normal((2, 5, 2))
    x, b = alpha * x0 + sigma * z, -z
    row, score = noise.at(noise.lam(t)), -z / sigma
    f, diffusivity = noise.drift_rate(t) * x, noise.diffusivity(t)
    expected = {
        "entropy": score - f / diffusivity,
        "score": score,
        "eps": z,
        "x0": x0,
        "v": alpha * z - sigma / getattr(noise, "scale", 1.0) * x0,
        "flow": f - diffusivity * score,
        "edm": x0,
    }
    np.testing.assert_allclose(drift_term(x, row), sigma * f / diffusivity, rtol=1e-9)
    for predicts, output in expected.items():
        np.testing.assert_allclose(target(predicts, b, x, row, noise), output, rtol=1e-9, atol=1e-9, err_msg=predicts)


def test_how_a_network_is_asked() -> None:
    """net(x, t); an EDM denoiser sees the point and the noise level beside data of factor 1."""
    x, row = torch.ones(3, 2, dtype=torch.float64), VP().at(np.array([-1.0, 0.0, 2.0]))
    for rows in (tensor_row(row, x), Row(*(values[1] for values in row))):
        seen = [
            ask(lambda points, t: (points, t), predicts, x, rows, dtype)
            for predicts, dtype in (("x0", None), ("edm", None), ("edm", torch.float32))
        ]
        scalar = not isinstance(rows.lam, torch.Tensor)
        alpha, sigma, time = (values[[1, 1, 1]] if scalar else values for values in (row.alpha, row.sigma, row.time))
        np.testing.assert_array_equal(seen[0][0], x)
        np.testing.assert_allclose(seen[0][1], time, rtol=1e-15)
        np.testing.assert_allclose(seen[1][0], x.numpy() / alpha[:, None], rtol=1e-15)
        np.testing.assert_allclose(seen[1][1], sigma / alpha, rtol=1e-15)
        assert {values.dtype for values in seen[2]} == {torch.float32}
        assert all(points.shape == (3, 2) and t.shape == (3,) for points, t in seen)


def test_images_broadcast() -> None:
    noise = VP()
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    row = tensor_row(noise.at(np.linspace(-2, 2, 4)), x)
    assert row.sigma.shape == (4, 1, 1, 1)
    assert dimensionless_score("v", x, x, row, noise).shape == x.shape
    assert torch.as_tensor(row.time).dtype == torch.float64
    assert torch.as_tensor(row.sigma).dtype == torch.float32


def test_unknown_kind() -> None:
    row = VP().at(0.0)
    for function in (dimensionless_score, target):
        with pytest.raises(ValueError, match="predicts='noise' is unknown; choose one of 'entropy', 'score', 'eps'"):
            function("noise", np.zeros(2), np.zeros(2), row, VP())


@pytest.mark.parametrize("predicts", ["x0", "edm"])
def test_a_network_that_works_in_place_changes_nothing_else(predicts: str) -> None:
    class Halving(torch.nn.Module):
        double_time = True

        def forward(self, points: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            t *= 1000.0
            points /= 2.0
            return points

    x, row = torch.ones(3, 2, dtype=torch.float64), VP().at(np.array([-1.0, 0.0, 2.0]))
    for rows in (tensor_row(row, x), Row(*(float(values[1]) for values in row))):
        before = [deepcopy(values) for values in (x, *rows)]
        ask(Halving(), predicts, x, rows)
        for value, old in zip((x, *rows), before, strict=True):
            np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize(
    "error",
    [KeyError("a"), IndexError("far"), AttributeError("b"), AssertionError("c"), ZeroDivisionError("d"), StopIteration("e")],
)
def test_errors_of_a_network_are_named(error: Exception) -> None:
    def broken(points: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise error

    x = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"the network raised {type(error).__name__}: ") as told:
        ask(broken, "eps", x, Row(*(float(value) for value in VP().at(0.0))))
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("a"), TypeError("b"), ValueError("c"), MemoryError()])
def test_errors_that_say_enough_are_left_alone(error: Exception) -> None:
    def broken(points: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)) as told:
        ask(broken, "eps", torch.ones(3, 2), Row(*(float(value) for value in VP().at(0.0))))
    assert told.value is error


@pytest.mark.parametrize(("noise", "lowest"), [(VP(), -8.05), (VP(scale=0.1), -3.44), (VE(), -7.82), (SubVP(), -8.05)])
def test_a_window_ends_with_the_schedule(noise, lowest):
    """A network has been asked at no later time; a rounded end passes."""
    assert check_window("eps", noise, (lowest - 0.18, 5.0)) == (lowest - 0.18, 5.0)
    with pytest.raises(
        ValueError, match=r"begins at lam = -30, but .* ends at lam = -\d\.\d+, t = 1, and no .* begin at -\d"
    ):
        check_window("eps", noise, (-30.0, 5.0))
    assert check_window("edm", noise, (-30.0, 5.0)) == (-30.0, 5.0)


@pytest.mark.parametrize("noise", [CondOT(), Cosine(), StraightLine()], ids=lambda noise: noise.name)
def test_schedules_without_an_end_in_lam_take_any_window(noise):
    assert check_window("eps", noise, (-30.0, 5.0)) == (-30.0, 5.0)
