"""Train a network: ``thermodiff train``."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from thermodiff._check import choice, count, increasing_pair, write_atomically
from thermodiff.cli.inputs import FINEST, read_data, read_schedule
from thermodiff.schedules import Schedule

if TYPE_CHECKING:
    from torch import nn

NETS = ("control", "mlp", "unet")


def train(
    data: Annotated[
        str,
        typer.Option(
            help="What to learn: 'mixture', a FILE.json or a FILE.npz with vectors, as for thermodiff entropy; with --net "
            "unet a FILE.npz with images (images, or train_images and test_images, or one array; labels beside them). "
            "'digits' are vectors or images.",
            metavar="NAME|FILE",
        ),
    ] = "mixture",
    schedule: Annotated[
        str,
        typer.Option(help="How it turns into noise: VP, VPx, SL, StraightLine, VE, SubVP, Cosine, CondOT.", metavar="NAME"),
    ] = "VP",
    net: Annotated[
        str,
        typer.Option(
            help="control: small, told the mean and covariance; mlp: the published network for vectors; unet: for images, "
            "told the mean and variance.",
            metavar="control|mlp|unet",
        ),
    ] = "control",
    labels: Annotated[
        bool, typer.Option("--labels", help="unet: learn each class too, from the labels in the file.")
    ] = False,
    lam: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Log-SNR window LOW HIGH; for vectors and images HIGH is chosen from their spread unless given.",
            metavar="LOW HIGH",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    batch: Annotated[
        int | None, typer.Option(help="Samples per step.  [default: 1024; 128 images]", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate.  [default: that of the network]", show_default=False)
    ] = None,
    ema: Annotated[float, typer.Option(help="Decay per step of the averaged weights.")] = 0.998,
    precision: Annotated[
        str,
        typer.Option(help="Type of the multiplications; bf16 is fast where the processor knows it.", metavar="float32|bf16"),
    ] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="Where: cpu, cuda, ...")] = "cpu",
    every: Annotated[int, typer.Option(help="Save the state of the training every so many steps.")] = 500,
    seed: Annotated[int, typer.Option(help="Fixes every random number.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the weights, the state and metrics.jsonl.")] = Path("runs/train"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no summary.")] = False,
) -> None:
    """Train a network to reverse a diffusion.

    A training that was stopped, even killed, goes on when the same command is given again, and ends with the same
    weights, to the bit. Under torchrun several processes share the work. The weights are read by
    thermodiff.learned.load_weights.

    Examples
    --------
        thermodiff train --steps 1500 --out runs/mixture

        thermodiff train --data digits --net unet --labels

        torchrun --nproc-per-node 2 -m thermodiff train --data images.npz --net unet
    """
    count("--every", every)
    count("--seed", seed, 0)
    if labels and net != "unet":
        raise ValueError("--labels needs --net unet; the other networks know no classes.")
    _require_torch()
    noise, subject = read_schedule(schedule), _subject(data, choice("--net", net, NETS), labels, seed)
    window = _window(noise, subject, lam)
    _require_folder(out)
    options = {
        "steps": steps, "batch": batch or subject.batch, "lr": lr, "ema": ema, "lam": window, "precision": precision,
        "compile": compile, "device": device, "every": every, "rng": seed,
    }  # fmt: skip
    _run(subject, noise, options, out, quiet, {"data": data, "labels": labels, "seed": seed})


@dataclass(frozen=True)
class _Subject:
    """What is learned, by which network, with which batch, and the rms deviation of a coordinate of points."""

    data: Any
    net: nn.Module
    batch: int
    spread: float | None


def _subject(data: str, net: str, labels: bool, seed: int) -> _Subject:
    from thermodiff.learned import ControlMLP, EntropyMLP, Preconditioned, UNet, read_images

    if net == "unet":
        if data == "mixture" or data.endswith(".json"):
            raise ValueError(f"--net unet takes images, {data!r} holds vectors; use --net control or mlp.")
        images = read_images(data, rng=seed)[0]
        if labels and images.labels is None:
            raise ValueError(f"--labels: {data} holds no labels; save them beside the images as labels=.")
        network = UNet(images.shape[0], classes=images.classes if labels else None, rng=seed)
        return _Subject(images, Preconditioned(network), 128, float(np.sqrt(np.asarray(images).var(0).mean())))
    problem = read_data(data, seed)
    build = ControlMLP if net == "control" else EntropyMLP
    spread = None if problem.held_out is None else float(np.sqrt(np.diag(problem.law.covariance()).mean()))
    return _Subject(problem.train, build(problem.law.dim, rng=seed), 1024, spread)


def _window(noise: Schedule, subject: _Subject, lam: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window; None for the schedule's own."""
    if lam is not None:
        return increasing_pair("--lam", lam)
    if subject.spread is None:
        return None
    if not subject.spread > 0.0:
        raise ValueError("all samples are equal; there is nothing to learn.")
    low, top = noise.window()[0], round(-2.0 * np.log(FINEST * subject.spread), 1)
    if not low < top:
        raise ValueError(
            f"{noise.name} leaves no default window for data of spread {subject.spread:.3g}; give --lam LOW HIGH."
        )
    return low, top


def _run(
    subject: _Subject, noise: Schedule, options: dict[str, Any], out: Path, quiet: bool, record: dict[str, Any]
) -> None:
    from thermodiff.learned import torch_threads
    from thermodiff.learned import train as fit

    first = os.environ.get("RANK", "0") == "0"
    # The small network gains nothing from a second thread.
    with torch_threads(1) if subject.batch > 128 else nullcontext():
        fit(
            subject.net, subject.data, noise, checkpoint=out / "weights", metrics=out / "metrics.jsonl",
            progress=not quiet, **options,
        )  # fmt: skip
    if not first:
        return
    window = options["lam"] or noise.window()
    record |= {"network": type(subject.net).__name__, "window": list(window), "steps": options["steps"]}
    span = getattr(subject.data, "span", None)
    write_atomically(out / "train.json", (json.dumps({**record, "span": span}, indent=1) + "\n").encode())
    if not quiet:
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        print(f"trained on log-SNR {window[0]:.3f} ... {window[1]:.3f}; loss {losses[0]:.5g} first, {losses[-1]:.5g} last")
        print(f"written to {out}: weights.safetensors, weights.json, metrics.jsonl, train.json")


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if out.exists() and not os.access(out, os.W_OK):
        raise PermissionError(f"cannot write into {out}; choose another folder with --out.")


def _require_torch() -> None:
    try:
        import thermodiff.learned  # noqa: F401
    except ImportError:
        raise ImportError("training needs torch and safetensors; install them: pip install 'thermodiff[learned]'.") from None
