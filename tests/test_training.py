"""Models, training, and the steps of the demonstration."""

from __future__ import annotations

import csv
import math
import signal
import time

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bnn_ext
from bnn_ext import data, models
from bnn_ext import nn as bnn
from bnn_ext.training import Classifier, Optimization, demo, fit, plots

# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("constructor", "size"), [(models.digits_cnn, 8), (models.mnist_cnn, 28)])
def test_models_convert_with_bits_between_all_layers(constructor, size):
    model = constructor(num_classes=7).eval()
    images = torch.randn(2, 1, size, size)
    assert model(images).shape == (2, 7)
    fast = bnn_ext.convert(model, images)
    assert fast.report.verification is not None
    assert fast.report.verification.different_predictions == 0
    # Only the first convolution, which gives bits at once, and the last layer see floats.
    assert not [layer.kind for layer in fast.report.layers if layer.status == "left"]
    packed = [layer.kind for layer in fast.report.layers if layer.status == "packed"]
    assert packed == ["BinaryLinear"]


# --- training -------------------------------------------------------------------------------------


def bright_or_dark(count: int) -> TensorDataset:
    """4x4 images whose label is 1 where their mean is positive."""
    labels = torch.arange(count) % 2
    return TensorDataset((2 * labels - 1).view(-1, 1, 1, 1) + torch.randn(count, 1, 4, 4), labels)


def tiny_model() -> nn.Sequential:
    return nn.Sequential(
        bnn.BinaryConv2d(1, 8, 3, input_quantizer=None),
        nn.BatchNorm2d(8),
        nn.Hardtanh(),
        nn.Flatten(),
        bnn.BinaryLinear(32, 2),
        nn.BatchNorm1d(2),
    )


def train_tiny(epochs: int = 3, lr: float = 5e-3, **keywords):
    L.seed_everything(0, verbose=False)
    classifier = Classifier(tiny_model(), 2, Optimization(lr=lr))
    train, val = loaders(bright_or_dark(64), 16)
    return classifier, fit(classifier, train, val, epochs=epochs, **keywords)


def loaders(dataset: TensorDataset, batch_size: int):
    images = data.ImageData("bright or dark", dataset, dataset, num_classes=2, background=0.0)
    return data.Batches(images, batch_size, seed=0), data.EvaluationBatches(dataset, 64)


def test_fit_learns_and_logs_one_row_per_epoch(tmp_path):
    _, rows = train_tiny(epochs=12, log_dir=tmp_path / "logs" / "tiny")
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    # The classes lie 8 standard deviations of the mean apart, so a net that learns separates them.
    assert rows[-1]["val_acc"] > 0.95
    last_step = 5e-3 * (1 + math.cos(math.pi * 47 / 48)) / 2  # of 12 epochs of 4 steps
    assert rows[-1]["learning_rate"] == pytest.approx(last_step, rel=1e-12)  # rounding
    assert all(row["seconds"] > 0 for row in rows)
    with open(tmp_path / "logs" / "tiny" / "metrics.csv") as file:
        logged = list(csv.DictReader(file))
    assert len(logged) == 12
    for row, line in zip(rows, logged, strict=True):
        for name, value in row.items():
            assert float(line[name]) == value


def test_fit_repeats_with_the_same_seed():
    (first, rows), (second, rows_again) = train_tiny(epochs=2), train_tiny(epochs=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    for row, again in zip(rows, rows_again, strict=True):
        assert {**row, "seconds": 0} == {**again, "seconds": 0}


def test_fit_clips_latent_weights_and_nothing_else():
    # Adam moves a weight by about the learning rate in a step: here far over the limit.
    classifier, _ = train_tiny(epochs=1, lr=3.0)
    for layer in classifier.model:
        if isinstance(layer, (bnn.BinaryConv2d, bnn.BinaryLinear)):
            assert layer.weight.abs().max() == 1
    assert classifier.model[1].weight.abs().max() > 1


def test_fit_leaves_the_rows_of_the_last_run_alone(tmp_path):
    for _ in range(2):
        train_tiny(epochs=1, log_dir=tmp_path / "logs")
    with open(tmp_path / "logs" / "metrics.csv") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_fit_stops_with_keyboard_interrupt():
    class Interrupting(TensorDataset):
        def __getitem__(self, index: object) -> object:
            raise KeyboardInterrupt

    classifier = Classifier(tiny_model(), num_classes=2)
    train, val = loaders(Interrupting(*bright_or_dark(4).tensors), 2)
    with pytest.raises(KeyboardInterrupt):
        fit(classifier, train, val, epochs=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- steps of the demonstration -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train_tiny()[0].model.eval()


def test_verify_counts_all_images_and_notices_a_wrong_prediction(trained, monkeypatch):
    monkeypatch.setattr(demo, "_EVAL_BATCH", 5)
    images, _ = bright_or_dark(12).tensors
    fast = bnn_ext.convert(trained, images)
    verification = demo.verify(trained, fast, images)
    assert verification.equal
    assert (verification.predictions, verification.elements) == (12, 24)
    with pytest.raises(RuntimeError, match="12 of 12 predictions are different"):
        demo.verify(nn.Sequential(trained, Negate()), fast, images)


class Negate(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return -logits


def test_accuracy_is_the_fraction_of_right_predictions(monkeypatch):
    monkeypatch.setattr(demo, "_EVAL_BATCH", 2)
    logits = torch.eye(4)
    assert demo.accuracy(nn.Identity(), logits, torch.tensor([0, 1, 2, 0])) == 0.75


def test_fixed_weights_compute_the_same_and_leave_the_model_alone(trained):
    images, _ = bright_or_dark(6).tensors
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    fixed = demo.with_fixed_weights(trained)
    assert torch.equal(fixed(images), trained(images))
    assert set(fixed[0].weight.flatten().tolist()) == {-1.0, 1.0}
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_medians_are_in_milliseconds_and_in_order():
    short, long = demo.medians(
        lambda: time.sleep(0.001), lambda: time.sleep(0.004), blocks=3, seconds=0.004
    )
    assert 1 <= short < long and long >= 4  # a sleep is never shorter than asked for


def test_measure_gives_the_threads_back(trained, two_threads):
    fast = bnn_ext.convert(trained)
    images, _ = bright_or_dark(64).tensors
    float_ms, packed_ms = demo.measure(trained, fast, images)
    assert list(float_ms) == list(packed_ms) == [1, 64]
    assert min(*float_ms.values(), *packed_ms.values()) > 0
    assert torch.get_num_threads() == 2


def test_run_refuses_bad_arguments(tmp_path):
    for arguments, message in (
        ({"dataset": "letters"}, "dataset must be one of digits, mnist, found 'letters'"),
        ({"epochs": 0}, "epochs must be at least 1, found 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            demo.run(output=tmp_path / "demo", **arguments)
    assert not (tmp_path / "demo").exists()


# --- plots ----------------------------------------------------------------------------------------


def test_plots_are_written_whole_and_replace_older_ones(tmp_path):
    rows = [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "train_acc": 0.5, "val_acc": 0.6}
        for i in (1, 2)
    ]
    pairs = [
        plots.Pair("time", "ms", 2.0, 0.5, "faster"),
        plots.Pair("size", "MB", 8, 1, "smaller"),
    ]
    for path, draw in (
        (tmp_path / "a.png", lambda path: plots.plot_training(rows, "Training", path)),
        (tmp_path / "b.png", lambda path: plots.plot_comparison(pairs, "Comparison", path)),
    ):
        path.write_text("older")
        draw(path)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB\x60\x82")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
