"""Neural entropy against the size of the training set, on images: the published storage experiment.

Premkumar (2409.03817) trains one U-Net on N images and finds that S_NN, on images held out, grows by a nearly constant
amount for each e-fold of N.  Here all N get equal numbers of optimiser steps, and S_NN is measured in two ways:

- "lam": Gauss-Legendre nodes in log-SNR up to a stated lam_max, on held-out and on training images;
- "paper": 500 times uniform in [1e-5, 1], the first dropped, by the trapezoidal rule, on held-out images, as published.

The first of the times that are kept lies at lam = 8.36, which is also the default of lam_max: both are then integrals over
the same window, and differ by the error of the published rule alone.  Entropies depend on the range of the data; grey
levels are mapped onto [0, 1], not centred, as published.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import seed_words, write_atomically
from thermodiff._progress import Progress, reporting
from thermodiff.accounting import Estimate, account
from thermodiff.accounting.ledger import standard_error
from thermodiff.diffusion import medium_integral
from thermodiff.experiments.store import Store
from thermodiff.schedules import VP, Row, Schedule

if TYPE_CHECKING:
    from thermodiff.learned import Images, LearnedDiffusion, UNet

FloatArray = npt.NDArray[np.float64]

SIZES = (100, 1000, 9000)
STEPS = (2500, 20_000)
GRIDS = {"lam": ("held-out", "training"), "paper": ("held-out",)}
"""Ways to integrate, and the images on which each is done."""
NOISE = VP()
SPAN = (0.0, 1.0)
BATCH = 32
"""In training as published; in measuring a quarter faster than larger ones, whose activations leave the cache."""
EVERY = 250
"""Steps from one saved state of a training to the next."""
HELD_OUT = {"digits": 297}
MOST_HELD_OUT = 1000
"""The last images of a file without test images; of such a file with them the first are used."""

TIMES = np.linspace(1e-5, 1.0, 500)[1:]
"""The published grid."""
LAM_MAX = float(NOISE.lam(TIMES[0]))

PUBLISHED = {
    "MNIST": {100: 1384.0, 1000: 1727.0, 10_000: 2200.0, 30_000: 2414.0, 60_000: 2543.0},
    "CIFAR-10": {100: 5075.0, 1000: 8423.0, 10_000: 11063.0, 30_000: 12330.0, 50_000: 13230.0},
}
"""S_NN on 1000 test images, read off the published figure to 25 nats; lengths of training are not published."""
READ_TO = 25.0
SHAPES: dict[tuple[int, ...], str] = {(1, 28, 28): "MNIST", (3, 32, 32): "CIFAR-10"}


class Run(NamedTuple):
    """One training."""

    n: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"N={self.n}-steps={self.steps}-seed={self.seed}"


@dataclass(frozen=True)
class Budget:
    """What each network is measured with."""

    lam_max: float = LAM_MAX
    nodes: int = 48
    images: int = 1000
    """For the nodes in log-SNR."""
    paper_images: int = 500
    """For each of the published times."""
    sheet: int = 64
    sheet_steps: int = 250

    @property
    def window(self) -> tuple[float, float]:
        """From the noise end of the schedule to lam_max."""
        return float(NOISE.lam(NOISE.t_end)), self.lam_max


def runs(sizes: Sequence[int], steps: Sequence[int], seeds: int) -> list[Run]:
    """All trainings, the shortest first; what is named twice is done once, since it is no further seed."""
    return [Run(n, number, seed) for number in sorted(set(steps)) for n in sorted(set(sizes)) for seed in range(seeds)]


def read(data: str) -> tuple[Images, Images]:
    """Images to train on, and the held-out ones, of "digits" or a FILE.npz."""
    from thermodiff.learned import read_images

    return read_images(data, HELD_OUT.get(data, MOST_HELD_OUT), span=SPAN)


def chosen(images: Images, n: int) -> Images:
    """The first n / classes images of each class, in the order of the file; the first n of images without labels.

    Raises
    ------
    ValueError
        Where there are too few.
    """
    if not 2 <= n <= len(images):
        raise ValueError(f"--n {n}: there are {len(images)} images to train on; choose 2 to {len(images)}.")
    if images.labels is None or n == len(images):
        return images[:n]
    labels = images.labels.numpy()
    kinds, counts = np.unique(labels, return_counts=True)
    each = n // len(kinds)
    if each * len(kinds) != n or each > counts.min():
        raise ValueError(
            f"--n {n} cannot be shared equally by {len(kinds)} classes of {counts.min()} images and more; choose a multiple "
            f"of {len(kinds)} up to {len(kinds) * counts.min()}, or all {len(images)}."
        )
    return images[np.sort(np.concatenate([np.flatnonzero(labels == kind)[:each] for kind in kinds]))]


@dataclass(frozen=True)
class Experiment:
    """Data, settings, and a folder with what has been done: networks/, runs/, samples/."""

    train: Images
    held_out: Images
    folder: Path
    lr: float | None = None
    constant: bool = False
    """Whether the rate stays as it is, and weights are not averaged, as published."""
    budget: Budget = Budget()
    progress: bool = True

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value of the training images."""
        values = np.asarray(self.train)
        return float(values.min()), float(values.max())

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs share."""
        from thermodiff.learned.batches import Source

        net, data = self.network(0), (self.train, self.held_out)
        return {
            "network": type(net).__name__,
            "arguments": net.arguments,
            "data": [Source(images).fingerprint() for images in data],
            "range": list(self.range),
            "noise": NOISE.to_dict(),
            "loss": "unweighted, times uniform",
            "batch": BATCH,
            "lr": net.learning_rate if self.lr is None else self.lr,
            **({"rate": "constant"} if self.constant else {}),
            **asdict(self.budget),
        }

    @property
    def store(self) -> Store:
        """Records on disk."""
        return Store(self.folder / "runs", self.settings)

    def trainings(self, todo: Sequence[Run]) -> list[dict[str, Any]]:
        """Seconds and last loss of the trainings that are done."""
        store = self.store
        return [record for run in todo if (record := store.load(f"{run.name}-training")) is not None]

    def carry_out(self, todo: Sequence[Run], grids: Sequence[str], say: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
        """Records of all measurements; what is on disk is not done again, and each new one is written at once."""
        store, bar = self.store, None if self.progress else False
        for run in todo:
            names = {(grid, part): f"{run.name}-{grid}-{part}" for grid in grids for part in GRIDS[grid]}
            found = {place: store.load(name) for place, name in names.items()}
            if self.sheet(run).exists() and all(found.values()):
                yield from (record for record in found.values() if record is not None)
                continue
            net = self.fit(run, store, say)
            for (grid, part), record in found.items():
                if record is None:
                    say(f"{run.name}: S_NN on {part} images, grid {grid}")
                    record = self.measure(net, run, grid, part, bar)
                    store.save(names[grid, part], record)
                yield record
            if not self.sheet(run).exists():
                say(f"{run.name}: samples")
                self.generate(net, run)

    def network(self, seed: int) -> UNet:
        """The published U-Net, untrained; convolutions of images that are too small for it are padded."""
        from thermodiff.learned import UNet

        channels, *sides = self.train.shape
        smallest = UNet(channels, padding=0, rng=seed).smallest
        return UNet(channels, padding=0 if min(sides) >= smallest else 1, rng=seed)

    def fit(self, run: Run, store: Store, say: Callable[[str], Any]) -> UNet:
        """The trained network: from disk, or trained from the last state on disk."""
        from thermodiff.learned import load_weights, train

        name, path, net = f"{run.name}-training", self.folder / "networks" / run.name, self.network(run.seed)
        if store.load(name) is not None and path.with_name(f"{run.name}.safetensors").exists():
            load_weights(net, path)
            return net.eval()
        say(f"{run.name}: training")
        metrics = self.folder / "networks" / f"{run.name}.jsonl"
        metrics.parent.mkdir(parents=True, exist_ok=True)
        plain: dict[str, Any] = {"decay": False, "ema": 0.0} if self.constant else {}
        train(
            net, chosen(self.train, run.n), NOISE, steps=run.steps, batch=BATCH, lr=self.lr, rng=run.seed, times="uniform",
            likelihood=False, checkpoint=path, every=EVERY, metrics=metrics, progress=self.progress,
            **plain,
        )  # fmt: skip
        store.save(name, {**run._asdict(), **_training(metrics)})
        # The weights are enough from here on, and a quarter of its size.
        path.with_name(f"{run.name}.state.safetensors").unlink()
        return net

    def measure(self, net: UNet, run: Run, grid: str, part: str, progress: Progress = None) -> dict[str, Any]:
        """S_NN on images of a part, in nats, with standard errors by image."""
        from thermodiff.learned import LearnedDiffusion

        most = self.budget.images if grid == "lam" else self.budget.paper_images
        images = self.held_out if part == "held-out" else chosen(self.train, run.n)
        images = images[: min(most, len(images))]
        model = LearnedDiffusion(net, images, NOISE, batch=BATCH)
        # Whole rounds of the images, so that all have equal weight.
        samples = len(images) * max(1, round(most / len(images)))
        begin = time.perf_counter()
        if grid == "lam":
            found = by_nodes(model, self.budget.window, self.budget.nodes, samples, run.seed, progress)
        else:
            found = {"neural": by_times(model, TIMES, samples, run.seed, progress).to_dict()}
        seconds = round(time.perf_counter() - begin, 2)
        return {**run._asdict(), "grid": grid, "part": part, "images": len(images), **found, "seconds": seconds}

    def sheet(self, run: Run) -> Path:
        """Where the samples of a network are: grey levels, uint8, (number, channels, height, width)."""
        return self.folder / "samples" / f"{run.name}.npy"

    def generate(self, net: UNet, run: Run) -> None:
        """Draw samples and write them."""
        from thermodiff.learned import LearnedDiffusion

        model, (low, high) = LearnedDiffusion(net, self.held_out, NOISE, batch=BATCH), self.range
        options: dict[str, Any] = {"steps": self.budget.sheet_steps, "lam": self.budget.window, "rng": run.seed}
        images = model.sample(self.budget.sheet, method="exponential", **options)
        levels = np.clip(255.0 * (images - low) / (high - low), 0.0, 255.0).round().astype(np.uint8)
        buffer = io.BytesIO()
        np.save(buffer, levels)
        write_atomically(self.sheet(run), buffer.getvalue())


def read_samples(path: Path) -> npt.NDArray[np.uint8]:
    """The samples of a network that `Experiment.generate` wrote.

    Raises
    ------
    ValueError
        For a file that does not hold them.
    """
    try:
        with path.open("rb") as file:
            levels = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception:
        levels = None  # NumPy has many kinds of error for a damaged header; one advises to load the file unsafely
    if not isinstance(levels, np.ndarray) or levels.dtype != np.uint8 or levels.ndim != 4:
        raise ValueError(
            f"{path} is damaged: it must hold samples, uint8, (number, channels, height, width); delete it, and the same "
            "call draws them again."
        )
    return levels


def _training(metrics: Path) -> dict[str, float]:
    """The last loss, and the seconds of all sittings, from the lines of a training."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    # They start again from zero with each sitting.
    ends = [one for one, following in zip(seconds, [*seconds[1:], 0.0], strict=True) if following < one]
    return {"loss": lines[-1]["loss"], "training seconds": round(sum(ends), 1)}


def by_nodes(
    model: LearnedDiffusion, window: tuple[float, float], nodes: int, samples: int, rng: int, progress: Progress = None
) -> dict[str, Any]:
    """An account: S_NN, denoising, the curve over log-SNR, and what the last half of the nodes changed in S_NN."""
    options: dict[str, Any] = {"samples": samples, "lam": window, "rng": rng, "progress": progress}
    ledger, coarse = (account(model, nodes=number, **options) for number in (nodes, nodes // 2))
    # Equal keys: sample i starts from the same image in both.
    gap = ledger.samples["neural"] - coarse.samples["neural"]
    return {
        **{row: ledger.total(row).to_dict() for row in ("neural", "denoising")},
        "convergence": Estimate(float(gap.mean()), standard_error(gap, ledger.clusters)).to_dict(),
        "window": list(window),
        "lam": ledger.lam.tolist(),
        "rate": ledger.rate("neural", per="lam").tolist(),
        "rate error": ledger.error("neural", per="lam").tolist(),
        "up to the data": ledger.cumulative("neural").tolist(),
    }


def by_times(model: LearnedDiffusion, times: FloatArray, samples: int, rng: int, progress: Progress = None) -> Estimate:
    """S_NN as the integral of its rate over given times, by the trapezoidal rule."""
    key, integrals, gaps = seed_words(rng), np.zeros(samples), np.diff(times)
    weights = 0.5 * (np.append(gaps, 0.0) + np.append(0.0, gaps))
    with reporting(progress, "published grid") as report:
        for k, t in enumerate(times):
            row = Row(*(float(entry) for entry in model.noise.at(model.noise.lam(t))))
            x = model.data.draw(key, k, row.alpha, row.sigma, samples)[0].T
            control = 2.0 * row.growth / row.sigma * x + model.field.values(x, row)
            rate = float(model.noise.diffusivity(t)) / row.sigma**2 * np.einsum("nd,nd->n", control, control)
            integrals += weights[k] * rate
            report(k + 1, times.size)
    return Estimate(float(integrals.mean()), standard_error(integrals, model.clusters))


def gaussian_part(points: FloatArray, noise: Schedule, window: tuple[float, float]) -> Estimate:
    """Entropy production of the Gaussian with the moments of the law of points (n, d); nats, error by point.

    The bias that may be left by the moments of n points is in the error; see `thermodiff.learned.gaussian`.
    """
    from thermodiff.learned.gaussian import gaussian_production

    return gaussian_production(points, noise, window).estimate


def memorising_total(points: FloatArray, noise: Schedule, window: tuple[float, float]) -> float:
    """Entropy production of the law that puts 1/n on each point, where noise at lam_max leaves no doubt which it was; nats.

    That of one point, a Gaussian without width, averaged, less the ln n of the information about which it was.
    """
    low, high = (noise.at(edge) for edge in window)
    second, (n, dim) = float(np.sum(points**2, axis=1).mean()), points.shape
    return medium_integral(noise, window, second, dim) + dim * math.log(low.sigma / high.sigma) - math.log(n)


def published(shape: tuple[int, ...], n: int) -> float | None:
    """The published S_NN, between two published N linear in ln N; None for images that nobody has published."""
    known = PUBLISHED.get(SHAPES.get(shape, ""), {})
    if not known or not min(known) <= n <= max(known):
        return None
    return float(np.interp(math.log(n), np.log(list(known)), list(known.values())))


def averaged(records: Sequence[dict[str, Any]], row: str = "neural", **which: Any) -> Estimate | None:
    """The mean over seeds of a row of the records with the given entries; None without records.

    Seeds share the images, whose error therefore stays; that of the training falls with their number.
    """
    rows = [record[row] for record in records if all(record[key] == value for key, value in which.items())]
    if not rows:
        return None
    values, own = np.array([entry["value"] for entry in rows]), np.array([entry["error"] for entry in rows])
    spread = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else 0.0
    return Estimate(float(values.mean()), float(np.hypot(spread, np.sqrt(np.mean(own**2)))))


class Slope(NamedTuple):
    """Nats per e-fold of N, with the chi-square of the line for each degree of freedom (None for two points)."""

    value: float
    error: float
    chi_square: float | None


def slope(sizes: Sequence[int], estimates: Sequence[Estimate]) -> Slope | None:
    """Least squares on ln N, weighted by the errors; None for fewer than two N.

    The error is enlarged where the points lie further from the line than their errors say.
    """
    if len(sizes) < 2:
        return None
    x, y = np.log(sizes), np.array([estimate.value for estimate in estimates])
    weights = np.array([estimate.error for estimate in estimates]) ** -2.0
    centred = x - np.average(x, weights=weights)
    information = float(weights @ centred**2)
    value = float(weights @ (centred * y)) / information
    misfit = y - np.average(y, weights=weights) - value * centred
    freedom = x.size - 2
    chi_square = float(weights @ misfit**2) / freedom if freedom else None
    return Slope(value, math.sqrt(max(1.0, chi_square or 0.0) / information), chi_square)
