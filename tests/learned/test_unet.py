"""The U-Net: the published size, images of any size, labels, attention, initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thermodiff.learned.unet import UNet

T = torch.tensor([0.2, 0.9])


def images(channels: int, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def small(**options):
    return UNet(**{"channels": 1, "widths": (8, 8, 16), "rng": 0, **options})


@pytest.mark.parametrize("padding", [0, 1])
def test_published_parameter_count(padding):
    net = UNet(1, padding=padding, rng=0)
    assert sum(weight.numel() for weight in net.parameters() if weight.requires_grad) == 1_115_297


def test_published_sizes_of_the_levels():
    """28 -> 26 -> 12 -> 5 -> 2 without padding, as in the published code."""
    net, seen = UNet(1, padding=0, rng=0), []
    for level in net.down:
        level.register_forward_hook(lambda module, given, out: seen.append(out.shape[2]))
    net(images(1, 28, 28), T)
    assert seen == [26, 12, 5, 2]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (17, 17), (28, 28), (31, 32), (1, 5)])
def test_any_size(size, padding):
    net = small(channels=3, padding=padding)
    assert net.smallest == (1 if padding else 9)
    if min(size) < net.smallest:
        with pytest.raises(ValueError, match=f"takes images of 9 pixels and more a side, got {size[0]} x {size[1]}"):
            net(images(3, *size), T)
    else:
        assert net(images(3, *size), T).shape == (2, 3, *size)


def test_output_depends_on_all_that_is_given():
    net, x = small(classes=3, attention=(1,)), images(1, 8, 8)
    y = torch.tensor([0, 1])
    out = net(x, T, y)
    assert not torch.allclose(out, net(x + 0.1, T, y))
    assert not torch.allclose(out, net(x, T + 0.1, y))
    assert not torch.allclose(out, net(x, T, 1 - y))
    assert not torch.allclose(out, net(x, T))
    torch.testing.assert_close(net(x, T), net(x, T, torch.tensor([3, 3])))


def test_one_image_does_not_see_the_others():
    net, x = small(attention=(0, 2)), images(1, 9, 8)
    torch.testing.assert_close(net(x, T)[:1], net(x[:1], T[:1]))


def test_attention_adds_nothing_at_the_start_and_reaches_far_later():
    x = images(1, 32, 32)
    net = small(widths=(8,), attention=(0,))
    far = x.clone()
    far[:, :, 0, 0] += 3.0
    last = net(x, T)[:, :, -1, -1]
    torch.testing.assert_close(net.down[0].attention(x.expand(-1, 8, -1, -1)), x.expand(-1, 8, -1, -1))
    with torch.no_grad():
        net.down[0].attention.out.weight.fill_(0.5)
    assert (net(far, T)[:, :, -1, -1] - net(x, T)[:, :, -1, -1]).abs().min() > 0.0
    assert not torch.allclose(net(x, T)[:, :, -1, -1], last)


def test_every_weight_gets_a_gradient():
    net = small(classes=2, attention=(1,))
    net(images(1, 8, 8), T, torch.tensor([0, 2])).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        # Behind the attention's zero weights nothing moves at the first step.
        assert torch.any(weight.grad != 0.0) or ".attention.norm" in name or ".attention.inner" in name, name


def test_rng_fixes_the_weights_and_leaves_global_state_alone():
    before = torch.random.get_rng_state()
    first, second, other = small(rng=5), small(rng=5), small(rng=6)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.frequencies, other.frequencies)
    spread = UNet(1, rng=0).down[3].layer.weight.std().item()
    assert spread == pytest.approx(np.sqrt(1.0 / (128 * 9)), rel=0.01)


def test_arguments_build_the_same_shape():
    net = small(attention=(2, 1), classes=4)
    again = UNet(**net.arguments)
    assert {n: v.shape for n, v in net.state_dict().items()} == {n: v.shape for n, v in again.state_dict().items()}
    assert again.arguments == net.arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "one for each level"),
        ({"widths": (8, 9)}, "multiples of 4"),
        ({"attention": (3,)}, r"levels 0 \.\.\. 2, got \(3,\)"),
        ({"padding": 2}, "padding must be 1, or 0 as published, got 2"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
    ],
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_refused_inputs():
    with pytest.raises(ValueError, match=r"takes images \(n, 1, height, width\), got \(2, 3, 8, 8\)"):
        small()(images(3, 8, 8), T)
    with pytest.raises(ValueError, match="knows no classes; build it with classes="):
        small()(images(1, 8, 8), T, torch.tensor([0, 1]))
