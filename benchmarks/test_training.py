"""One training step of the published networks: thermodiff beside Flax, with the same network and batch.

The network of the published transport experiments (Premkumar, 2409.03817) in Flax: frozen Gaussian Fourier features of
256 frequencies for x and t, dense layers of 512 with a sigmoid, then widths 512 and 256 with the time added before
LayerNorm and sigmoid, and a dense layer to D = 3; the published loss on 32 points with 10 noise draws each; Adam.  Both
draw their batches within the step.  Then the published U-Net for 28 x 28 images, 1,115,297 weights, batch 32.  Run with

    pytest benchmarks/test_training.py --benchmark-only

The goal is at most 60 % of the time of Flax.  Both use as many threads as they take by default: leave the machine alone.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

import thermodiff as td

DIM, POINTS, THROWS, RATE = 3, 32, 10, 1e-4


def flax_mlp() -> tuple[Any, int, int]:
    """The network for vectors, the number of its trained weights, and of those that are frozen."""
    jax, nn = (pytest.importorskip(name) for name in ("jax", "flax.linen"))
    jnp = jax.numpy

    class Waves(nn.Module):
        @nn.compact
        def __call__(self, values: Any) -> Any:
            frequencies = self.param("frequencies", nn.initializers.normal(0.1), (values.shape[-1], 256))
            angle = 2.0 * math.pi * values @ jax.lax.stop_gradient(frequencies)
            return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any, t: Any) -> Any:
            clock = nn.sigmoid(nn.Dense(512)(Waves()(t)))
            h = nn.sigmoid(nn.Dense(512)(Waves()(x)))
            for width in (512, 256):
                h = nn.sigmoid(nn.LayerNorm()(nn.Dense(width)(h) + nn.Dense(width)(clock)))
            return nn.Dense(DIM)(h)

    return Network(), 1_314_816 + 257 * DIM, 256 * (DIM + 1)


def flax_unet() -> tuple[Any, int, int]:
    """The network for images (channels last, as Flax has them), and the numbers of its weights."""
    jax, nn = (pytest.importorskip(name) for name in ("jax", "flax.linen"))
    jnp, widths = jax.numpy, (32, 64, 128, 256)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any, t: Any) -> Any:
            frequencies = self.param("frequencies", nn.initializers.normal(30.0), (128,))
            angle = 2.0 * math.pi * t.reshape(-1, 1) * jax.lax.stop_gradient(frequencies)
            clock = nn.swish(nn.Dense(256)(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)))

            def level(h: Any, width: int, groups: int, **options: Any) -> Any:
                h = nn.Conv(width, (3, 3), use_bias=False, **options)(h)
                return nn.swish(nn.GroupNorm(groups)(h + nn.Dense(width)(clock)[:, None, None, :]))

            kept, h = [], x
            for k, width in enumerate(widths):
                h = level(h, width, 32 if k else 4, strides=(2, 2) if k else (1, 1), padding="VALID")
                kept.append(h)
            for width, skip, more in zip(widths[-2::-1], kept[-2::-1], (2, 3, 3), strict=True):
                up = level(h, width, 32, padding=((2, more), (2, more)), input_dilation=(2, 2))
                h = jnp.concatenate([up, skip], -1)
            return nn.Conv(1, (3, 3), padding=((2, 2), (2, 2)))(h)

    return Network(), 1_115_297, 128


def flax_step(kind: str, data: np.ndarray, published: bool = False) -> Any:
    """A function without arguments that makes one step.

    ``published``: as the published loop makes it, which compiles the gradient, Adam's change and its addition apart, keeps
    the old weights meanwhile, and asks the network for vectors at arrays of points by draws; else in the fastest way that
    we found, all of it compiled as one, in place, with the samples in one row.
    """
    jax, optax = (pytest.importorskip(name) for name in ("jax", "optax"))
    jnp = jax.numpy
    net, trained, frozen = flax_mlp() if kind == "mlp" else flax_unet()
    optimiser, throws = optax.adam(RATE), THROWS if kind == "mlp" else 1
    points, n = jnp.asarray(data, jnp.float32), POINTS * throws
    if kind == "unet":
        points = jnp.moveaxis(points, 1, -1)

    def loss(weights: Any, key: Any) -> Any:
        which, when, noise = jax.random.split(key, 3)
        x0 = jnp.repeat(points[jax.random.randint(which, (POINTS,), 0, len(points))], throws, axis=0)
        if kind == "mlp" and published:
            x0 = x0.reshape(POINTS, throws, DIM)
        axes = x0.shape[:-1] if kind == "mlp" else (n, 1, 1)
        t = jax.random.uniform(when, (*axes, 1), minval=1e-5, maxval=1.0 - 1e-5)
        z = jax.random.normal(noise, x0.shape)
        integral = 0.1 * t + 0.5 * 15.9 * t * t
        alpha, sigma = jnp.exp(-0.5 * integral), jnp.sqrt(-jnp.expm1(-integral))
        y = alpha * x0 + sigma * z
        return jnp.sum(jnp.square(sigma * (net.apply(weights, y, t) - y) + z)) / n

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights: Any, state: Any, key: Any) -> Any:
        value, slope = jax.value_and_grad(loss)(weights, key)
        change, state = optimiser.update(slope, state)
        return optax.apply_updates(weights, change), state, value

    slope_of = jax.jit(jax.value_and_grad(loss))
    change_of, sum_of = jax.jit(optimiser.update), jax.jit(optax.apply_updates)

    def update_as_published(weights: Any, state: Any, key: Any) -> Any:
        value, slope = slope_of(weights, key)
        change, state = change_of(slope, state)
        return sum_of(weights, change), state, value

    first = points[:1]
    weights = net.init(jax.random.PRNGKey(0), first, jnp.zeros((1,) * first.ndim))
    assert sum(entry.size for entry in jax.tree.leaves(weights)) == trained + frozen
    kept = [weights, optimiser.init(weights), jax.random.PRNGKey(1)]

    def step() -> float:
        kept[2], key = jax.random.split(kept[2])
        kept[0], kept[1], value = (update_as_published if published else update)(kept[0], kept[1], key)
        jax.block_until_ready(kept[0])
        return float(value)

    return step


def torch_step(kind: str, data: np.ndarray, paired: bool = False, precision: str = "float32") -> Any:
    """The same of `thermodiff.learned.train`: its stream, loss and optimiser, with clipping and averaged weights.

    ``paired``: with the times that it draws unless told otherwise, two samples at each; else with the published ones.
    ``precision``: that of the multiplications, as `train` takes it.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from thermodiff.learned import EntropyMLP, UNet, denoising_loss
    from thermodiff.learned.batches import LamProposal, Source, Stream, lam_rows, time_rows
    from thermodiff.learned.caller import Caller
    from thermodiff.learned.optimiser import Optimiser
    from thermodiff.learned.parallel import processes

    net: Any = EntropyMLP(DIM, rng=0) if kind == "mlp" else UNet(1, padding=0, rng=0)
    noise, batch = td.VP(), POINTS * (THROWS if kind == "mlp" else 1)
    source, rows = Source(data), partial(time_rows, noise, False)
    if paired:
        rows = partial(lam_rows, noise, LamProposal(noise, *noise.window(), source.variances()), True)
    stream = Stream(source, rows, batch, paired, (0, 1), torch.device("cpu"))
    if precision == "bf16":
        net = net.to(memory_format=torch.channels_last)
    with processes(torch.device("cpu")) as group:
        caller = Caller(net.train(), group, torch.device("cpu"), precision, False, (0, 1))
    optimiser, count = Optimiser(net, RATE, 0.998, 10**6), [0]

    def step() -> float:
        x0, z, row, weights, _ = stream(count[0])
        count[0] += 1
        loss = denoising_loss(caller.at(count[0], None), x0, z, row, noise, "entropy", weights)
        optimiser.clear()
        loss.backward()
        optimiser.step(count[0])
        return float(loss.detach())

    return step


WAYS: dict[str, dict[str, Any]] = {
    "thermodiff": {},
    "thermodiff, paired times": {"paired": True},
    "thermodiff, bf16": {"precision": "bf16"},
}
FLAX: dict[str, dict[str, Any]] = {"Flax": {}, "Flax, published loop": {"published": True}}


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize("name", [*WAYS, *FLAX])
def test_step_of_the_published_network(benchmark, name, kind):
    rng = np.random.default_rng(0)
    vectors = kind == "mlp"
    data = td.paper_mixture(DIM).sample(8192, rng) if vectors else rng.random((1000, 1, 28, 28), dtype=np.float32)
    step = flax_step(kind, data, **FLAX[name]) if name in FLAX else torch_step(kind, data, **WAYS[name])
    losses = [step() for _ in range(10)]
    if name == "Flax, published loop":  # the same work by the same draws
        fastest = flax_step(kind, data)
        np.testing.assert_allclose(losses, [fastest() for _ in losses], rtol=1e-4)
    losses += [benchmark.pedantic(step, rounds=100 if vectors else 30, warmup_rounds=5)]
    benchmark.extra_info["least milliseconds"] = 1e3 * benchmark.stats.stats.min
    assert np.all(np.isfinite(losses))
