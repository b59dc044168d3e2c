"""Images as data: read from files, arrays and datasets, split into training and held-out ones, with labels if there.

Whole numbers (grey levels) are kept as they are and scaled when drawn.  With L levels, level k becomes the fraction

    k / (L - 1)                          as published, or
    (k + u) / L,  u uniform in [0, 1)    dequantised: a density, so that likelihoods mean something,

which is mapped onto ``span``.  Numbers with a fraction are taken as they are: their units are the caller's.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thermodiff._check import count, finite_number, increasing_pair, seed_words

CHANNELS = (1, 2, 3, 4)
"""Lengths of an axis that are read as channels."""
MOST_CLASSES = 1_000_000
GREY_RANGE = 20.0
"""Fractions that span more than this were grey levels once."""
_LABELS = {"images": "labels", "train_images": "train_labels", "test_images": "test_labels"}


class Images:
    """Images of one size, with their labels where known.

    Parameters
    ----------
    values : array, Tensor or dataset
        Shape (n, height, width), (n, channels, height, width) or, for arrays, (n, height, width, channels): an axis of
        1 to 4 next to the first is read as channels before one at the end.  Type uint8 for grey levels, else float.  A
        dataset has ``len`` and items that are images, pairs (image, label), or tuples with an image alone.
    labels : array (n,) of int, optional
        Classes, counted from 0.
    span : (float, float)
        Darkest and brightest value of grey levels.
    dequantise : bool
        Whether draws of grey levels carry uniform noise of one level.
    levels : int
        Number of grey levels.

    Attributes
    ----------
    values : Tensor, shape (n, channels, height, width)
        Grey levels (uint8) or values (float32).
    labels : Tensor of int64, shape (n,), or None
    """

    def __init__(
        self,
        values: Any,
        labels: Any = None,
        *,
        span: tuple[float, float] = (-1.0, 1.0),
        dequantise: bool = False,
        levels: int = 256,
    ) -> None:
        if isinstance(values, str | PathLike):
            raise TypeError(
                f"images must be an array or a dataset, got the text {str(values)!r}; a file is read by read_images."
            )
        if not isinstance(values, np.ndarray | torch.Tensor | list) and hasattr(values, "__getitem__"):
            values, labels = _collect(values, labels)
        self.values = _channels_first(values)
        self.span, self.dequantise, self.levels = increasing_pair("span", span), dequantise, count("levels", levels, 2)
        if len(self.values) < 2:
            raise ValueError("got one image; at least 2 are needed, since a single one has no spread to learn.")
        if self.quantised and int(self.values.max()) >= self.levels:
            raise ValueError(f"the images hold level {int(self.values.max())}, levels={levels} allows up to {levels - 1}.")
        if dequantise and not self.quantised:
            raise ValueError("dequantise=True needs grey levels (uint8); the images given have fractions already.")
        self.labels = None if labels is None else _labels(labels, len(self.values))

    @property
    def quantised(self) -> bool:
        """Whether the images are grey levels."""
        return self.values.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return tuple(self.values.shape[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes, one more than the largest label."""
        if self.labels is None:
            return None
        return int(self.labels.max()) + 1 if len(self.labels) else 0  # a part may be empty

    @property
    def cell(self) -> float:
        """Width of one grey level in the units of draws: log p per level is log p of the density plus d ln(cell)."""
        return (self.span[1] - self.span[0]) / (self.levels if self.dequantise else self.levels - 1)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        kinds = "" if self.labels is None else f", {self.classes} classes"
        return f"Images({len(self)} of {'x'.join(map(str, self.shape))}{kinds})"

    def __getitem__(self, index: Any) -> Images:
        """A part of the images, chosen by a slice or an array of indices."""
        part = object.__new__(Images)
        part.span, part.dequantise, part.levels = self.span, self.dequantise, self.levels
        if not isinstance(index, slice) or (index.step or 1) < 0:  # Torch lacks steps back, and takes [] for numbers
            index = index if isinstance(index, slice | list) else np.asarray(index)
            index = torch.as_tensor(np.array(np.arange(len(self))[index]))
        part.values = self.values[index]
        if part.values.ndim != 4:
            raise TypeError("Images: index with a slice or an array of indices, as in images[:100].")
        part.labels = None if self.labels is None else self.labels[index]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Values, float32, shape (n, channels, height, width); where draws carry noise, the middle of each level."""
        middle = torch.tensor(0.5) if self.dequantise else None
        return self._scaled(self.values, middle).numpy().astype(dtype or np.float32)

    def draw(self, index: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Images at ``index`` (m,), float32, (m, channels, height, width); ``rng`` dequantises."""
        values = self.values[index]
        noise = torch.from_numpy(rng.random(values.shape, dtype=np.float32)) if self.dequantise else None
        return self._scaled(values, noise)

    def split(self, held_out: float | int = 0.2, *, rng: Any = 0) -> tuple[Images, Images]:
        """Training and held-out images.

        Parameters
        ----------
        held_out : float or int
            A share (below 1) chosen at random, or a number (1 and above), of the last images as they stand.
        rng : int, SeedSequence, Generator or None
            Chooses the share.
        """
        number = finite_number("held_out", held_out)
        held = count("held_out", held_out) if number >= 1.0 else max(2, round(number * len(self)))
        if not number > 0.0 or held < 2 or len(self) - held < 2:
            raise ValueError(
                f"held_out={held_out!r} of {len(self)} images leaves {len(self) - held} to train on and {held} held out; "
                "both need at least 2."
            )
        order = np.arange(len(self))
        if number < 1.0:
            np.random.default_rng([*map(int, seed_words(rng)), 1]).shuffle(order)
        return self[order[: len(self) - held]], self[order[len(self) - held :]]

    def _scaled(self, values: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        if not self.quantised:
            return values
        low, high = self.span
        if noise is None:
            return low + (high - low) / (self.levels - 1) * values.to(torch.float32)
        return low + (high - low) / self.levels * (values + noise)


def grey_span(data: Any) -> tuple[float, float] | None:
    """Darkest and brightest value of grey levels; None for anything else, whose units are the caller's."""
    return data.span if isinstance(data, Images) and data.quantised else None


def require_span(images: Any, span: tuple[float, float] | None) -> None:
    """Refuse grey levels on another span than those of the model's data: the same colours would be other numbers."""
    own = grey_span(images)
    if own is None or span is None or own == span:
        return
    told, needed = (f"({low:g}, {high:g})" for low, high in (own, span))
    raise ValueError(
        f"the images have span {told}, the model's data {needed}: the same grey levels are other numbers there; pass "
        f"Images(..., span={needed})."
    )


def read_images(
    source: str | PathLike[str], held_out: float | int = 0.2, *, rng: Any = 0, **options: Any
) -> tuple[Images, Images]:
    """Read training and held-out images.

    Parameters
    ----------
    source : str or path
        "digits": scikit-learn's 8x8 digits.  Or a FILE.npz with ``images``, or with ``train_images`` and
        ``test_images``, or with a single array; labels beside them as ``labels``, ``train_labels``, ``test_labels``.
    held_out, rng
        As for `Images.split`; a file with test images is split already, and ``held_out`` has no say.
    **options
        ``span``, ``dequantise`` and ``levels`` of `Images`.

    Returns
    -------
    (Images, Images)
        Training and held-out images.
    """
    if str(source) == "digits":
        return _digits(options).split(held_out, rng=rng)
    path = Path(source)
    arrays = _arrays(path)
    if "train_images" in arrays and "test_images" in arrays:
        _check_names(path, arrays, ["train_images", "test_images"])
        first, second = (_part(path, arrays, name, options) for name in ("train_images", "test_images"))
        if first.shape != second.shape or first.quantised != second.quantised:
            raise ValueError(f"{path}: train_images {first!r} and test_images {second!r} differ in size or type.")
        return first, second
    names = [name for name in arrays if name not in _LABELS.values()]
    if "images" not in arrays and len(names) != 1:
        shapes = {name: np.shape(value) for name, value in arrays.items()}
        raise ValueError(
            f"{path} must hold 'images', or 'train_images' and 'test_images', or one array; labels go into 'labels', "
            f"or into 'train_labels' and 'test_labels'. It holds {shapes}; rename them."
        )
    name = "images" if "images" in arrays else names[0]
    _check_names(path, arrays, [name])
    return _part(path, arrays, name, options).split(held_out, rng=rng)


def _check_names(path: Path, arrays: dict[str, npt.NDArray[Any]], chosen: list[str]) -> None:
    """Refuse labels that would be ignored because of their name."""
    wanted = [_LABELS.get(name, "labels") for name in chosen]
    # Labels of other images in the file are no mistake, nor are further ones where all that are wanted are there.
    stray = [name for images, name in _LABELS.items() if name in arrays and name not in wanted and images not in arrays]
    if stray and not set(wanted) <= set(arrays):
        raise ValueError(
            f"{path} holds {stray}, but labels of {' and '.join(chosen)} are read from {' and '.join(wanted)}; rename them."
        )


def _part(path: Path, arrays: dict[str, npt.NDArray[Any]], name: str, options: dict[str, Any]) -> Images:
    try:
        return Images(arrays[name], arrays.get(_LABELS.get(name, "labels")), **options)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {name}: {error}") from None


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if path.suffix != ".npz":
        raise ValueError(f"unknown images {str(path)!r}; give 'digits' or a FILE.npz.")
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # such as a single array that was renamed
                raise ValueError("it is not an archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read as an .npz of plain arrays ({error}); write it with numpy.savez(file, images=...)."
        ) from None


def _digits(options: dict[str, Any]) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits need scikit-learn; install it with: pip install 'thermodiff[learned]'") from None
    digits: Any = load_digits()
    return Images(digits.images.astype(np.uint8), digits.target, **{**options, "levels": 17})


def without_dataset(data: Any) -> Any:
    """The points or images of a torch dataset as an array, without labels; anything else as it is."""
    return _collect(data, ())[0] if isinstance(data, torch.utils.data.Dataset) else data


def _collect(dataset: Any, labels: Any) -> tuple[npt.NDArray[Any], Any]:
    """Images, and labels if there, of a dataset; see `_entries` for its items."""
    if isinstance(dataset, Mapping) or not hasattr(dataset, "__len__") or not _has_items(dataset):
        raise TypeError(
            f"images must be an array, or a dataset with len and items 0, 1, 2, ..., got {type(dataset).__name__}; "
            "pass an array of images, or a list of them."
        )
    if len(dataset) == 0:
        raise ValueError("the dataset of images is empty; give at least 2.")
    items = [_entries(_item(dataset, k)) for k in range(len(dataset))]
    if labels is None and any(label is not None for _, label in items):
        labels = [_whole(label) for _, label in items]
    arrays = [plain_array(image) for image, _ in items]
    shapes = {value.shape for value in arrays}
    if len(shapes) > 1:
        raise ValueError(f"the images of the dataset have different shapes, {sorted(shapes)[:3]}; bring them to one.")
    return np.stack(arrays), labels


def _item(dataset: Any, k: int) -> Any:
    try:
        return dataset[k]
    except Exception as error:  # of whatever its own code does
        raise ValueError(f"item {k} of the dataset of images failed: {type(error).__name__}: {error}") from error


def _has_items(dataset: Any) -> bool:
    """Whether items can be asked for by number: torch gives every dataset a method for it that only raises."""
    return getattr(type(dataset), "__getitem__", None) is not torch.utils.data.Dataset.__getitem__


def _entries(item: Any) -> tuple[Any, Any]:
    """Image and label, None where there is none, of an item of a dataset."""
    # A list of lists is an image, given row by row.
    if isinstance(item, tuple) or (isinstance(item, list) and not all(isinstance(entry, list) for entry in item)):
        if len(item) in (1, 2):
            return item[0], item[1] if len(item) == 2 else None
        got = f"a {type(item).__name__} of {len(item)} entries"
    elif isinstance(item, Mapping):
        got = f"a {type(item).__name__} with keys {list(item)}"
    else:
        return item, None
    raise ValueError(
        f"an item of the dataset must be an image, (image,) or (image, label), got {got}; make it one of these, or pass "
        "arrays, as in Images(values, labels)."
    )


def _whole(label: Any) -> int:
    """The label of an item; numbers with a fraction, and texts, are none."""
    value = None if isinstance(label, list | tuple) else plain_array(label)
    if value is None or value.size != 1 or value.dtype.kind not in "biuf":
        raise ValueError(
            f"an item of the dataset has a label of type {type(label).__name__} that is not a single number; labels must be "
            "whole numbers, counted from 0."
        )
    number = value.item()
    if not np.isfinite(number) or number != int(number):
        raise ValueError(
            f"an item of the dataset has the label {number!r}; labels must be whole numbers, counted from 0: number the "
            "classes."
        )
    return int(number)


def plain_array(values: Any) -> npt.NDArray[Any]:
    """``values`` as an array; a tensor of a type that NumPy lacks, such as bfloat16, as float32.

    Raises
    ------
    ValueError
        Entries are masked, which an array cannot say.
    """
    for part in values if isinstance(values, list | tuple) else (values,):
        hidden = np.count_nonzero(np.ma.getmaskarray(part)) if isinstance(part, np.ma.MaskedArray) else 0
        if hidden:
            raise ValueError(f"{hidden} entries of a masked array are masked; leave them out, or fill them by its filled().")
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() and values.dtype != torch.float64 else values).numpy()


def to_float32(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A copy of finite ``values`` as float32, C-contiguous; refused where they exceed its range."""
    with np.errstate(over="ignore"):  # refused here
        result = np.array(values, dtype=np.float32, order="C")
    bad = int(np.count_nonzero(~np.isfinite(result)))
    if bad:
        raise ValueError(f"{name}: {bad} values exceed the range of float32, 3.4e38; rescale them to about unit size.")
    return result


def _channels_first(values: Any) -> torch.Tensor:
    try:
        plain = plain_array(values)
    except ValueError as error:  # a list whose entries make no array
        if "masked" in str(error):
            raise
        raise ValueError("the images of a list must have one shape, and theirs differ; bring them to one.") from None
    if plain.dtype != np.uint8 and plain.dtype.kind not in "fiub":
        given = f"type {plain.dtype}" if plain.ndim else type(values).__name__
        raise TypeError(
            f"images must be numbers, in an array or a dataset with len and items, got {given}; of a DataLoader pass its "
            "dataset, of a generator a list."
        )
    if plain.dtype.kind in "iub" and plain.dtype != np.uint8:
        raise TypeError(f"images must be uint8 (grey levels) or float, got {plain.dtype}; convert them.")
    if plain.ndim == 3:
        plain = plain[:, None]
    needed = "(n, height, width), (n, channels, height, width) or (n, height, width, channels)"
    if plain.ndim != 4 or plain.size == 0:
        raise ValueError(f"images must have shape {needed}, got {plain.shape}.")
    if plain.shape[1] not in CHANNELS:
        if isinstance(values, torch.Tensor) or plain.shape[3] not in CHANNELS:
            raise ValueError(f"images of shape {plain.shape} have no axis of 1 to 4 channels; needed is {needed}.")
        plain = np.moveaxis(plain, 3, 1)
    if plain.dtype == np.uint8:
        return torch.from_numpy(np.array(plain, order="C"))
    bad = int(np.count_nonzero(~np.isfinite(plain)))
    if bad:
        raise ValueError(f"the images hold {bad} values that are nan or infinite; remove them.")
    found = to_float32("the images", plain)
    low, high = float(found.min()), float(found.max())
    if high - low > GREY_RANGE:
        warnings.warn(
            f"the images are numbers of type {plain.dtype} from {low:g} to {high:g}, taken as they are: span is for grey "
            "levels, which are uint8. Entropies depend on the range; convert them by astype(numpy.uint8), or rescale.",
            stacklevel=3,
        )
    return torch.from_numpy(found)


def _labels(labels: Any, n: int) -> torch.Tensor:
    values = plain_array(labels)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers, one for each of {n} images, got {values.dtype} {values.shape}.")
    if values.min() < 0:
        raise ValueError(f"labels are counted from 0, got {values.min()}.")
    if values.max() >= MOST_CLASSES:  # a network has weights for each
        raise ValueError(f"labels must be below {MOST_CLASSES}, got {values.max()}; number the classes 0, 1, 2, ...")
    return torch.from_numpy(values.astype(np.int64))
