"""Weights on disk: ``<path>.safetensors`` with the tensors, ``<path>.json`` with what they belong to.

Nothing is unpickled.  Both files are written under a temporary name and renamed, so that a crash leaves the old ones;
the JSON holds the checksum of the tensors, so that two halves of different checkpoints are noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from thermodiff._check import choice
from thermodiff.learned.predict import PREDICTS
from thermodiff.schedules import SCHEDULES, Schedule

FORMAT = "thermodiff-weights-1"
"""Name and version of the layout."""


def save_weights(
    net: nn.Module, path: str | PathLike[str], *, noise: Schedule | None = None, predicts: str | None = None
) -> None:
    """Save the weights and buffers of ``net``.

    Parameters
    ----------
    net : Module
        The network.
    path : path
        Without suffix: writes ``path.safetensors`` and ``path.json``; folders are made.
    noise : Schedule, optional
        The schedule of the training; default that of the network, if it knows one.
    predicts : str, optional
        What the network predicts; default its own ``predicts``.
    """
    check_path(path)
    if noise is not None and not isinstance(noise, Schedule):
        raise TypeError(f"save_weights: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
    said, own = getattr(net, "predicts", None), getattr(net, "noise", None)
    # Whatever else a module calls predicts or noise, a layer or a number, is its own.
    predicts = (said if isinstance(said, str) else None) if predicts is None else choice("predicts", predicts, PREDICTS)
    schedule = (own if isinstance(own, Schedule) else None) if noise is None else noise
    weights, sidecar = _files(path)
    weights.parent.mkdir(parents=True, exist_ok=True)
    content = save(own_tensors(net.state_dict()))
    record = {
        "format": FORMAT,
        "network": type(net).__name__,
        "arguments": getattr(net, "arguments", None),
        "predicts": predicts,
        "noise": None if schedule is None else schedule.to_dict(),
        "window": None if known_window(net) is None else list(known_window(net) or ()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    replace_file(weights, content)
    replace_file(sidecar, (json.dumps(record, indent=1) + "\n").encode())


def load_weights(net: nn.Module, path: str | PathLike[str]) -> dict[str, Any]:
    """Load weights saved by `save_weights` into ``net``, in place, with what it predicts and its schedule.

    Parameters
    ----------
    net : Module
        A network of the same class and arguments.
    path : path
        As given to `save_weights`.

    Returns
    -------
    dict
        The record beside the weights: "network", "arguments", "predicts", "noise", "window" and the checksum.

    Raises
    ------
    ValueError
        A file is missing, damaged, or belongs to another network.

    Notes
    -----
    ``net.predicts``, ``net.noise`` and ``net.window`` are set as `train` leaves them, so that `LearnedDiffusion` reads the
    output as it was trained, refuses another schedule, and warns of windows in which the network was not trained.
    """
    weights, sidecar = _files(path)
    record = _record(sidecar)
    content = _read(weights)
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise ValueError(f"{weights} does not match the checksum in {sidecar.name}; it is damaged or from another run.")
    expected, arguments = type(net).__name__, getattr(net, "arguments", None)
    if record.get("network") != expected or record.get("arguments") != arguments:
        raise ValueError(
            f"{weights} holds {_described(record.get('network'), record.get('arguments'))}, "
            f"the network given is {_described(expected, arguments)}; build the one that was saved."
        )
    schedule, predicts = _schedule(record.get("noise"), sidecar), record.get("predicts")
    if predicts is not None and predicts not in PREDICTS:
        raise ValueError(
            f"{sidecar} says predicts={predicts!r}, needed is one of {', '.join(PREDICTS)}; save the weights again."
        )
    window = _window(record.get("window"), sidecar)
    tensors = tensors_of(content, weights)
    try:
        fill(net, tensors)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit the network: {str(error).splitlines()[-1].strip()}") from None
    keep_meaning(net, predicts, schedule, window)
    return record


def keep_meaning(net: nn.Module, predicts: str | None, noise: Schedule | None, window: tuple[float, float] | None) -> None:
    """Set ``net.predicts``, ``net.noise`` and ``net.window``: what measures the network cannot be told them wrongly.

    An "edm" denoiser knows no schedule, so that it gets none unless it keeps one.
    """
    free = getattr(net, "window", None) is None or known_window(net) is not None
    if window is not None and free and not _is_property(net, "window"):
        net.window = window  # pyright: ignore[reportArgumentType]
    if predicts is not None and getattr(net, "predicts", None) != predicts and not _is_property(net, "predicts"):
        net.predicts = predicts  # pyright: ignore[reportArgumentType]
    own = getattr(net, "noise", None)
    # Whatever else a module calls noise, a layer or a number, is its own.
    free = (own is None or isinstance(own, Schedule)) and not _is_property(net, "noise")
    if free and (hasattr(net, "noise") or (noise is not None and predicts != "edm")):
        net.noise = noise  # pyright: ignore[reportArgumentType]


def known_window(net: Any) -> tuple[float, float] | None:
    """The log-SNR in which a network was trained, where it knows; whatever else a module calls window is its own."""
    window = getattr(net, "window", None)
    if not isinstance(window, tuple | list) or len(window) != 2:
        return None
    known = all(isinstance(edge, int | float) and math.isfinite(edge) for edge in window) and window[0] < window[1]
    return (float(window[0]), float(window[1])) if known else None


def _is_property(net: nn.Module, name: str) -> bool:
    return isinstance(getattr(type(net), name, None), property)


def own_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, each with memory of its own: safetensors refuses names that share it, as tied weights do."""
    shape = torch.contiguous_format
    return {name: value.detach().to("cpu", copy=True, memory_format=shape) for name, value in tensors.items()}


def fill(net: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load ``tensors`` into ``net``.

    Raises
    ------
    RuntimeError
        They do not fit; also where names that share memory in ``net`` have different values in ``tensors``.
    """
    net.load_state_dict(tensors)
    held = net.state_dict()
    homes = Counter(value.untyped_storage().data_ptr() for value in held.values())
    for name, value in held.items():
        tied = homes[value.untyped_storage().data_ptr()] > 1
        if tied and bytes_of(value) != bytes_of(tensors[name].to(value.dtype)):
            raise RuntimeError(f"{name} shares memory with another tensor of the network, which has other values there.")


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of the numbers, in order; nan equals nan here."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _files(path: str | PathLike[str]) -> tuple[Path, Path]:
    base = base_path(path)
    return Path(base + ".safetensors"), Path(base + ".json")


def base_path(path: str | PathLike[str]) -> str:
    """The path without the suffixes that files of a checkpoint have."""
    return os.fspath(path).removesuffix(".safetensors").removesuffix(".json").removesuffix(".state")


def check_path(path: str | PathLike[str]) -> None:
    """Refuse a path at which the files of a checkpoint cannot be written.

    Raises
    ------
    ValueError
        Its name is empty, one of its files is a folder, it lies beneath a file, or its folder cannot be made or written.
    """
    given, base = os.fspath(path), base_path(path)
    if not os.path.basename(base):
        raise ValueError(
            f"checkpoint {str(given)!r} has no name; give a path with one, as in {os.path.join(base, 'net')!r}."
        )
    for name in (".safetensors", ".json", ".state.safetensors"):
        if Path(base + name).is_dir():
            raise ValueError(
                f"checkpoint {str(given)!r} would be written to {base + name}, which is a folder; choose another."
            )
    blocking = next((str(parent) for parent in Path(base).parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise ValueError(f"checkpoint {str(given)!r} lies beneath {blocking}, which is a file; choose another folder.")
    folder = Path(base).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise ValueError(f"checkpoint {str(given)!r}: {folder} cannot be written ({reason}); choose another folder.")


def replace_file(target: Path, content: bytes, temporary: Path | None = None) -> None:
    """Write a file at once, by way of ``temporary`` beside it: readers see the old or the new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp") if temporary is None else temporary
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist; give the path that train(checkpoint=) or save_weights had.") from None


def _record(sidecar: Path) -> dict[str, Any]:
    content = _read(sidecar)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):  # the second where it is nested too deeply
        raise ValueError(f"{sidecar} is not a JSON file; it is damaged or not written by thermodiff.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{sidecar} is not a weights record of format {FORMAT!r}; save the weights again.")
    return record


def tensors_of(content: bytes, file: Path, advice: str = "save the weights again") -> dict[str, torch.Tensor]:
    """The tensors in the content of a safetensors file; where it is none, the error ends with ``advice``."""
    try:
        return load(content)
    except (SafetensorError, KeyError) as error:  # the second for a type of numbers that Torch lacks
        raise ValueError(f"{file} is not a safetensors file ({error}); {advice}.") from None


def _schedule(entry: Any, sidecar: Path) -> Schedule | None:
    if entry is None:
        return None
    try:
        parameters = dict(entry)
        return SCHEDULES[parameters.pop("schedule")](**parameters)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{sidecar} names a schedule that cannot be built ({error}): {entry!r}.") from None


def _window(entry: Any, sidecar: Path) -> tuple[float, float] | None:
    """The window in a record; those of earlier versions have none."""
    window = None if entry is None else known_window(SimpleNamespace(window=entry))
    if entry is not None and window is None:
        raise ValueError(f"{sidecar} gives {entry!r:.60} as window, needed are two rising numbers; save the weights again.")
    return window


def _described(network: Any, arguments: Any) -> str:
    if not isinstance(arguments, dict):
        return str(network)
    return f"{network}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
