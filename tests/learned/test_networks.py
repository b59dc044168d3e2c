"""The two networks."""

import numpy as np
import pytest
import torch

from thermodiff.learned.networks import ControlMLP, EntropyMLP, schedule_row
from thermodiff.schedules import VE, VP, CondOT, Cosine, Schedule, StraightLine, SubVP

SCHEDULES = [VP(), VP(scale=0.1), StraightLine(scale=0.1), VE(), SubVP(), Cosine(), CondOT()]
MEAN = np.array([1.0, -0.5, 0.25])
COV = np.array([[1.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.3]])


def preconditioned(noise: Schedule) -> ControlMLP:
    net = ControlMLP(3, width=8, depth=2, rng=0)
    net.precondition(MEAN, COV, noise)
    return net


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_untrained_control_is_exact_for_gaussian_data(noise: Schedule) -> None:
    net = preconditioned(noise)
    low, high = (-8.0, 8.0) if noise.diverges else noise.window()
    rng = np.random.default_rng(0)
    for lam in np.linspace(low, high, 9):
        row = noise.at(lam)
        cov = row.alpha**2 * COV + row.sigma**2 * np.eye(3)
        x = (row.alpha * MEAN + rng.multivariate_normal(np.zeros(3), cov, 20)).astype(np.float32)
        wide = x.astype(np.float64)
        exact = -row.sigma * np.linalg.solve(cov, (wide - row.alpha * MEAN).T).T + 2.0 * row.growth / row.sigma * wide
        with torch.no_grad():
            e = net(torch.from_numpy(x), torch.full((20,), float(row.time), dtype=torch.float64))
        # b - a = sigma e; its error against the size of its two terms, in float32.
        size = np.abs(2.0 * row.growth / row.sigma * wide).max() + 1.0
        np.testing.assert_allclose(row.sigma * e.double().numpy(), exact, atol=1e-6 * size)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_kernel_from_times_is_accurate_over_the_window(noise: Schedule) -> None:
    low, high = (-8.0, 8.0) if noise.diverges else noise.window()
    lam = np.linspace(low, high, 50)
    row = schedule_row(noise, torch.from_numpy(noise.time(lam)))
    np.testing.assert_allclose(row.lam, lam, atol=1e-6)
    np.testing.assert_allclose(row.sigma, noise.at(lam).sigma, rtol=1e-6)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
def test_control_is_finite_at_both_ends(noise: Schedule) -> None:
    net = preconditioned(noise)
    torch.nn.init.ones_(net.last.weight)
    with torch.no_grad():
        e = net(torch.ones(2, 3), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.isfinite(e[1]).all()
    assert not torch.isnan(e).any()


def test_directions_without_variance() -> None:
    net = ControlMLP(2, width=8, rng=0)
    net.precondition([0.0, 1.0], [[1.0, 0.0], [0.0, 0.0]], VP())
    row = VP().at(4.0)
    x = torch.tensor([[0.3, float(row.alpha) + 0.1]])
    e = net(x, torch.tensor([float(row.time)], dtype=torch.float64)).detach()
    assert float(e[0, 1]) == pytest.approx(-0.1 / float(row.sigma) ** 2 + float(x[0, 1]), rel=1e-4)


def test_jacobian_by_forward_and_reverse_mode() -> None:
    net = preconditioned(VP()).double()
    torch.nn.init.normal_(net.last.weight, generator=torch.Generator().manual_seed(0))
    x, t = torch.ones(4, 3, dtype=torch.float64), torch.full((4,), 0.2, dtype=torch.float64)
    tangents = torch.eye(3, dtype=torch.float64)[:, None, :].expand(3, 4, 3)
    forward = torch.func.vmap(lambda v: torch.func.jvp(lambda y: net(y, t), (x,), (v,))[1])(tangents)
    reverse = torch.autograd.functional.jacobian(lambda y: net(y, t).sum(0), x)
    torch.testing.assert_close(forward.permute(2, 1, 0), reverse)


@pytest.mark.parametrize("dim", [3, 6, 9])
def test_published_parameter_count(dim: int) -> None:
    net = EntropyMLP(dim, rng=0)
    assert sum(weight.numel() for weight in net.parameters() if weight.requires_grad) == 1_314_816 + 257 * dim
    assert net(torch.zeros(2, dim), torch.zeros(2, dtype=torch.float64)).shape == (2, dim)


@pytest.mark.parametrize("build", [ControlMLP, EntropyMLP])
def test_rng_fixes_the_weights_and_leaves_global_state_alone(build: type[ControlMLP] | type[EntropyMLP]) -> None:
    before = torch.random.get_rng_state()
    first, second, other = build(2, rng=5), build(2, rng=5), build(2, rng=6)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(next(first.parameters()), next(other.parameters())) or build is ControlMLP
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_errors() -> None:
    net = ControlMLP(2, rng=0)
    with pytest.raises(ValueError, match="no moments yet; call precondition"):
        net(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"dim=2, got mean \(3,\)"):
        net.precondition(MEAN, COV[:2, :2], VP())
    with pytest.raises(ValueError, match="the data must vary"):
        net.precondition([0.0, 0.0], np.zeros((2, 2)), VP())
    with pytest.raises(ValueError, match="dim must be at least 1"):
        ControlMLP(0)


def test_times_may_be_expanded_or_float32() -> None:
    net = preconditioned(VP())
    x, t = torch.ones(4, 3), torch.tensor([0.25], dtype=torch.float64)
    full = net(x, t.repeat(4))
    torch.testing.assert_close(net(x, t.expand(4)), full)
    torch.testing.assert_close(net(x, t.float().expand(4)), full)
    torch.testing.assert_close(net(x, t.expand(4).clone().requires_grad_()), full)


@pytest.mark.parametrize("distinct", [1, 3, 8])
def test_repeated_times_are_evaluated_once_and_change_nothing(distinct: int) -> None:
    net, seen = EntropyMLP(2, rng=0), []
    net.embed_t.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, distinct, dtype=torch.float64)[torch.arange(8) % distinct].float()
    single = torch.cat([net(x[k : k + 1], t[k : k + 1]) for k in range(8)])
    slopes = torch.autograd.grad(single.square().sum(), list(net.parameters()))
    seen.clear()
    out = net(x, t)
    assert seen == [distinct]
    torch.testing.assert_close(out, single)
    for one, two in zip(torch.autograd.grad(out.square().sum(), list(net.parameters())), slopes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_jacobian_of_the_published_network_with_one_time() -> None:
    net = EntropyMLP(3, rng=0).double()
    x, t = torch.ones(4, 3, dtype=torch.float64), torch.full((4,), 0.2, dtype=torch.float64)
    tangents = torch.eye(3, dtype=torch.float64)[:, None, :].expand(3, 4, 3)
    forward = torch.func.vmap(lambda v: torch.func.jvp(lambda y: net(y, t), (x,), (v,))[1])(tangents)
    reverse = torch.autograd.functional.jacobian(lambda y: net(y, t).sum(0), x)
    torch.testing.assert_close(forward.permute(2, 1, 0), reverse)


def test_the_frequencies_of_the_published_network() -> None:
    # The published program multiplies 10 by normals of width 0.01.
    draws = torch.cat(
        [torch.cat([net.frequencies_x.flatten(), net.frequencies_t.flatten()]) for net in map(published, range(4))]
    )
    z = (draws.square().mean() / 0.1**2 - 1.0) / np.sqrt(2.0 / draws.numel())
    assert abs(float(z)) < 4.0


def published(seed: int) -> EntropyMLP:
    return EntropyMLP(9, rng=seed)


def test_control_mlp_takes_a_single_point() -> None:
    """As vmap calls it."""
    net = ControlMLP(3, 8, 2, rng=0)
    net.precondition(np.arange(3.0), np.eye(3), VP())
    x, t = torch.randn(5, 3), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.equal(net(x[0], t[0]), net(x[:1], t[:1]))
    each = torch.func.vmap(lambda point: net(point, t[1]))(x)
    torch.testing.assert_close(each[:, 0], net(x, t[1].expand(5)))
