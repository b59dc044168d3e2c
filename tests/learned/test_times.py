"""Functions of the time evaluated at few times."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from thermodiff.learned import EntropyMLP
from thermodiff.learned.times import NODES, _table, at_few_times

Function = Callable[[torch.Tensor], torch.Tensor]


def counted(function: Function) -> tuple[Function, list[int]]:
    calls: list[int] = []

    def count(t: torch.Tensor) -> torch.Tensor:
        calls.append(len(t))
        return function(t)

    return count, calls


def wave(frequency: float) -> Function:
    return lambda t: torch.sin(2.0 * np.pi * frequency * t[:, None] + torch.arange(5))


def many(n: int = 500, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(1e-5, 1.0, n)).to(dtype)


def trained_like(dtype: torch.dtype) -> EntropyMLP:
    """A network whose weights of the time are as large as trainings make them."""
    net = EntropyMLP(3, rng=0)
    with torch.no_grad():
        net.embed_t.weight *= 3.0
        for layer in (*net.times, *net.hidden):
            layer.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    return net.to(dtype)


def direct(net: EntropyMLP, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The network at every time, by the path that a gradient in t needs."""
    return net(x, t.clone().requires_grad_())


def test_a_smooth_function_is_evaluated_at_the_nodes_and_equal_to_round_off() -> None:
    t, (function, calls) = many(), counted(wave(3.0))
    values, spread = at_few_times(function, t)
    assert calls == [NODES]
    assert values.shape == (NODES, 5)
    assert (spread(values) - wave(3.0)(t.double())).abs().max() < 3e-6
    # An affine map of the rows is taken to the samples too.
    np.testing.assert_allclose(spread(2.0 * values + 1.0), 2.0 * wave(3.0)(t) + 1.0, atol=6e-6)


@pytest.mark.parametrize("frequency", [9.0, 40.0])
def test_a_function_that_the_nodes_do_not_resolve_is_evaluated_everywhere(frequency: float) -> None:
    t, (function, calls) = many(), counted(wave(frequency))
    values, spread = at_few_times(function, t)
    assert calls == [NODES, 500]
    assert torch.equal(spread(values), wave(frequency)(t))


def test_a_step_in_time_is_found() -> None:
    t, (function, calls) = many(), counted(lambda t: torch.sigmoid(200.0 * (t[:, None] - 0.37)))
    values, _ = at_few_times(function, t)
    assert calls == [NODES, 500]
    assert len(values) == 500


def test_shared_times_are_evaluated_once() -> None:
    for distinct, expected in ((1, [1]), (40, [40])):
        t, (function, calls) = many(distinct).repeat(10), counted(wave(40.0))
        values, spread = at_few_times(function, t)
        assert calls == expected
        assert torch.equal(spread(values), wave(40.0)(t))


def test_shared_times_that_nodes_do_not_resolve() -> None:
    t, (function, calls) = many(100).repeat(2), counted(wave(40.0))
    values, spread = at_few_times(function, t)
    assert calls == [NODES, 100]
    assert torch.equal(spread(values), wave(40.0)(t))


@pytest.mark.parametrize(
    "times", [[0.5] * 200, [0.0, *[0.5] * 199], [float("nan"), *[0.5] * 199], [float("inf"), *[0.5] * 199]]
)
def test_times_that_give_no_interval(times: list[float]) -> None:
    t = torch.tensor(times)
    values, spread = at_few_times(wave(1.0), t)
    np.testing.assert_array_equal(spread(values), wave(1.0)(t))


def test_one_time_that_is_no_number_spoils_no_other() -> None:
    t = many()
    t[7] = float("nan")
    values, spread = at_few_times(wave(1.0), t)
    found = spread(values)
    assert torch.isnan(found[7]).all()
    assert torch.equal(found[8:], wave(1.0)(t)[8:])


def test_double_precision_is_kept() -> None:
    """Thirty-two nodes resolve this function to float32 only."""
    t, (function, calls) = many(dtype=torch.float64), counted(wave(4.0))
    values, spread = at_few_times(function, t)
    assert calls == [NODES, 500]
    assert torch.equal(spread(values), wave(4.0)(t))
    function, calls = counted(wave(4.0))
    at_few_times(function, t.float())
    assert calls == [NODES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_and_its_gradients_are_those_of_every_time(dtype: torch.dtype) -> None:
    """The error against float64 is that of evaluating every time, up to a factor of two."""
    t, x = many(320, dtype), torch.from_numpy(np.random.default_rng(1).normal(0.0, 2.0, (320, 3)))

    def results(net: EntropyMLP, evaluate: Function) -> list[torch.Tensor]:
        output = evaluate(x.to(net.last.weight.dtype))
        output.square().sum().backward()
        return [output.detach().double(), *(weight.grad.double() for weight in net.parameters())]  # pyright: ignore

    exact, plain, few = trained_like(torch.float64), trained_like(dtype), trained_like(dtype)
    truth = results(exact, lambda y: direct(exact, y, t.double()))
    errors, floors = ([
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True)
    ] for found in (results(few, lambda y: few(y, t)), results(plain, lambda y: direct(plain, y, t))))  # fmt: skip
    unit = 2e-7 if dtype == torch.float32 else 1e-15
    for error, floor in zip(errors, floors, strict=True):
        assert error < 2.0 * floor + 10.0 * unit


def test_the_network_asks_for_few_times(monkeypatch) -> None:
    """Not only right: half of its work is left out."""
    net, rows = trained_like(torch.float32), []
    monkeypatch.setattr(net, "_clock", lambda times, clock=net._clock: rows.append(len(times)) or clock(times))
    net(torch.randn(320, 3), many(320))
    assert rows == [NODES]


def test_mixed_precision_does_not_hide_that_the_nodes_suffice() -> None:
    """Coefficients in bf16 would not fall to round-off of float32."""
    net, t = trained_like(torch.float32), many(320)
    x, rows = torch.randn(320, 3, generator=torch.Generator().manual_seed(0)), []
    clock = net._clock
    net._clock = lambda times: rows.append(len(times)) or clock(times)  # pyright: ignore
    with torch.no_grad():
        exact = net(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(x, t).float()
    assert rows == [NODES, NODES]
    assert 0.0 < (low - exact).abs().max() < 0.05 * exact.abs().max()


def test_layers_are_called_as_they_stand() -> None:
    """A hook, or what replaces a layer, has its say."""
    net, t, x, calls = trained_like(torch.float32), many(320), torch.randn(320, 3), []
    for layer in (*net.hidden, *net.times):
        layer.register_forward_hook(lambda *_: calls.append(1))
    net(x, t)
    assert len(calls) == 4


def test_ensembles_of_weights() -> None:
    nets = [trained_like(torch.float32), EntropyMLP(3, rng=1)]
    weights, buffers = torch.func.stack_module_state(nets)
    x, t = torch.randn(320, 3), many(320)
    found = torch.func.vmap(lambda w, b: torch.func.functional_call(nets[0], (w, b), (x, t)))(weights, buffers)
    for net, row in zip(nets, found, strict=True):
        torch.testing.assert_close(row, net(x, t), atol=2e-5, rtol=1e-5)


def test_the_table_is_made_where_it_is_used() -> None:
    _table.cache_clear()
    net, x, t = trained_like(torch.float32), torch.randn(320, 3), many(320)
    with torch.device("meta"):
        found = net(x, t)
    assert torch.equal(found, net(x, t))
