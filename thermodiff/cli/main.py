"""Arguments and errors of the ``thermodiff`` command."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from thermodiff import __version__
from thermodiff._check import DivergenceError

app = typer.Typer(
    help="Measure the thermodynamics of diffusion: entropy production of exact and learned scores, in nats.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"thermodiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure the thermodynamics of diffusion: entropy production of exact and learned scores, in nats."""


@app.command()
def entropy(
    data: Annotated[
        str,
        typer.Option(
            help="What diffuses: 'mixture' (the published Gaussian mixture in 3 dimensions), 'digits' (8x8 images from "
            "scikit-learn), a FILE.json with a mixture (means, stds or covs, weights), or a FILE.npz with vectors (n, d).",
            metavar="NAME|FILE",
        ),
    ] = "mixture",
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="How it turns into noise: VP, VPx (VP with scale 0.1), SL (StraightLine with scale 0.1), StraightLine, "
            "VE, SubVP, Cosine, CondOT. May be given several times.  \\[default: VP VPx SL]",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Only the exact score: no network is trained, torch is not needed.")
    ] = False,
    lam: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Log-SNR window LOW HIGH of all entropies. Needed for SubVP and CondOT, whose entropy grows without bound "
            "towards the data; for images and vectors HIGH is chosen from their spread unless given.",
            metavar="LOW HIGH",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Quadrature nodes in log-SNR.")] = 64,
    samples: Annotated[
        int | None,
        typer.Option(help="Draws per node.  \\[default: 10000; 2000 for images and vectors]", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each network.")] = 1500,
    seed: Annotated[int, typer.Option(help="Fixes every random number.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for ledgers.json, ledger.png and the weights.")] = Path("runs/entropy"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no table.")] = False,
) -> None:
    """Entropy of a diffusion, from the exact score and from a network trained on the same data, side by side.

    The exact ledger comes with an independent check (the oracle). The network's ledger tells how much entropy the network
    stores to run the diffusion backwards (neural entropy, S_NN) and what it misses. Everything is in nats, with standard
    errors.

    Examples
    --------
        thermodiff entropy

        thermodiff entropy --exact --schedule VP --out runs/vp

        thermodiff entropy --data digits --schedule VP --lam -8 6
    """
    from thermodiff.cli.entropy import run

    run(
        data=data,
        schedules=schedule or ["VP", "VPx", "SL"],
        exact=exact,
        lam=lam,
        nodes=nodes,
        samples=samples,
        steps=steps,
        seed=seed,
        out=out,
        quiet=quiet,
    )


@app.command()
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
        int | None, typer.Option(help="Samples per step.  \\[default: 1024; 128 images]", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate.  \\[default: that of the network]", show_default=False)
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
    from thermodiff.cli.train import run

    run(
        data=data,
        schedule=schedule,
        net=net,
        labels=labels,
        lam=lam,
        steps=steps,
        batch=batch,
        lr=lr,
        ema=ema,
        precision=precision,
        compile=compile,
        device=device,
        every=every,
        seed=seed,
        out=out,
        quiet=quiet,
    )


@app.command()
def measure(
    folder: Annotated[Path, typer.Argument(help="Where `thermodiff train --out` has written.", metavar="FOLDER")],
    data: Annotated[
        str | None,
        typer.Option(help="Where the data of the training is now, if not in its place.", metavar="FILE", show_default=False),
    ] = None,
    lam: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Log-SNR window LOW HIGH; that of the training unless given.", metavar="LOW HIGH", show_default=False
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Values of log-SNR; a run with half of them tells whether they suffice.")] = 64,
    samples: Annotated[
        int | None,
        typer.Option(help="Draws per node.  \\[default: 2000, or whole rounds of the data]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes every random number.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no page.")] = False,
) -> None:
    """What a trained network stores: its ledger on training and held-out data, with errors.

    Beside it stand the Gaussian part of it, the ledger of the law that memorises the training data, and whether the nodes
    suffice. Writes measure.json and measure.png into the folder.

    Examples
    --------
        thermodiff measure runs/train

        thermodiff measure runs/digits --lam -8 4 --nodes 32
    """
    from thermodiff.cli.measure import run

    run(folder=folder, data=data, lam=lam, nodes=nodes, samples=samples, seed=seed, quiet=quiet)


@app.command()
def validate(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which cases; all of them unless given.", metavar="[NAMES]...", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes every random number.")] = 0,
    scale: Annotated[
        float, typer.Option(help="Multiplies the samples and paths of each case; errors fall as one over its root.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="Also write the results to this file.", metavar="FILE.json", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no table: the exit status tells.")] = False,
) -> None:
    """Measure systems whose entropy, heat and work are known exactly, and compare.

    The exit status is 0 if every case lies within four standard errors of its exact value, else 1.

    Examples
    --------
        thermodiff validate

        thermodiff validate rotation-steady gyrator-heat --scale 10 --out checks.json
    """
    from thermodiff.cli.validate import run

    if not run(names=names or [], seed=seed, scale=scale, out=out, quiet=quiet):
        raise typer.Exit(1)


@app.command()
def bench(
    full: Annotated[
        bool, typer.Option("--full", help="The published sizes and 9 runs of each way instead of 3: half an hour.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this work: euler-1, euler-2, reverse, flow-rk4, flow-adaptive, entropy, cloud, threads, compile, "
            "start, memory or scaling. May be given several times.  \\[default: all]",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.png.")] = Path("runs/bench"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No status line, no table.")] = False,
) -> None:
    """Time thermodiff beside NumPy, Numba, JAX, diffrax, Torch libraries and C, with the accuracy of each.

    What is not installed is skipped. All run on two cores of a machine that should have nothing else to do; the quick
    version takes about two minutes.

    Examples
    --------
        thermodiff bench

        thermodiff bench --full --only euler-1 --only reverse
    """
    from thermodiff.cli.bench import run

    run(size="full" if full else "quick", only=only or [], out=out, quiet=quiet)


experiments = typer.Typer(
    help="Repeat experiments of the literature with error bars. A command that is stopped and given again goes on.",
    no_args_is_help=True,
)
app.add_typer(experiments, name="experiment")


@experiments.command()
def transport(
    dim: Annotated[
        list[int] | None,
        typer.Option(
            help="Dimension of the mixture: 3, 6 or 9. May be given several times.  \\[default: all]", show_default=False
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="VP, VPx or SL. May be given several times.  \\[default: all]", metavar="NAME", show_default=False
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            help="Lengths of training. May be given several times.  \\[default: 50 to 1600; with --plain 1280 to 51200]",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each kind.  \\[default: 4; with --plain 1]", show_default=False)
    ] = None,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="The published network, loss and times instead: half an hour of a core for each 51200 steps."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes.  \\[default: one for each core]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for runs/, transport.json and transport.png.  \\[default: runs/transport; with --plain "
            "runs/transport-plain]",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Neural entropy against training on Gaussian mixtures, where the total entropy is known.

    The published experiment (arXiv 2409.03817) with a small preconditioned network and importance-sampled times, or as
    published; the published numbers stand beside the measured ones.

    Examples
    --------
        thermodiff experiment transport

        thermodiff experiment transport --dim 3 --schedule VP --steps 100 --steps 400 --seeds 2
    """
    from thermodiff.cli.experiment import run_transport
    from thermodiff.experiments.transport import DIMS, PLAIN_STEPS, SCHEDULES, SEEDS, STEPS

    run_transport(
        dims=dim or DIMS,
        schedules=schedule or list(SCHEDULES),
        steps=steps or (PLAIN_STEPS if plain else STEPS),
        seeds=seeds if seeds is not None else (1 if plain else SEEDS),
        workers=workers,
        plain=plain,
        out=out or Path("runs/transport-plain" if plain else "runs/transport"),
        quiet=quiet,
    )


@experiments.command()
def storage(
    data: Annotated[
        str,
        typer.Option(
            help="'digits', or a FILE.npz with images (images, or train_images and test_images, or one array; labels beside "
            "them).",
            metavar="digits|FILE",
        ),
    ] = "digits",
    n: Annotated[
        list[int] | None,
        typer.Option(
            "--n",
            help="Images in the training set, the same number of each class. May be given several times.  \\[default: 100, "
            "1000 and 9000, as far as there are so many]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            help="Lengths of training, the same for all sizes. May be given several times.  \\[default: 2500 and 20000]",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each size and length.")] = 1,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="How entropies are integrated: lam (nodes in log-SNR) or paper (the published times). May be given twice.  "
            "\\[default: both]",
            metavar="lam|paper",
            show_default=False,
        ),
    ] = None,
    lam_max: Annotated[
        float | None,
        typer.Option(
            help="Upper end of the log-SNR window of lam.  \\[default: 8.36, the first of the published times]",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate.  \\[default: that of the network]", show_default=False)
    ] = None,
    constant: Annotated[
        bool, typer.Option("--constant", help="Keep the learning rate as it is and average no weights, as published.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch.  \\[default: one for each core]", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for networks/, runs/, samples/, storage.json, storage.png and sheets of samples.")
    ] = Path("runs/storage"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no table.")] = False,
) -> None:
    """Neural entropy against the number of training images, on held-out and on training images.

    The published experiment (arXiv 2409.03817) with the published U-Net, at equal steps for all sizes; the published
    numbers for MNIST and CIFAR-10 stand beside the measured ones.

    Examples
    --------
        thermodiff experiment storage --data digits --steps 500

        thermodiff experiment storage --data mnist.npz --out runs/mnist
    """
    from thermodiff.cli.storage import run_storage
    from thermodiff.experiments.storage import GRIDS, STEPS, Budget

    run_storage(
        data=data,
        sizes=n or None,
        steps=steps or STEPS,
        seeds=seeds,
        grids=grid or list(GRIDS),
        lr=lr,
        constant=constant,
        threads=threads,
        out=out,
        quiet=quiet,
        budget=Budget() if lam_max is None else Budget(lam_max=lam_max),
    )


SHORT = ("out of memory", "not enough memory", "allocate memory")
"""What Torch says in a RuntimeError when memory is short."""


def main() -> None:
    """Run the command; what a user can cause ends with one sentence and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where a stream cannot hold a letter, λ say, the rest of the line is worth more than an error.
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say
            app(standalone_mode=True)
    except (ValueError, TypeError, KeyError, OSError, ImportError, DivergenceError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in SHORT):
            raise  # Torch says by one that memory is short; others are faults of ours
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror or 'cannot be used'}."
        print(f"thermodiff: {text or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from None


def _say(message: Warning | str, *rest: Any, **named: Any) -> None:
    """A warning as a sentence: the line of the library that it comes from is nothing to whoever types a command."""
    print(f"thermodiff: warning: {message}", file=sys.stderr)
