"""Models of the diffusers library, from a local folder, without network access.

Their noise comes as a table abar_k, k = 0 ... steps - 1, with alpha = sqrt(abar_k) and sigma = sqrt(1 - abar_k).  The
noise schedule VP of scale 1 runs through the same kernels, since alpha**2 + sigma**2 = 1 there too, and only its clock
is another; so at a given log-SNR the model is asked at the place where its table has that log-SNR.  Between two steps
that place is a fraction, interpolated linearly in log-SNR, which the model's sinusoidal embedding of time takes as well.
"""

from __future__ import annotations

import json
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import count
from thermodiff.learned.adapters import Adapted
from thermodiff.learned.networks import schedule_row
from thermodiff.schedules import VP

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What diffusers calls the output, and what it is called here."""
_SLACK = 1e-9  # of log-SNR: round-off at the ends of the table


class NoiseTable:
    """A checked table abar_k, and the way from times of VP to places in it.

    Parameters
    ----------
    cumulative : array, shape (steps,)
        abar_k, the share of the variance that is data; must fall strictly from below 1 to above 0.
    """

    host_time = True

    def __init__(self, cumulative: npt.ArrayLike) -> None:
        try:
            table = np.asarray(cumulative, dtype=np.float64)
        except (ValueError, TypeError):
            raise TypeError(f"the noise table must be numbers, got {cumulative!r:.80}.") from None
        if table.ndim != 1 or table.size < 2 or not np.all(np.isfinite(table)):
            raise ValueError(f"the noise table must hold at least 2 finite numbers in a row, got shape {table.shape}.")
        if table.max() >= 1.0 or table.min() <= 0.0:
            raise ValueError(
                f"the noise table must lie between 0 and 1, without these; it runs from {table[0]:g} to {table[-1]:g}. "
                "A table that ends without any signal cannot be measured at its last step."
            )
        wrong = int(np.argmax(np.diff(table) >= 0.0)) if np.any(np.diff(table) >= 0.0) else None
        if wrong is not None:
            what = "repeats" if table[wrong] == table[wrong + 1] else "rises"
            raise ValueError(
                f"the noise table must fall from step to step; it {what} at step {wrong + 1} "
                f"({table[wrong]:.6g}, {table[wrong + 1]:.6g})."
            )
        if not table[0] > 0.5 > table[-1]:
            raise ValueError(
                f"the noise table must begin near the data (above 1/2) and end near the noise (below 1/2); it runs from "
                f"{table[0]:.4g} to {table[-1]:.4g}."
            )
        self.lam = np.log(table) - np.log1p(-table)
        self.noise = VP()

    @property
    def window(self) -> tuple[float, float]:
        """Log-SNR (low, high) that the table covers, as far as ``noise`` goes: VP ends before most tables do."""
        return max(float(self.lam[-1]), float(self.noise.lam(self.noise.t_end))), float(self.lam[0])

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """Places in the table, fractions allowed, for times of VP."""
        lam = schedule_row(self.noise, t).lam
        if lam.min() < self.lam[-1] - _SLACK or lam.max() > self.lam[0] + _SLACK:
            low, high = self.window
            raise ValueError(
                f"the model's noise table and {self.noise.name} cover log-SNR {low:.4f} ... {high:.4f}, it was asked at "
                f"{float(lam.min()):.4f} ... {float(lam.max()):.4f}; state a window inside, lam=(low, high)."
            )
        place = np.interp(-lam, -self.lam, np.arange(self.lam.size, dtype=np.float64))
        return torch.from_numpy(np.asarray(place)).to(t.device)


class Pretrained(Adapted):
    """A ``UNet2DModel`` called as ``net(x, t)``, or ``net(x, t, y)`` with labels, t being a time of ``VP()``.

    Attributes
    ----------
    predicts : {"eps", "x0", "v"}
        What it predicts.
    noise : VP
        The schedule of its times.
    window : (float, float)
        Log-SNR that its noise table covers, cut at the end of ``noise``, -8.05; measure inside it.
    classes : int or None
        Number of classes that the model knows, labels 0 ... classes - 1.  Whether one of them stands for "not stated" its
        files do not say; there is none beyond them, so `train` cannot teach it labels, and refuses it.
    """

    def __init__(
        self, module: nn.Module, table: NoiseTable, predicts: str, classes: int | None, label: int | None = None
    ) -> None:
        super().__init__(module, table, "class_labels", label, _sample, classes)
        self.predicts, self.noise, self.window = predicts, table.noise, table.window

    def _ask(self, x: torch.Tensor, clock: torch.Tensor, y: torch.Tensor | None) -> Any:
        if y is None and getattr(self.module, "class_embedding", None) is not None:
            raise ValueError(
                "the model needs a class and was called without a label; say which class is meant, as in "
                "from_diffusers(folder, label=0), or call net(x, t, y)."
            )
        return super()._ask(x, clock, y)

    @property
    def _known(self) -> str:
        if self.classes is None:
            return "that it knows"
        return f'0 ... {self.classes - 1} and has none for "not stated", which train shows it as {self.classes}'


def from_diffusers(folder: str | PathLike[str], *, label: int | None = None) -> Pretrained:
    """Read a ``UNet2DModel`` and the noise table of its scheduler.

    Parameters
    ----------
    folder : path
        A saved pipeline, with ``unet/`` and ``scheduler/``; or a folder that holds ``config.json``, the weights as
        safetensors and ``scheduler_config.json``.  Nothing is downloaded and nothing is unpickled.
    label : int, optional
        Of a model with classes: the one that is meant where the caller names none, as accounts and sampling do.

    Returns
    -------
    Pretrained
        For ``LearnedDiffusion(net, images, net.noise, predicts=net.predicts)``, in a window inside ``net.window``.
    """
    folder = Path(folder)
    parts = (folder / "unet", folder / "scheduler") if (folder / "unet").is_dir() else (folder, folder)
    model, scheduler = _config(parts[0] / "config.json"), _config(parts[1] / "scheduler_config.json")
    if model.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{parts[0]} holds a {model.get('_class_name')}; only UNet2DModel is read.")
    kind = scheduler.get("prediction_type", "epsilon")
    if not isinstance(kind, str) or kind not in PREDICTIONS:
        raise ValueError(f"{parts[1]}: prediction_type {kind!r} is not one of {list(PREDICTIONS)}.")
    try:
        diffusers: Any = import_module("diffusers")
    except ImportError:
        raise ImportError("models of diffusers need that library; install it: pip install 'thermodiff[diffusers]'") from None
    table = _table(diffusers, parts[1], scheduler)
    unet: Any = _unet(diffusers, parts[0])
    if isinstance(unet.time_proj, nn.Embedding):
        raise ValueError(
            f"{parts[0]}: the model has time_embedding_type='learned', a vector for each step and none between them, where "
            "it would be asked; only 'positional' and 'fourier' are read."
        )
    embedding = unet.class_embedding
    if label is not None and embedding is None:
        raise ValueError(f"label={label!r} was given, but the model in {parts[0]} has no classes; drop it.")
    classes = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
    label = None if label is None else count("label", label, 0, None if classes is None else classes - 1)
    return Pretrained(unet, table, PREDICTIONS[kind], classes, label).eval()


def _unet(diffusers: Any, folder: Path) -> nn.Module:
    """The model, all of whose weights come from the file: diffusers draws at random what is missing there."""
    try:
        unet, found = diffusers.UNet2DModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # of any kind: it comes from whatever the folder holds
        raise ValueError(
            f"{folder}: no UNet2DModel can be built of config.json and weights as safetensors ({_reason(error)}); save the "
            "model again."
        ) from None
    for key, what in (("missing_keys", "lack"), ("unexpected_keys", "hold, beside those of the model,")):
        names = sorted(found[key])
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{folder}: the weights {what} {names[0]}{more}; save the model again, or fit config.json.")
    for name, value in unet.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{folder}: the weights hold nan or infinite numbers, in {name}; save the model again.")
    return unet


def _reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['nothing said'])[0]}"


def _sample(out: Any) -> torch.Tensor:
    return out.sample


def _table(diffusers: Any, folder: Path, config: dict[str, Any]) -> NoiseTable:
    kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if not hasattr(kind, "from_config"):
        raise ValueError(f"{folder} names the scheduler {config.get('_class_name')!r}, which diffusers does not have.")
    try:
        scheduler = kind.from_config(config)
    except Exception as error:  # of any kind: it comes from whatever the file holds
        raise ValueError(
            f"{folder}: scheduler_config.json gives no {config['_class_name']} ({_reason(error)}); correct the entry."
        ) from None
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise ValueError(f"{folder}: {config['_class_name']} has no table alphas_cumprod; only such schedulers are read.")
    _require_places(folder, config["_class_name"], scheduler.config)
    try:
        return NoiseTable(cumulative)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None


def _require_places(folder: Path, name: str, config: Any) -> None:
    """Refuse the options under which a scheduler asks its model at something else than a place in its table."""
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if continuous or config.get("use_flow_sigmas"):
        option, time = (
            ("timestep_type='continuous'", "the time ln(sigma) / 4") if continuous
            else ("use_flow_sigmas=True", "the times of a flow")
        )  # fmt: skip
        raise ValueError(
            f"{folder}: {name} with {option} gives its model {time}, no place in the table alphas_cumprod; only models that "
            "are asked at such places are read."
        )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the folder of a model saved by diffusers.")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the second where it is nested too deeply
        raise ValueError(f"{path} is not JSON ({error}).") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object, it holds {type(record).__name__}.")
    return record
