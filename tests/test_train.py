"""Whole trainings: exact, resumable, and safe whatever stops them."""

from __future__ import annotations

import csv
import dataclasses
import errno
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

from bnn_ext import data, models, optim
from bnn_ext.training import Evaluation, Settings, convert, evaluate, files, recipes, train
from bnn_ext.training import settings as settings_module
from bnn_ext.training.methods import METHODS

SMALL = Settings(
    model="binary_dense_mlp",
    model_config={"hidden": [16]},
    dataset="digits",
    epochs=2,
    batch_size=100,  # of 1437: 14 steps an epoch
    schedule="constant",
)
DROPS = dataclasses.replace(
    SMALL,
    model="mlp_mnist_binary",
    model_config={"hidden": 16, "layers": 2, "dropout": 0.2},
    schedule="cosine",
)


def run(settings: Settings, folder: Path, **keywords):
    return train(settings, folder, gpu=-1, **keywords)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All weights and all of the optimizer's state in a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    states = {
        f"{i}.{name}": torch.as_tensor(value)
        for i, state in optimizer["state"].items()
        for name, value in state.items()
    }
    weights = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    return {**weights, **states}


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = tensors(first / "last.ckpt"), tensors(second / "last.ckpt")
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert without_times(rows(first)) == without_times(rows(second))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in rows]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    run(SMALL, folder)
    return folder


# --- exactly the same -----------------------------------------------------------------------------


def test_two_epochs_equal_one_and_another_after_resuming(small_run, tmp_path):
    run(dataclasses.replace(SMALL, epochs=1), tmp_path)
    run(SMALL, tmp_path, resume=tmp_path)
    assert_same_run(small_run, tmp_path)


class CtrlC:
    """Sends SIGINT in a training step, as the terminal does."""

    def __init__(self, model: nn.Module, step: int) -> None:
        self.step, self.steps = step, 0
        model.register_forward_pre_hook(self.count)

    def count(self, model: nn.Module, inputs: object) -> None:
        if model.training:
            self.steps += 1
            if self.steps == self.step:
                signal.raise_signal(signal.SIGINT)


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Makes trainings meet Ctrl-C in a step, counted from 1."""
    make_model = Settings.make_model

    def interrupting(self: Settings, *arguments):
        model = make_model(self, *arguments)
        CtrlC(model, step)
        return model

    patch.setattr(Settings, "make_model", interrupting)


@pytest.mark.parametrize("step", [1, 13, 14, 15])
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_exactly(step, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(DROPS, whole)
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            run(DROPS, parts)
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if step >= 14:
        assert len(rows(parts)) == step // 14
    else:
        assert not (parts / "metrics.csv").exists()
    run(DROPS, parts, resume=parts)
    assert_same_run(whole, parts)


def test_two_processes_equal_one_on_the_same_batches(tmp_path):
    """Up to the order of sums: the mean gradient of two halves is that of the whole."""
    # Without BatchNorm, whose statistics torch shares among GPUs only; SGD, because Adam makes
    # much of the sign of a gradient that is nothing but rounding.
    settings = dataclasses.replace(
        SMALL,
        model_config={"hidden": [16], "bias": False, "batch_norm": False},
        optimizer="SGD",
        lr=1e-3,
    )
    run(settings, tmp_path / "one")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings.as_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "bnn_ext.cli", "train", "--config", str(config), "--gpus", "none"]
    command += ["--results-dir", str(tmp_path), "--save", "two"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best ") == 1  # only one of them speaks
    one, two = tensors(tmp_path / "one" / "last.ckpt"), tensors(tmp_path / "two" / "last.ckpt")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)
    for ours, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("train_acc", "val_acc", "flips"):
            assert float(theirs[name]) == float(ours[name]), name


# --- safe -----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_what_was(tmp_path, monkeypatch):
    run(dataclasses.replace(SMALL, epochs=1), tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()
    loss = settings_module.LOSSES["cross_entropy"]
    steps = []

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        steps.append(logits.requires_grad)
        return loss(logits, labels) * (float("nan") if sum(steps) == 3 else 1)

    monkeypatch.setitem(settings_module.LOSSES, "cross_entropy", broken)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 16 \(epoch 2, batch 3\)"):
        run(SMALL, tmp_path, resume=tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    # In a binary network the sign of NaN is -1, and the loss may not show it.
    def broken(self: Settings, *arguments):
        model = make_model(self, *arguments)
        model[1].weight.data[0, 0] = float("nan")
        return model

    make_model = Settings.make_model
    monkeypatch.setattr(Settings, "make_model", broken)
    with pytest.raises(FloatingPointError, match=r"model.1.weight .* step 14 \(epoch 1\)"):
        run(SMALL, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_full_disk_leaves_the_earlier_files(tmp_path):
    """A real limit of the size of files, in a process of its own."""
    run(dataclasses.replace(SMALL, epochs=1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (
        "import resource, signal, sys; from bnn_ext import cli;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", "--epochs", "2", "--resume", str(tmp_path)]
    done = subprocess.run([*command, "--gpus", "none"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "last.ckpt could not be written" in line and "the earlier file is still there" in line
    assert before["last.ckpt"] == (tmp_path / "last.ckpt").read_bytes()
    assert before["best.ckpt"] == (tmp_path / "best.ckpt").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_another_model_names_the_first_mismatch(small_run):
    wider = dataclasses.replace(SMALL, model_config={"hidden": [17]})
    with pytest.raises(ValueError, match=r"1.weight must have shape \(17, 64\), found \(16, 64\)"):
        run(wider, small_run / "other", resume=small_run)
    deeper = dataclasses.replace(SMALL, model_config={"hidden": [16, 10]})
    with pytest.raises(ValueError, match=r"5.weight must have shape \(10, 10\), found nothing"):
        run(deeper, small_run / "other", resume=small_run)
    shallower = dataclasses.replace(SMALL, model_config={"hidden": []})
    with pytest.raises(ValueError, match="another model"):
        run(shallower, small_run / "other", resume=small_run)
    assert not (small_run / "other").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="last.ckpt is no file"):
        evaluate(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="last.ckpt is no checkpoint of bnn-ext train"):
        evaluate(tmp_path)
    torch.save({"bnn_ext": {"format": 99}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="must be a checkpoint of format 1, found 99"):
        evaluate(tmp_path)


def test_writing_replaces_a_file_as_a_whole(tmp_path):
    path = tmp_path / "file"
    files.write(path, lambda file: file.write(b"first"))

    def half(file) -> None:
        file.write(b"sec")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device; the earlier file is still there"):
        files.write(path, half)
    assert path.read_bytes() == b"first" and [path] == list(tmp_path.iterdir())


# --- what comes of it -----------------------------------------------------------------------------


def test_a_run_leaves_its_files(small_run):
    names = {path.name for path in small_run.iterdir() if path.is_file()}
    assert {"config.yaml", "metrics.csv", "last.ckpt", "best.ckpt"} <= names
    found = rows(small_run)
    assert [row["epoch"] for row in found] == ["1", "2"]
    for row in found:
        assert 0 < float(row["flips"]) < 1 and 0 < float(row["distance"]) < 1
        assert 0 < float(row["val_acc"]) <= float(row["val_top5"]) <= 1
    checkpoint = torch.load(small_run / "last.ckpt", weights_only=True)
    weight = checkpoint["state_dict"]["model.1.weight"]
    assert weight.abs().max() <= 1 and len(weight.unique()) > 100  # latent, not ±1
    # The settings in it make the same run again.
    config = yaml.safe_load((small_run / "config.yaml").read_text())
    assert Settings().changed(config) == SMALL


def test_tensorboard_shows_the_rows_of_all_epochs(tmp_path):
    run(dataclasses.replace(SMALL, epochs=1), tmp_path)
    run(SMALL, tmp_path, resume=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) >= {"train_loss", "val_acc", "flips", "learning_rate"}
    for name in ("train_loss", "val_acc", "flips"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [
            (int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows(tmp_path)
        ]


def test_best_is_the_epoch_of_the_highest_accuracy(tmp_path):
    # So high a learning rate that accuracy goes up and down.
    run(dataclasses.replace(SMALL, epochs=3, lr=1.0), tmp_path)
    accuracies = [float(row["val_acc"]) for row in rows(tmp_path)]
    assert accuracies.index(max(accuracies)) < 2
    assert evaluate(tmp_path / "best.ckpt").top1 == pytest.approx(max(accuracies), abs=1e-6)
    assert evaluate(tmp_path / "last.ckpt").top1 == pytest.approx(accuracies[-1], abs=1e-6)


def test_evaluation_counts_by_hand(small_run):
    model = files.model_in(small_run / "last.ckpt")
    images, labels = data.digits().test[:]
    logits = model(images).detach()
    found = evaluate(small_run)
    predictions = logits.argmax(1)
    assert found.top1 == (predictions == labels).double().mean().item()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.top5 == (ranks < 5).double().mean().item()
    for i in range(10):
        for j in range(10):
            assert found.confusion[i, j] == ((labels == i) & (predictions == j)).sum()
    loss = nn.functional.cross_entropy(logits.double(), labels).item()
    assert found.loss == pytest.approx(loss, rel=1e-5)  # float32 sums in parts
    assert float(rows(small_run)[-1]["val_loss"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("model", ["binary_dense_mlp", "resnet_binary"])
def test_a_converted_network_is_exactly_as_accurate(model, tmp_path):
    config = {"hidden": [16]} if model == "binary_dense_mlp" else {"depth": 8, "inflate": 1}
    run(dataclasses.replace(SMALL, model=model, model_config=config, epochs=1), tmp_path)
    convert(tmp_path, tmp_path / "model.bnn")
    before, after = (
        evaluate(tmp_path),
        evaluate(tmp_path / "model.bnn", changes={"dataset": "digits"}),
    )
    assert before.loss == after.loss and torch.equal(before.confusion, after.confusion)


def test_held_out_images_choose_the_epoch_and_others_judge(tmp_path, monkeypatch, capsys):
    digits = data.digits()
    images, labels = digits.train[:]
    split = dataclasses.replace(
        digits,
        train=TensorDataset(images[:1200], labels[:1200]),
        val=TensorDataset(images[1200:], labels[1200:]),
    )
    monkeypatch.setattr(data, "load", lambda *_: split)
    run(SMALL, tmp_path)
    out = capsys.readouterr().out
    assert f"test     {evaluate(tmp_path / 'best.ckpt')}" in out
    logits = files.model_in(tmp_path / "last.ckpt")(images[1200:])
    accuracy = (logits.argmax(1) == labels[1200:]).double().mean().item()
    assert float(rows(tmp_path)[-1]["val_acc"]) == pytest.approx(accuracy, abs=1e-6)


def test_large_confusion_matrices_show_their_largest_mistakes():
    confusion = torch.zeros(30, 30, dtype=torch.int64)
    confusion[3, 3], confusion[4, 7], confusion[9, 1] = 100, 5, 6
    lines = Evaluation(0.0, 1.0, 1.0, confusion).confusion_table().splitlines()
    assert lines[2].split() == ["9", "1", "6"] and lines[3].split() == ["4", "7", "5"]


# --- methods and schedules ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_resumes_exactly_and_evaluates(method, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = {"frozen_epochs": 1, "strength": 0.1} if method == "bnew" else {}
    settings = dataclasses.replace(DROPS, method=method, method_config=config, epochs=3)
    run(settings, whole)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        interrupt_at(20, patch)
        with pytest.raises(KeyboardInterrupt):
            run(settings, parts)
    run(settings, parts, resume=parts)
    assert_same_run(whole, parts)
    weight = tensors(whole / "last.ckpt")["model.4.weight"]
    if method in ("bop", "bnew"):
        assert set(weight.unique().tolist()) == {-1.0, 1.0}
    else:
        assert weight.abs().max() <= 1 and len(weight.unique()) > 100
    accuracy = float(rows(whole)[-1]["val_acc"])
    assert evaluate(whole).top1 == pytest.approx(accuracy, abs=1e-6)


def test_phases_begin_with_the_weights_of_others(small_run, tmp_path):
    settings = dataclasses.replace(SMALL, init=str(small_run), epochs=1, lr=1e-12)
    run(settings, tmp_path)
    before, after = tensors(small_run / "last.ckpt"), tensors(tmp_path / "last.ckpt")
    assert torch.equal(before["model.1.weight"] >= 0, after["model.1.weight"] >= 0)
    assert float(rows(tmp_path)[0]["flips"]) == 0


def test_teachers_take_the_place_of_labels(small_run, tmp_path, monkeypatch):
    digits = data.digits()
    images, labels = digits.train[:]
    wrong = dataclasses.replace(digits, train=TensorDataset(images, (labels + 1) % 10))
    monkeypatch.setattr(data, "load", lambda *_: wrong)
    run(dataclasses.replace(SMALL, teachers=[str(small_run)], epochs=4), tmp_path)
    assert float(rows(tmp_path)[-1]["val_acc"]) > 0.25  # labels would make it 0


def test_test_weights_may_be_real(tmp_path):
    run(dataclasses.replace(SMALL, test_weights="real"), tmp_path)
    model = files.model_in(tmp_path / "last.ckpt")
    images, labels = data.digits().test[:]
    with optim.weights_as(model, "real"):
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert evaluate(tmp_path).top1 == accuracy
    assert float(rows(tmp_path)[-1]["val_acc"]) == pytest.approx(accuracy, abs=1e-6)
    assert (model(images).argmax(1) == labels).double().mean().item() != accuracy


def test_float_models_train_as_they_are(tmp_path):
    settings = dataclasses.replace(
        SMALL, model="resnet", model_config={"depth": 8}, epochs=1, optimizer="SGD", lr=0.1
    )
    run(settings, tmp_path)
    assert "flips" not in rows(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [0.5, 0.5, 0.5]),
        ({"schedule": "linear", "final_lr": 0.1}, [0.5, 0.3, 0.1]),
        ({"schedule": "cosine", "final_lr": 0.1}, [0.5, 0.3, 0.1]),
        ({"schedule": "exponential", "final_lr": 0.005}, [0.5, 0.05, 0.005]),
    ],
)
def test_schedules_by_hand(changes, expected):
    settings = Settings(lr=0.5, **changes)
    found = [settings.lr * settings.lr_factor(progress) for progress in (0, 0.5, 1)]
    assert found == pytest.approx(expected)


def test_a_regime_changes_settings_from_its_epochs_on(tmp_path):
    settings = dataclasses.replace(SMALL, epochs=3, lr=0.01, regime={1: {"lr": 0.001}})
    run(settings, tmp_path)
    assert [float(row["learning_rate"]) for row in rows(tmp_path)] == [0.01, 0.001, 0.001]


def test_label_smoothing_by_hand(tmp_path):
    logits, labels = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([2])
    log_likelihoods = logits.double().log_softmax(1)[0]
    expected = -(0.9 * log_likelihoods[2] + 0.1 * log_likelihoods.mean()).item()
    settings = dataclasses.replace(SMALL, epochs=1, label_smoothing=0.1)
    assert settings.training_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    run(settings, tmp_path / "smooth")
    run(dataclasses.replace(settings, label_smoothing=0.0), tmp_path / "plain")
    (smooth,), (plain,) = rows(tmp_path / "smooth"), rows(tmp_path / "plain")
    assert float(smooth["train_loss"]) > float(plain["train_loss"])


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg"}, "model must be one of alexnet, .* found 'vgg'"),
        ({"dataset": "letters"}, "dataset must be one of digits, mnist, .* found 'letters'"),
        ({"preprocessing": "zca"}, "preprocessing of digits must be one of power_of_two"),
        ({"optimizer": "Bop"}, "optimizer must be one of SGD, .* found 'Bop'"),
        ({"method": "magic"}, "method must be one of bnn, .* found 'magic'"),
        ({"method_config": {"x": 1}}, "setting of method bnn must be one of nothing, found 'x'"),
        ({"schedule": "steps"}, "schedule must be one of constant, .* found 'steps'"),
        ({"loss": "l2"}, "loss must be one of cross_entropy, .* found 'l2'"),
        ({"label_smoothing": 1}, r"label_smoothing must be in \[0, 1\), found 1.0"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "is for loss cross_entropy, found loss hinge"),
        ({"precision": "8"}, "precision must be one of 32, bf16, 16, found '8'"),
        ({"epochs": 0}, "epochs must be at least 1, found 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, found 1"),
        ({"lr": "fast"}, "lr must be a number, found 'fast'"),
        ({"lr": -1.0}, "lr must be positive, found -1.0"),
        ({"schedule": "exponential"}, "final_lr must be positive for the exponential"),
        ({"regime": {5: {"speed": 1}}}, "settings of Adam must be among .* found 'speed'"),
        ({"colour": "red"}, "setting must be one of .* found 'colour'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings().changed(changes)


def test_models_that_do_not_fit_the_images_are_refused(tmp_path):
    for changes, message in (
        ({"model": "vgg_small_binary", "model_config": {"size": 3}}, "settings of .* found size"),
        ({"model": "mnist_cnn", "model_config": {}}, "does not take 1x8x8 images"),
        ({"model_config": {"num_classes": 7}}, "must give 10 logits for digits"),
    ):
        with pytest.raises(ValueError, match=message):
            run(dataclasses.replace(SMALL, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipes_are_complete_and_make_models():
    for name, recipe in recipes.all_recipes().items():
        settings = Settings().changed(recipe.settings)
        assert settings.preprocessing in (None, *data.preprocessings(settings.dataset)), name
        assert recipe.title and recipe.expected and recipe.source
        assert name in recipes.table()
        known = inspect.signature(getattr(models, settings.model)).parameters
        assert set(settings.model_config) <= set(known), name
    with pytest.raises(ValueError, match="recipe must be one of binarynet-vgg-cifar10, .* 'x'"):
        recipes.get("x")
