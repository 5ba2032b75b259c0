"""The commands train, evaluate, convert, recipes and plot."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from image_files import write_mnist

from bnn_ext import cli
from bnn_ext.training import files, memory, recipes
from bnn_ext.training.run_plots import read_run

SMALL = ["--model", "binary_dense_mlp", "--model-config", "{'hidden': [16]}", "-b", "100"]


def train(folder: Path, *arguments: str) -> int:
    results = ["--results-dir", str(folder.parent), "--save", folder.name]
    return cli.main(["train", *SMALL, "--gpus", "none", *results, *arguments])


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "digits"
    assert train(folder, "--epochs", "2") == 0
    return folder


def settings(folder: Path):
    return files.settings_in(files.read_checkpoint(folder / "last.ckpt"))


def test_train_says_what_it_does(tmp_path, capsys):
    assert train(tmp_path / "run", "--epochs", "1") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("1,437 images", "binary_dense_mlp, 1,262 weights", "epoch 1/1 100%", "best     "):
        assert text in captured.out


@pytest.mark.parametrize("command", [["train", "--model", "unknown"], ["evaluate", "missing"]])
def test_what_runs_models_keeps_memory(command, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append("keep_freed"))
    assert cli.main(command) == 2
    assert calls == ["keep_freed"]


def test_evaluate_convert_and_evaluate_again(digits_run, tmp_path, capsys):
    converted = tmp_path / "model.bnn"
    assert cli.main(["evaluate", str(digits_run)]) == 0
    of_checkpoint = capsys.readouterr().out
    assert "top-1" in of_checkpoint and "(360 images)" in of_checkpoint
    assert cli.main(["convert", str(digits_run / "best.ckpt"), "-o", str(converted)]) == 0
    assert f"written: {converted}" in capsys.readouterr().out
    assert cli.main(["evaluate", str(converted), "--dataset", "digits"]) == 0
    assert capsys.readouterr().out == of_checkpoint  # the second epoch is the best
    assert cli.main(["train", "--evaluate", str(digits_run)]) == 0
    assert capsys.readouterr().out == of_checkpoint


def test_the_options_of_binarynet_are_understood(tmp_path):
    """With the spellings of its table."""
    folder = tmp_path / "other" / "run"
    arguments = ["--results_dir", str(folder.parent), "--save", "run", "-a", "binary_dense_mlp"]
    arguments += ["--model_config", "{'hidden': [8]}", "--dataset", "digits", "--epochs", "1"]
    arguments += ["-b", "50", "--optimizer", "SGD", "--learning_rate", "0.01", "--momentum", "0.5"]
    arguments += ["--wd", "1e-3", "-j", "0", "-p", "3", "--gpus", "none", "--input_size", "9"]
    assert cli.main(["train", *arguments]) == 0
    found = settings(folder)
    assert (found.optimizer, found.lr, found.momentum, found.weight_decay) == (
        "SGD",
        0.01,
        0.5,
        1e-3,
    )
    assert (found.batch_size, found.input_size) == (50, 9)
    checkpoint = files.read_checkpoint(folder / "last.ckpt")
    assert checkpoint["state_dict"]["model.1.weight"].shape == (8, 81)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.5


def test_options_override_the_config_and_that_the_recipe(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 1\nlr: 2e-3\nmodel_config: {hidden: [9]}\n")
    write_mnist(tmp_path, torch.randint(0, 256, (700, 28, 28), dtype=torch.uint8),
                torch.arange(700, dtype=torch.uint8) % 10)  # fmt: skip
    arguments = ["--recipe", "dense-128-64-mnist", "--config", str(tmp_path / "config.yaml")]
    arguments += ["--lr", "0.003", "--data-root", str(tmp_path), "--gpus", "none"]
    arguments += ["--results-dir", str(tmp_path), "--save", "run"]
    assert cli.main(["train", *arguments]) == 0
    found = settings(tmp_path / "run")
    assert (found.dataset, found.preprocessing, found.batch_size) == ("mnist", "unit", 512)
    assert (found.epochs, found.model_config, found.lr) == (1, {"hidden": [9]}, 0.003)


def test_resume_takes_the_settings_of_the_checkpoint_and_its_folder(digits_run, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, "--epochs", "1", "--schedule", "constant", "--seed", "4") == 0
    assert cli.main(["train", "--resume", str(folder), "--epochs", "3", "--gpus", "none"]) == 0
    with open(folder / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    found = settings(folder)
    assert (found.seed, found.schedule, found.model) == (4, "constant", "binary_dense_mlp")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_run_that_goes_on(number, tmp_path):
    command = [sys.executable, "-m", "bnn_ext.cli", "train", *SMALL, "--gpus", "none"]
    command += ["--epochs", "5000", "--results-dir", str(tmp_path), "--save", "run"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err == "\nstopping after this step; Ctrl-C again stops at once\n\nstopped\n"
    with open(tmp_path / "run" / "metrics.csv") as file:
        done = len(list(csv.DictReader(file)))
    assert (
        train(tmp_path / "run", "--resume", str(tmp_path / "run"), "--epochs", str(done + 1)) == 0
    )
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [
            str(i + 1) for i in range(done + 1)
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "vgg"], "model must be one of alexnet, alexnet_binary"),
        (["train", "--dataset", "letters"], "dataset must be one of digits, mnist"),
        (["train", "--recipe", "best"], "recipe must be one of binarynet-vgg-cifar10"),
        (["train", "--gpus", "many"], "--gpus must be like 0 or 0,1 or none, found 'many'"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train", "--resume", "nowhere.ckpt"], "nowhere.ckpt is no file"),
        (["evaluate", "nowhere"], "nowhere is no file"),
        (["convert", "nowhere", "-o", "model.pt"], "output must end in .bnn, found model.pt"),
        (["plot", "nowhere"], "nowhere holds no metrics.csv"),
    ],
)
def test_mistakes_give_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"bnn-ext {arguments[0]}: ") and message in line
    assert captured.out == ""


def test_a_converted_network_needs_the_data_set_and_the_images_size(digits_run, tmp_path, capsys):
    converted = str(tmp_path / "model.bnn")
    assert cli.main(["convert", str(digits_run), "-o", converted]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", converted]) == 2
    assert "dataset must be given" in capsys.readouterr().err
    assert cli.main(["evaluate", converted, "--dataset", "digits", "--input-size", "9"]) == 2
    assert "does not take 1x9x9 images (input_size scales them): " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model-config", "--method-config"])
def test_configs_must_be_dicts(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", option, "hidden=3"])
    assert "must be a dict like {'width': 0.5}, found hidden=3" in capsys.readouterr().err


def test_settings_of_a_method(tmp_path, capsys):
    method = ["--method", "bop", "--epochs", "1", "--method-config"]
    assert train(tmp_path, *method, "{'threshold': 1e-7}") == 0
    assert settings(tmp_path).method_config == {"threshold": 1e-7}
    assert train(tmp_path, *method, "{'depth': 1}") == 2
    assert "setting of method bop must be one of lr, threshold" in capsys.readouterr().err


def test_recipes_are_listed(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name, recipe in recipes.all_recipes().items():
        assert name in out and recipe.expected in out and recipe.source in out


def test_plot_draws_runs_in_one_picture(digits_run, tmp_path):
    assert train(tmp_path / "float", "--model", "resnet", "--model-config", "{'depth': 8}",
                 "--epochs", "1") == 0  # fmt: skip
    path = tmp_path / "runs.png"
    assert cli.main(["plot", str(digits_run), str(tmp_path / "float"), "-o", str(path)]) == 0
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB\x60\x82")


def test_runs_are_read_with_their_confusion_and_weights(digits_run):
    run = read_run(digits_run)
    assert run.name == "digits" and len(run.rows) == 2
    accuracy = run.confusion.diagonal().sum() / run.confusion.sum()
    assert accuracy.item() == pytest.approx(run.rows[-1]["val_acc"], abs=1e-6)
    assert len(run.weights) == 64 * 16 + 16 * 10
    assert (run.weights.abs() - 1).abs().mean().item() == pytest.approx(run.rows[-1]["distance"])
