"""Images: files, arrays, datasets, scaling, splits, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from thermodiff.learned.batches import Source
from thermodiff.learned.images import Images, read_images


def grey(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 1, 6, 7), (5, 6, 7, 1)])
def test_axes_end_as_channels_first(shape):
    values = grey(*shape)
    images = Images(values)
    assert images.shape == (1, 6, 7)
    np.testing.assert_array_equal(images.values[:, 0].numpy(), values.reshape(5, 6, 7))


def test_colours_in_either_order():
    first = grey(4, 3, 8, 9)
    for values in (first, np.moveaxis(first, 1, 3), torch.from_numpy(first)):
        np.testing.assert_array_equal(Images(values).values.numpy(), first)


def test_grey_levels_are_scaled_onto_the_span():
    values = np.array([[[0, 255]], [[51, 102]]], dtype=np.uint8)
    np.testing.assert_allclose(np.asarray(Images(values)), [[[[-1.0, 1.0]]], [[[-0.6, -0.2]]]], atol=1e-6)
    np.testing.assert_allclose(np.asarray(Images(values, span=(0.0, 1.0)))[1, 0, 0], [0.2, 0.4], atol=1e-7)


def test_floats_are_taken_as_they_are():
    values = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 5))
    np.testing.assert_array_equal(np.asarray(Images(values))[:, 0], values.astype(np.float32))


def test_dequantised_draws_fill_each_level_evenly():
    images = Images(np.stack([np.full((50, 50), k, dtype=np.uint8) for k in (0, 255)]), dequantise=True)
    assert images.cell == 2.0 / 256.0
    drawn = images.draw(torch.tensor([0] * 8 + [1] * 8), np.random.default_rng(0)).numpy()
    for part, low in ((drawn[:8], -1.0), (drawn[8:], 1.0 - 2.0 / 256.0)):
        place = (part.astype(np.float64) - low) / images.cell
        assert place.min() >= 0.0
        assert place.max() <= 1.0
        assert abs(place.mean() - 0.5) < 4.0 / np.sqrt(12 * place.size)
        assert abs(place.var() * 12.0 - 1.0) < 4.0 * np.sqrt(0.8 / place.size)
    np.testing.assert_allclose(np.asarray(images)[:, 0, 0, 0], [-1.0 + 1.0 / 256.0, 1.0 - 1.0 / 256.0])


def test_draws_without_noise_are_the_images():
    images = Images(grey(6, 4, 4))
    index = torch.tensor([3, 3, 0])
    np.testing.assert_array_equal(images.draw(index, np.random.default_rng(0)).numpy(), np.asarray(images)[index.numpy()])


def test_a_share_is_held_out_at_random_and_a_number_from_the_end():
    images = Images(grey(50, 4, 4), labels=np.arange(50))
    train, held = images.split(0.2, rng=1)
    assert (len(train), len(held)) == (40, 10)
    both = torch.cat([train.labels, held.labels])
    assert sorted(both.tolist()) == list(range(50))
    assert held.labels.tolist() != list(range(40, 50))
    assert torch.equal(held.values, images.values[held.labels])
    assert torch.equal(images.split(0.2, rng=1)[1].labels, held.labels)
    assert images.split(7)[1].labels.tolist() == list(range(43, 50))


def test_digits():
    train, held = read_images("digits")
    assert train.shape == held.shape == (1, 8, 8)
    assert len(train) + len(held) == 1797
    assert train.classes == 10
    values = np.asarray(train)
    assert values.min() == -1.0
    assert values.max() == 1.0
    assert len(np.unique(values)) == 17


def test_files(tmp_path):
    values, labels = grey(10, 8, 8), np.arange(10, dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=values, labels=labels, classes=np.array(["a"] * 10))
    np.savez(tmp_path / "sole.npz", anything=values, labels=labels)
    np.savez(tmp_path / "two.npz", train_images=values, test_images=values[:3], test_labels=labels[:3])
    for name in ("one", "sole"):
        train, held = read_images(tmp_path / f"{name}.npz", 2)
        assert torch.equal(train.values[:, 0], torch.from_numpy(values[:8]))
        assert held.labels.tolist() == [8, 9]
    train, held = read_images(tmp_path / "two.npz")
    assert (len(train), len(held)) == (10, 3)
    assert train.labels is None
    assert held.labels.tolist() == [0, 1, 2]


def test_labels_of_all_images_of_a_file_are_no_mistake(tmp_path):
    parts = {
        f"{part}_{kind}": value
        for part in ("train", "test")
        for kind, value in (("images", grey(4, 5, 5)), ("labels", [0] * 4))
    }
    np.savez(tmp_path / "all.npz", **parts, labels=[0] * 8)
    assert read_images(tmp_path / "all.npz")[0].classes == 1
    np.savez(tmp_path / "both.npz", images=grey(6, 5, 5), train_images=grey(4, 5, 5), train_labels=[0] * 4)
    assert read_images(tmp_path / "both.npz", 2)[0].labels is None


class Pairs(torch.utils.data.Dataset):
    def __init__(self, n: int = 4, odd: bool = False) -> None:
        self.values, self.odd = torch.rand(n, 1, 5, 5), odd

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return (self.values[k, :, :4] if self.odd and k == 1 else self.values[k]), k % 3


def test_a_dataset_of_pairs():
    data = Pairs()
    images = Images(data)
    assert torch.equal(images.values, data.values)
    assert images.labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="different shapes"):
        Images(Pairs(odd=True))
    with pytest.raises(ValueError, match="the dataset of images is empty"):
        Images(Pairs(0))


def test_datasets_of_other_items():
    values, labels = torch.rand(3, 1, 5, 5), torch.tensor([2, 0, 1])
    lists = tuple([value, label] for value, label in zip(values, labels, strict=True))
    for data, kinds in (
        (TensorDataset(values), None),
        (TensorDataset(values, labels), [2, 0, 1]),
        (lists, [2, 0, 1]),
        (tuple(values.tolist()), None),
        (tuple(values[:, 0].tolist()), None),
    ):
        images = Images(data)
        assert torch.equal(images.values, values)
        assert (None if images.labels is None else images.labels.tolist()) == kinds
    assert Images(TensorDataset(values, labels), labels=[0, 0, 1]).labels.tolist() == [0, 0, 1]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


class Counted(Endless):
    def __len__(self) -> int:
        return 4


class Chosen(Counted):
    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.full((1, 5, 5), float(k))


def test_a_stream_that_has_items_after_all():
    assert len(Images(Chosen())) == 4


def test_a_stream_is_refused_in_training():
    with pytest.raises(TypeError, match="a dataset with len and items 0, 1, 2, ..., got Counted"):
        Source(Counted())


MASKED = np.ma.masked_equal([0, 1, 2, 1], 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2**63, 1], dtype=np.uint64), r"labels must be below 1000000, got 9223372036854775808"),
        (MASKED, "2 entries of a masked array are masked; leave them out"),
        (list(MASKED), "1 entries of a masked array are masked"),
    ],
    ids=["large", "masked", "list"],
)
def test_labels_that_would_be_altered(labels, message):
    with pytest.raises(ValueError, match=message):
        Images(grey(4, 5, 5), labels=labels)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor(0.9), r"has the label 0\.89\d+; labels must be whole numbers, counted from 0"),
        (1.2, r"has the label 1\.2; labels must be whole"),
        (float("nan"), "has the label nan; labels"),
        (np.inf, "has the label inf; labels"),
        ("3", "a label of type str that is not a single number"),
        ([[1, 2], [3]], "a label of type list that is not a single number"),
        (np.ma.masked, "1 entries of a masked array are masked"),
    ],
)
def test_labels_of_items_that_are_no_whole_numbers(label, message):
    with pytest.raises(ValueError, match=message):
        Images(((grey(5, 5), 0), (grey(5, 5), label)))


def test_labels_of_items_that_are_whole_numbers():
    labels = (True, np.uint8(2), torch.tensor([3]), torch.tensor(4.0), 5.0, np.ma.array(6))
    images = Images(tuple((grey(5, 5), label) for label in labels))
    assert images.labels.tolist() == [1, 2, 3, 4, 5, 6]


def test_masked_images_are_refused():
    values = np.random.default_rng(0).random((4, 5, 5))
    masked = np.ma.masked_greater(values, values.max() - 1e-9)
    for given in (masked, list(masked), tuple(masked)):
        with pytest.raises(ValueError, match="1 entries of a masked array are masked; leave them out, or fill them"):
            Images(given)
    with pytest.raises(ValueError, match="1 entries of a masked array"):
        Source(masked[:, None])
    assert len(Images(np.ma.array(values))) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ({"image": grey(5, 5), "label": 1},) * 2,
            r"must be an image, \(image,\) or .*got a dict with keys \['image', 'label'\]",
        ),
        (((grey(5, 5), 1, 2),) * 2, "must be an image, .*got a tuple of 3 entries; make it one of these"),
        (((grey(5, 5), None),) * 2 + ((grey(5, 5), 1),), "a label of type NoneType that is not a single number"),
        (((grey(5, 5), torch.zeros(3)),) * 2, "a label of type Tensor that is not a single number"),
        ({"images": grey(4, 5, 5)}, "got dict; pass an array of images"),
        (Endless(), "a dataset with len and items 0, 1, 2, ..., got Endless"),
        (Counted(), "a dataset with len and items 0, 1, 2, ..., got Counted"),
    ],
)
def test_refused_datasets(data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Images(data)


def test_tensors_of_types_that_numpy_lacks():
    values = torch.rand(4, 1, 5, 5).to(torch.bfloat16)
    for data in (values, TensorDataset(values)):
        assert torch.equal(Images(data).values, values.float())


def test_parts_without_images_can_be_shown():
    images = Images(grey(4, 5, 5), labels=[0, 1, 2, 0])
    assert repr(images[:0]) == "Images(0 of 1x5x5, 0 classes)"
    assert repr(images[:2]) == "Images(2 of 1x5x5, 2 classes)"
    assert repr(images[[]]) == "Images(0 of 1x5x5, 0 classes)"


def test_parts_by_any_index():
    values, labels = grey(4, 5, 5), np.array([0, 1, 2, 0])
    images = Images(values, labels)
    mask = np.array([True, False, True, True])
    for index in (slice(None, None, -1), slice(3, 0, -2), slice(1, None), [2, -1], mask, torch.tensor([3, 0]), list(mask)):
        chosen = np.asarray(index) if isinstance(index, torch.Tensor) else index
        np.testing.assert_array_equal(images[index].values[:, 0], values[chosen])
        np.testing.assert_array_equal(images[index].labels, labels[chosen])
    with pytest.raises(TypeError, match="index with a slice or an array of indices"):
        images[2]
    with pytest.raises(IndexError, match="index 50 is out of bounds"):
        images[[50]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 4, 4), 1e300), "the images: 48 values exceed the range of float32"),
        (np.full((3, 4, 4), np.nan), "hold 48 values that are nan or infinite"),
        (grey(1, 8, 8), "got one image; at least 2 are needed"),
        (grey(5, 64), r"must have shape \(n, height, width\).*got \(5, 64\)"),
        (grey(5, 8, 8, 7), "no axis of 1 to 4 channels"),
        (grey(0, 8, 8), r"got \(0, 1, 8, 8\)"),
        (grey(5, 8, 8).astype(np.int64), "must be uint8 .* got int64; convert"),
        (np.array([["a"]]), "must be numbers"),
        ([grey(8, 8), grey(4, 8)], "the images of a list must have one shape"),
    ],
)
def test_refused_images(values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Images(values)


def test_refused_options():
    values = grey(4, 5, 5)
    with pytest.raises(ValueError, match="needs grey levels"):
        Images(values / 255.0, dequantise=True)
    with pytest.raises(ValueError, match="one for each of 4 images"):
        Images(values, labels=[0, 1])
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        Images(values, labels=[0, 1, -1, 2])
    with pytest.raises(ValueError, match="levels=17 allows up to 16"):
        Images(values, levels=17)
    for share in (0.0, -0.5, 3, 1):
        with pytest.raises(ValueError, match="both need at least 2"):
            Images(values).split(share)


def test_refused_files(tmp_path):
    np.savez(tmp_path / "many.npz", a=grey(4, 5, 5), b=grey(4, 5, 5))
    np.savez(tmp_path / "classes.npz", x=grey(4, 5, 5), y=np.arange(4))
    np.savez(tmp_path / "nan.npz", images=np.full((4, 5, 5), np.nan))
    np.savez(tmp_path / "objects.npz", images=np.array([None, {}], dtype=object))
    np.savez(tmp_path / "sizes.npz", train_images=grey(4, 5, 5), test_images=grey(4, 6, 6))
    np.savez(tmp_path / "lone.npz", train_images=grey(4, 5, 5), test_images=grey(4, 5, 5), labels=np.arange(4))
    np.savez(tmp_path / "train.npz", train_images=grey(4, 5, 5), labels=np.arange(4))
    np.savez(tmp_path / "images.npz", images=grey(4, 5, 5), train_labels=np.arange(4))
    np.save(tmp_path / "array.npy", grey(4, 5, 5))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    for name, message in (
        ("many", "It holds {'a'"),
        ("classes", "labels go into 'labels'"),
        (
            "lone",
            r"holds \['labels'\], but labels of train_images and test_images are read from train_labels and test_labels",
        ),
        ("train", r"holds \['labels'\], but labels of train_images are read from train_labels; rename"),
        ("images", r"holds \['train_labels'\], but labels of images are read from labels; rename"),
        (
            "array",
            r"array.npz cannot be read as an .npz of plain arrays \(it is not an archive\); write it with numpy.savez",
        ),
        ("nan", "nan.npz: images: the images hold 100 values"),
        ("objects", "cannot be read as an .npz of plain arrays"),
        ("sizes", "differ in size or type"),
        ("text", "cannot be read as an .npz of plain arrays"),
        ("none", "there is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_images(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="give 'digits' or a FILE.npz"):
        read_images("letters")


def test_grey_levels_as_fractions_are_warned_of():
    values = grey(4, 5, 5)
    with pytest.warns(UserWarning, match=r"numbers of type float64 from .* to \d+, taken as they are"):
        Images(values.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Images(values)
        Images(values / 255.0)
        Images(values / 127.5 - 1.0)


class Failing:
    def __len__(self):
        return 3

    def __getitem__(self, k):
        raise KeyError("boom")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.utils.data.DataLoader([1, 2]), "of a DataLoader pass its dataset"),
        ((k for k in range(3)), "got generator; of a DataLoader pass its dataset, of a generator a list"),
        (None, "images must be numbers, .* got NoneType"),
        ("mnist.npz", "got the text 'mnist.npz'; a file is read by read_images"),
        (Path("mnist.npz"), "got the text 'mnist.npz'; a file is read by read_images"),
        (Failing(), "item 0 of the dataset of images failed: KeyError: 'boom'"),
    ],
    ids=["loader", "generator", "none", "text", "path", "failing"],
)
def test_what_is_no_images_says_what_to_do(values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Images(values)
