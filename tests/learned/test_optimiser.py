"""The optimiser: rates, clipping, averages, and a state that goes on to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.optimiser import Optimiser


def linear() -> nn.Linear:
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        net.bias.fill_(0.5)
    return net


def slope(net: nn.Linear, k: int) -> torch.Tensor:
    """A loss whose gradient depends on the weights and on the step."""
    return (net.weight.square().sum() + net.bias.sum()) * (1.0 + 0.1 * k)


def go(net: nn.Linear, optimiser: Optimiser, first: int, last: int) -> None:
    for step in range(first, last + 1):
        update(optimiser, slope(net, step), step)


def update(optimiser: Optimiser, loss: torch.Tensor, step: int) -> None:
    optimiser.clear()
    loss.backward()
    optimiser.step(step)


def test_rates_rise_and_fall():
    optimiser = Optimiser(linear(), 0.4, 0.9, 2000)
    rates = np.array([optimiser.rate(step) for step in range(1, 2001)])
    assert rates[0] == pytest.approx(0.004)
    assert rates.argmax() == 99
    assert rates.max() == pytest.approx(0.4, rel=0.01)
    assert rates[1000] == pytest.approx(0.2, rel=1e-3)
    assert 0.0 < rates[-1] < 1e-5


def test_without_decay_the_rate_stays_whatever_the_length():
    short, long = (Optimiser(linear(), 0.4, 0.9, steps, decay=False) for steps in (20, 2000))
    rates = [long.rate(step) for step in range(1, 2001)]
    assert rates[:20] == [short.rate(step) for step in range(1, 21)]
    assert rates[99:] == [0.4] * 1901


def test_long_gradients_are_cut_to_three_times_the_usual():
    net = linear()
    optimiser = Optimiser(net, 1e-9, 0.0, 100)
    lengths = []
    for step, size in enumerate([1.0, 1.0, 1e6, 2.0], 1):
        loss = size * net.bias.sum()
        update(optimiser, loss, step)
        lengths.append(net.bias.grad.item())
    assert lengths[:2] == [1.0, 1.0]
    assert lengths[2] == pytest.approx(3.0, rel=1e-6)
    assert lengths[3] == 2.0


def test_the_average_is_that_of_the_weights():
    net = linear()
    optimiser, seen, expected = Optimiser(net, 0.1, 0.5, 50), [], None
    for step in range(1, 51):
        update(optimiser, slope(net, step), step)
        share = 1.0 - min(0.5, step / (step + 9.0))
        value = net.weight.detach().clone()
        expected = torch.tensor([[1.0, 2.0, 3.0]]).lerp(value, share) if expected is None else expected.lerp(value, share)
        seen.append(value)
    optimiser.finish()
    torch.testing.assert_close(net.weight.detach(), expected)
    assert not torch.equal(net.weight, seen[-1])


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_restored_state_goes_on_to_the_bit(stop):
    whole = linear()
    reference = Optimiser(whole, 0.05, 0.9, 20)
    go(whole, reference, 1, 20)
    before, after = linear(), linear()
    halted = Optimiser(before, 0.05, 0.9, 20)
    go(before, halted, 1, stop)
    after.load_state_dict(before.state_dict())
    resumed = Optimiser(after, 0.05, 0.9, 20)
    resumed.restore({name: value.clone() for name, value in halted.state().items()})
    go(after, resumed, stop + 1, 20)
    assert torch.equal(whole.weight, after.weight)
    for name, value in reference.state().items():
        assert torch.equal(value, resumed.state()[name]), name


def test_moments_keep_the_memory_layout_of_the_weights():
    net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimiser = Optimiser(net, 0.1, 0.9, 10)
    update(optimiser, net.weight.square().sum(), 1)
    state = {name: value.contiguous() for name, value in optimiser.state().items()}
    again = Optimiser(net, 0.1, 0.9, 10)
    again.restore(state)
    assert again.state()["adam.0.exp_avg"].stride() == net.weight.stride()


def test_states_of_other_weights_are_refused():
    net = linear()
    optimiser = Optimiser(net, 0.1, 0.9, 10)
    go(net, optimiser, 1, 2)
    state = optimiser.state()
    with pytest.raises(ValueError, match="another shape than the weight"):
        Optimiser(nn.Linear(2, 1), 0.1, 0.9, 10).restore(state)
    for wrong in ({**state, "average.2": torch.zeros(1)}, {n: v for n, v in state.items() if n != "adam.1.exp_avg"}):
        with pytest.raises(ValueError, match="the state of other weights"):
            Optimiser(linear(), 0.1, 0.9, 10).restore(wrong)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="ReLU has no weights to train"):
        Optimiser(nn.ReLU(), 0.1, 0.9, 10)
