"""A small U-Net for images of any size: the published one, with self-attention and class labels on request.

Four levels of width 32, 64, 128 and 256, joined by strided convolutions on the way down and transposed ones on the way
up, with the features of the way down set beside those of the way up.  At each level

    h = swish(GroupNorm(convolution(h) + dense(time)))

With one channel, no padding, no attention and no classes it is the network of the published MNIST experiments, with its
1,115,297 trainable parameters (Premkumar, 2409.03817, who follows Song et al., 2011.13456).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from thermodiff._check import count
from thermodiff.learned.networks import torch_generator

EMBEDDING = 256
"""Length of the embedding of time and class."""
TIME_SCALE = 30.0
"""Spread of the frozen frequencies of the time, in periods per unit time."""


class UNet(nn.Module):
    """U-Net for images (n, channels, height, width) of any size.

    Parameters
    ----------
    channels : int
        Channels of the images.
    widths : sequence of int
        Features of each level, multiples of 4.
    attention : sequence of int
        Levels, counted from 0, the full size, after which pixels attend to each other.
    classes : int, optional
        Number of classes of a conditional network: called as ``net(x, t, y)`` with labels y (n,); without y, or where
        y equals ``classes``, for images of no stated class.
    padding : {1, 0}
        Pixels of zeros around the input of each convolution.  0 as published; four levels then need 17 pixels a side.
    rng : int, SeedSequence, Generator or None
        Draws the frequencies and the initial weights.
    """

    predicts = "entropy"
    learning_rate = 1e-3
    frequencies: torch.Tensor

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        *,
        attention: Sequence[int] = (),
        classes: int | None = None,
        padding: int = 1,
        rng: Any = None,
    ) -> None:
        super().__init__()
        self.channels, self.widths = count("channels", channels), [count("widths", width) for width in widths]
        self.attention, self.padding = sorted({count("attention", level, 0) for level in attention}), padding
        self.classes = None if classes is None else count("classes", classes)
        if not self.widths or any(width % 4 for width in self.widths):
            raise ValueError(f"widths must be multiples of 4, one for each level, got {tuple(widths)}.")
        if self.attention and self.attention[-1] >= len(self.widths):
            raise ValueError(f"attention names levels 0 ... {len(self.widths) - 1}, got {tuple(attention)}.")
        if padding not in (0, 1):
            raise ValueError(f"padding must be 1, or 0 as published, got {padding!r}.")
        with torch.device("meta"):
            self._build()
        self.to_empty(device="cpu")
        self._start(torch_generator(rng))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that build a network of this shape."""
        names = ("channels", "widths", "attention", "classes", "padding")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Give the control at images ``x`` (n, channels, height, width) and times ``t`` (n,); shape of ``x``."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"UNet takes images (n, {self.channels}, height, width), got {tuple(x.shape)}.")
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"UNet with {len(self.widths)} levels and padding={self.padding} takes images of {self.smallest} "
                f"pixels and more a side, got {x.shape[2]} x {x.shape[3]}; use padding=1 or fewer levels."
            )
        clock = self._embedding(t, y)
        kept: list[torch.Tensor] = []
        h = x
        for level in self.down:
            h = level(h, clock)
            kept.append(h)
        for level, skip in zip(self.up, kept[-2::-1], strict=True):
            h = torch.cat([level(h, clock, skip.shape[2:]), skip], 1)
        return self.last(h)

    @property
    def smallest(self) -> int:
        """Least number of pixels a side."""
        return 1 if self.padding else 2 ** len(self.widths) + 1

    def _build(self) -> None:
        count_in, last = self.channels, len(self.widths) - 1
        self.register_buffer("frequencies", torch.empty(EMBEDDING // 2))
        self.embed = nn.Linear(EMBEDDING, EMBEDDING)
        self.embed_class = None if self.classes is None else nn.Embedding(self.classes + 1, EMBEDDING)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k, width in enumerate(self.widths):
            layer = nn.Conv2d(count_in, width, 3, stride=2 if k else 1, padding=self.padding, bias=False)
            self.down.append(_Level(layer, width, k, k in self.attention))
            count_in = width
        for k, width in reversed(list(enumerate(self.widths[:-1]))):
            beside = self.widths[k + 1] * (1 if k + 1 == last else 2)
            layer = nn.ConvTranspose2d(beside, width, 3, stride=2, padding=self.padding, bias=False)
            self.up.append(_Level(layer, width, 1, k in self.attention))
        beside = self.widths[0] * (1 if last == 0 else 2)
        self.last = nn.ConvTranspose2d(beside, self.channels, 3, padding=self.padding)

    def _start(self, draws: torch.Generator) -> None:
        """Uniform weights of variance 1 / inputs, no offsets: the usual start of the library of the published runs."""
        with torch.no_grad():
            self.frequencies.normal_(0.0, TIME_SCALE, generator=draws)
            for module in self.modules():
                if isinstance(module, nn.GroupNorm):
                    module.reset_parameters()
                elif isinstance(module, nn.Embedding):
                    module.weight.normal_(0.0, 1.0, generator=draws)
                elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    # A transposed convolution holds (inputs, outputs, 3, 3), the others (outputs, inputs, ...).
                    axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1
                    bound = math.sqrt(3.0 / (module.weight.shape[axis] * module.weight[0, 0].numel()))
                    module.weight.uniform_(-bound, bound, generator=draws)
                    if module.bias is not None:
                        module.bias.zero_()
            for module in self.modules():
                if isinstance(module, _Attention):
                    module.out.weight.zero_()

    def _embedding(self, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        kind = self.embed.weight.dtype
        angle = (2.0 * math.pi) * t[:, None].to(kind) * self.frequencies.to(kind)
        clock = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        if self.embed_class is None:
            if y is not None:
                raise ValueError("this UNet knows no classes; build it with classes=... to give labels.")
        else:
            label = y if y is not None else torch.full(t.shape, self.embed_class.num_embeddings - 1, device=t.device)
            clock = clock + self.embed_class(label)
        return nn.functional.silu(clock)


class _Level(nn.Module):
    """Convolution, time, normalisation, swish; then attention where asked for."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, width: int, depth: int, attends: bool) -> None:
        super().__init__()
        self.layer, self.time = layer, nn.Linear(EMBEDDING, width)
        # As published: 4 groups at the full size, else 32.  Narrow layers have groups of 4, since a group of one feature
        # would lose the time.
        self.norm = nn.GroupNorm(_groups(width) if depth else 4, width, eps=1e-6)
        self.attention = _Attention(width) if attends else None

    def forward(self, h: torch.Tensor, clock: torch.Tensor, size: torch.Size | None = None) -> torch.Tensor:
        h = self.layer(h) if size is None else self.layer(h, output_size=size)
        h = nn.functional.silu(self.norm(h + self.time(clock)[:, :, None, None]))
        return h if self.attention is None else self.attention(h)


def _groups(width: int) -> int:
    return 32 if width % 32 == 0 else width // 4


class _Attention(nn.Module):
    """Pixels attend to each other, with one head; added to its input, and nothing at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(width), width, eps=1e-6)
        self.inner, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        query, key, value = self.inner(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, 2)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return h + self.out(mixed.transpose(1, 2).reshape(h.shape))
