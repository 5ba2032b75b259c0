"""Data sets, loaders and augmentation."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import torch
from mnist_files import write_mnist
from torch.utils.data import TensorDataset
from torchvision.datasets import mnist as torchvision_mnist

from bnn_ext import data

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


# --- MNIST ----------------------------------------------------------------------------------------


def no_network(*arguments: object, **keywords: object) -> None:
    raise URLError("no network")


def test_mnist_reads_the_files_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", no_network)
    pixels = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)
    labels = torch.arange(20, dtype=torch.uint8) % 10
    write_mnist(tmp_path, pixels, labels)
    mnist = data.mnist(tmp_path)
    for part in (mnist.train, mnist.test):
        images, found = part.tensors
        assert images.shape == (20, 1, 28, 28) and images.dtype == torch.float32
        assert torch.equal((images[:, 0] + 1) * 128, pixels.float())
        assert torch.equal(found, labels.long())


def test_missing_mnist_names_the_folder_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        data.mnist(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert f"MNIST('{tmp_path}', download=True)" in message


# --- loader ---------------------------------------------------------------------------------------


def numbers(count: int) -> TensorDataset:
    """Images of one pixel whose value is also their label."""
    labels = torch.arange(count)
    return TensorDataset(labels.float().view(-1, 1, 1, 1), labels)


def test_loader_in_order_gives_every_image_once():
    batches = list(data.loader(numbers(10), 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(10))
    for images, labels in batches:
        assert torch.equal(images.flatten(), labels.float())


def test_shuffled_loader_gives_full_batches_in_a_new_order_each_time():
    loader = data.loader(numbers(103), 10, shuffle=True)
    passes = [torch.cat([labels for _, labels in loader]) for _ in range(2)]
    for labels in passes:
        assert len(labels) == 100 and len(labels.unique()) == 100
    assert not torch.equal(*passes)
    assert len(loader) == 10


def test_loader_augments_images_and_leaves_labels():
    ((images, labels),) = data.loader(numbers(5), 5, augment=lambda images: images + 100)
    assert torch.equal(images.flatten(), torch.arange(5) + 100.0)
    assert torch.equal(labels, torch.arange(5))


def test_loader_refuses_impossible_batch_sizes():
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        data.loader(numbers(10), 0)
    with pytest.raises(ValueError, match="batch_size must be at most 10, .* found 11"):
        data.loader(numbers(10), 11, shuffle=True)
    assert len(data.loader(numbers(10), 11)) == 1


# --- random_shift ---------------------------------------------------------------------------------


def test_random_shift_moves_each_image_as_a_whole():
    images = torch.randn(200, 2, 5, 6)
    shifted = data.random_shift(images, limit=1, fill=7.0)
    offsets = set()
    for before, after in zip(images, shifted, strict=True):
        padded = torch.nn.functional.pad(before, (1, 1, 1, 1), value=7.0)
        matches = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if torch.equal(after, padded[:, top : top + 5, left : left + 6])
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) == 9  # all of them occur among 200 images


def test_random_shift_by_nothing_changes_nothing():
    images = torch.randn(3, 1, 4, 4)
    assert torch.equal(data.random_shift(images, limit=0, fill=0.0), images)
