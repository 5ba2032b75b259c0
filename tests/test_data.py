"""Data sets, loaders and augmentation."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from image_files import write_cifar, write_mnist
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import cifar as torchvision_cifar
from torchvision.datasets import mnist as torchvision_mnist

from bnn_ext import data
from bnn_ext.data import ImageData, preprocessing
from bnn_ext.data.preprocessing import PREPROCESSINGS

# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_real_images_in_a_fixed_stratified_split():
    first, second = data.digits(), data.digits()
    for part, count in ((first.train, 1437), (first.test, 360)):
        images, labels = part.tensors
        assert images.shape == (count, 1, 8, 8) and images.dtype == torch.float32
        assert labels.shape == (count,) and labels.dtype == torch.int64
        shares = labels.bincount(minlength=first.num_classes) / count
        all_labels = torch.cat([first.train.tensors[1], first.test.tensors[1]])
        expected = all_labels.bincount() / len(all_labels)
        # The nearest that whole images come to equal shares.
        assert (shares - expected).abs().max() < 1 / count
    for mine, again in zip(first.train.tensors, second.train.tensors, strict=True):
        assert torch.equal(mine, again)


def test_digits_split_holds_every_image_once():
    from sklearn.datasets import load_digits

    digits = data.digits()
    images = torch.cat([digits.train.tensors[0], digits.test.tensors[0]]).flatten(1)
    pixels = ((images + 1) * 8).to(torch.int64)
    source = torch.from_numpy(load_digits().data).to(torch.int64)
    assert sorted(pixels.tolist()) == sorted(source.tolist())


def test_digits_pixels_are_eighths_and_span_minus_one_to_one():
    images = data.digits().train.tensors[0]
    assert torch.equal(images * 8, (images * 8).round())
    assert (images.min(), images.max()) == (-1, 1)


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bnn_ext\[demo\]'"):
        data.digits()


# --- data sets of torchvision ---------------------------------------------------------------------


def no_network(*arguments: object, **keywords: object) -> None:
    raise URLError("no network")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", no_network)


def pixels(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_is_read_as_it_lies_in_the_files(name, folder, tmp_path):
    source = pixels(20, 28, 28)
    labels = torch.arange(20, dtype=torch.uint8) % 10
    write_mnist(tmp_path, source, labels, folder)
    found = data.load(name, tmp_path)
    assert found.val is None and found.augmentation is None and found.num_classes == 10
    for part in (found.train, found.test):
        images, found_labels = part[:]
        assert images.shape == (20, 1, 28, 28) and images.dtype == torch.float32
        assert torch.equal((images[:, 0] + 1) * 128, source.float())
        assert torch.equal(found_labels, labels.long())


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_as_it_lies_in_the_files(classes, tmp_path, monkeypatch):
    source = pixels(50, 3, 32, 32)
    labels = torch.arange(50) % classes
    write_cifar(tmp_path, source, labels, classes, monkeypatch)
    found = data.load(f"cifar{classes}", tmp_path, "unit")
    for part in (found.train, found.test):
        images, found_labels = part[:]
        assert torch.equal(images, source.float() / 255)
        assert torch.equal(found_labels, labels)
    assert found.num_classes == classes


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_data_names_the_folder_and_the_command(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, tmp_path)
    message = str(caught.value)
    cls = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}.get(name, name.upper())
    assert str(tmp_path) in message
    assert f"from torchvision.datasets import {cls}; {cls}('{tmp_path}', download=True)" in message


def test_unknown_names_list_the_choices(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of digits, mnist, .* 'letters'"):
        data.load("letters", tmp_path)
    with pytest.raises(ValueError, match="of mnist must be one of power_of_two, .* 'bnew'"):
        data.load("mnist", tmp_path, "bnew")
    assert data.preprocessings("cifar10")[0] == "imagenet_statistics"


# --- preprocessing --------------------------------------------------------------------------------


def colour_images(tmp_path, monkeypatch, preprocessing: str):
    """Some images of CIFAR's kind, and what they become."""
    source = pixels(50, 3, 32, 32)
    write_cifar(tmp_path, source, torch.arange(50) % 10, 10, monkeypatch)
    return source.double() / 255, data.load("cifar10", tmp_path, preprocessing)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("power_of_two", 128 / 255, 128 / 255),
        ("raw", 0, 1 / 255),
        ("unit", 0, 1),
        ("bop", 0.5, 0.5),
        ("imagenet_statistics", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar_statistics", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ],
)
def test_preprocessings_have_the_published_statistics(name, mean, std, tmp_path, monkeypatch):
    x, found = colour_images(tmp_path, monkeypatch, name)
    mean, std = (torch.as_tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    # A few roundings in float32 of numbers up to 255.
    torch.testing.assert_close(found.train[:][0].double(), (x - mean) / std, rtol=1e-5, atol=1e-6)
    black = (-mean / std).expand(3, 1, 1).flatten()
    torch.testing.assert_close(found.background.double(), black, rtol=1e-5, atol=1e-6)


def test_bnew_holds_out_the_images_of_its_seed(tmp_path, monkeypatch):
    x, found = colour_images(tmp_path, monkeypatch, "bnew")
    mean = torch.tensor([125.3, 123.0, 113.9]).view(-1, 1, 1) / 255
    std = torch.tensor([63.0, 62.1, 66.7]).view(-1, 1, 1) / 255
    order = np.random.RandomState(1234).permutation(50)
    for part, indices in ((found.train, order[:45]), (found.val, order[45:])):
        torch.testing.assert_close(
            part[:][0].double(), (x[indices] - mean) / std, rtol=1e-5, atol=1e-6
        )
        assert torch.equal(part[:][1], torch.from_numpy(indices) % 10)


def test_centered_takes_off_one_mean_and_holds_out_the_last(tmp_path, monkeypatch):
    x, found = colour_images(tmp_path, monkeypatch, "centered")
    expected = x - x.mean()
    assert (len(found.train), len(found.val)) == (42, 8)
    both = torch.cat([found.train[:][0], found.val[:][0]])
    torch.testing.assert_close(both.double(), expected, rtol=1e-5, atol=1e-6)


def test_zca_whitens_and_keeps_its_matrix(monkeypatch, tmp_path):
    source = pixels(400, 1, 4, 4).repeat_interleave(2, dim=-1)  # neighbours are equal
    source[..., 0] = source[..., 1] // 2
    found = PREPROCESSINGS["zca"].fit(source, tmp_path)(source).double()
    x = source.flatten(1).double() / 255
    values, vectors = np.linalg.eigh(np.cov(x.T.numpy(), bias=True))
    matrix = torch.from_numpy(vectors / np.sqrt(values.clip(0) + 1e-5) @ vectors.T)
    # float32 times inverse roots of up to 300.
    torch.testing.assert_close(found.flatten(1), (x - x.mean(0)) @ matrix, rtol=1e-3, atol=1e-3)

    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".safetensors"
    monkeypatch.setattr(preprocessing, "_whitening", None)  # not needed any more
    again = PREPROCESSINGS["zca"].fit(source, tmp_path)(source)
    assert torch.equal(again.double(), found)


# --- ImageNet -------------------------------------------------------------------------------------


@pytest.fixture
def imagenet_root(tmp_path) -> Path:
    for part in ("train", "val"):
        for i, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / "ImageNet" / part / name
            folder.mkdir(parents=True)
            for k in range(4):
                noise = pixels(300, 260 + k, 3).numpy() // 2 + 60 * i
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{k}.png")
    return tmp_path


def test_imagenet_cuts_out_centres_and_random_parts(imagenet_root):
    found = data.load("imagenet", imagenet_root)
    assert found.num_classes == 3 and len(found.train) == 12
    images, labels = found.test[torch.tensor([0, 5, 11])]
    assert images.shape == (3, 3, 224, 224)
    assert labels.tolist() == [0, 1, 2]
    once, again = (next(iter(data.Batches(found, 6, seed=3))) for _ in range(2))
    other = next(iter(data.Batches(found, 6, seed=4)))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])


def test_imagenet_by_workers_is_the_same(imagenet_root):
    found = data.load("imagenet", imagenet_root)
    alone, with_workers = (
        list(data.Batches(found, 6, seed=3, workers=workers)) for workers in (0, 2)
    )
    for (images, labels), (same, same_labels) in zip(alone, with_workers, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)


def test_missing_imagenet_names_the_folder_and_the_command(imagenet_root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not in .*/none/ImageNet/train .*ImageNet\("):
        data.load("imagenet", tmp_path / "none")
    (imagenet_root / "ImageNet" / "val" / "dog").rename(imagenet_root / "ImageNet" / "val" / "fox")
    with pytest.raises(FileNotFoundError, match="must hold the same classes"):
        data.load("imagenet", imagenet_root)


# --- batches --------------------------------------------------------------------------------------


def numbers(count: int, **keywords) -> ImageData:
    """Images of one pixel whose value is also their label."""
    labels = torch.arange(count)
    part = TensorDataset(labels.float().view(-1, 1, 1, 1), labels)
    return ImageData("numbers", part, part, count, background=0.0, **keywords)


def labels_of(batches: data.Batches, epoch: int = 0) -> list[torch.Tensor]:
    batches.sampler.set_epoch(epoch)
    found = []
    for images, labels in batches:
        assert torch.equal(images.flatten(), labels.float())
        found.append(labels)
    return found


def test_evaluation_gives_every_image_once_and_in_order():
    found = [labels for _, labels in data.EvaluationBatches(numbers(10).test, 4)]
    assert [len(labels) for labels in found] == [4, 4, 2]
    assert torch.equal(torch.cat(found), torch.arange(10))
    shares = [
        labels
        for rank in range(2)
        for _, labels in data.EvaluationBatches(numbers(10).test, 4, rank=rank, world_size=2)
    ]
    assert sorted(torch.cat(shares).tolist()) == list(range(10))


def test_training_gives_full_batches_in_an_order_of_seed_and_epoch():
    batches = data.Batches(numbers(103), 10, seed=0)
    assert len(batches) == 10
    first, second = (torch.cat(labels_of(batches, epoch)) for epoch in range(2))
    for labels in (first, second):
        assert len(labels) == 100 and len(labels.unique()) == 100
    assert not torch.equal(first, second)
    torch.manual_seed(5)  # which matters to nothing
    again = data.Batches(numbers(103), 10, seed=0)
    assert torch.equal(torch.cat(labels_of(again, 1)), second)
    other = data.Batches(numbers(103), 10, seed=1)
    assert not torch.equal(torch.cat(labels_of(other, 1)), second)


def test_training_goes_on_where_its_state_says():
    batches = data.Batches(numbers(50), 10, seed=0)
    whole = labels_of(batches)
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    rest = data.Batches(numbers(50), 10, seed=0)
    rest.load_state_dict(batches.state_dict())
    assert torch.equal(torch.cat(labels_of(rest)), torch.cat(whole[2:]))
    assert torch.equal(torch.cat(labels_of(rest)), torch.cat(whole))  # then from the start


def test_processes_share_each_batch_with_its_augmentation():
    images = ImageData(
        "noise",
        TensorDataset(torch.randn(40, 2, 6, 6), torch.arange(40)),
        numbers(1).test,
        40,
        background=0.0,
        augmentation=data.Augmentation(shift=2, flip=True),
    )
    whole = data.Batches(images, 8, seed=0)
    shares = [data.Batches(images, 8, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for (x, y), *parts in zip(whole, *shares, strict=True):
        for rank, (part_x, part_y) in enumerate(parts):
            assert torch.equal(x[rank::2], part_x) and torch.equal(y[rank::2], part_y)


def test_impossible_batches_are_refused():
    for size, text in ((0, "1 .. 10, the images there are, found 0"), (11, "found 11")):
        with pytest.raises(ValueError, match=f"batch_size must be in .*{text}"):
            data.Batches(numbers(10), size, seed=0)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 2, .* found 5"):
        data.Batches(numbers(10), 5, seed=0, world_size=2)


def test_images_are_scaled_to_the_input_size():
    images, _ = next(iter(data.Batches(numbers(4), 2, seed=0, input_size=7)))
    assert images.shape == (2, 1, 7, 7)
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))  # of one pixel: constant


# --- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_augment_moves_each_image_as_a_whole(flip):
    images = torch.randn(400, 2, 5, 6)
    fill = torch.tensor([7.0, -7.0])
    draws = torch.rand(400, 3, dtype=torch.float64)
    changed = data.augment(images, data.Augmentation(shift=1, flip=flip), fill, draws)
    seen = set()
    for before, after in zip(images, changed, strict=True):
        padded = fill.view(2, 1, 1).expand(2, 7, 8).clone()
        padded[:, 1:-1, 1:-1] = before
        matches = [
            (top, left, flipped)
            for top in range(3)
            for left in range(3)
            for flipped in range(2)
            if torch.equal(
                after.flip(-1) if flipped else after, padded[:, top : top + 5, left : left + 6]
            )
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == (18 if flip else 9)  # all of them occur among 400 images


def test_augment_by_nothing_changes_nothing():
    images = torch.randn(3, 1, 4, 4)
    same = data.augment(images, data.Augmentation(), 0.0, torch.rand(3, 3, dtype=torch.float64))
    assert torch.equal(images, same)
