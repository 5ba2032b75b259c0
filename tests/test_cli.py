"""The command line and `python -m bnn_ext`."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_files import write_mnist

import bnn_ext
from bnn_ext import cli, data, diagnostics
from bnn_ext.training import demo


def python(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more only wait for each other here
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


# --- demo -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real demonstration, only shorter."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, python("-m", "bnn_ext.cli", "demo", "--epochs", "1", folder=folder)


def test_demo_says_what_it_does_and_nothing_else(demo_run):
    _, run = demo_run
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    steps = [line.split()[0] for line in run.stdout.splitlines() if line[:1].isalpha()]
    for step in ("data", "model", "train", "convert", "verify", "save", "measure", "written:"):
        assert step in steps
    assert run.stdout.count("all 360 test predictions are the same") == 2
    assert "epoch 1/1 100%" in run.stdout
    for noise in ("GPU", "TPU", "Lightning", "Trainer", "workers", "Warning"):
        assert noise not in run.stdout


def test_demo_learns_and_writes_its_files(demo_run):
    folder, run = demo_run
    files = {
        str(path.relative_to(folder)) for path in (folder / "demo").rglob("*") if path.is_file()
    }
    assert files == {
        "demo/digits.bnn",
        "demo/digits_training.png",
        "demo/digits_comparison.png",
        "demo/logs/digits/metrics.csv",
    }
    for file in files:
        assert file in run.stdout

    images, labels = data.digits().test[:]
    fast = bnn_ext.load(folder / "demo" / "digits.bnn")
    accuracy = (fast(images).argmax(1) == labels).double().mean().item()
    assert accuracy > 0.5  # after one epoch; the full demonstration reaches 99 %
    assert f"{accuracy:.2%}" in run.stdout


def test_demo_is_many_times_smaller(demo_run):
    _, run = demo_run
    (row,) = [line.split() for line in run.stdout.splitlines() if line.startswith("bytes")]
    before, after = (int(cell.replace(",", "")) for cell in row[1:3])
    assert before > 25 * after  # 32 times, less thresholds and the real BatchNorm


def test_demo_on_mnist_reads_the_files_in_its_folder(tmp_path, monkeypatch, capsys):
    pixels = torch.randint(0, 256, (100, 28, 28), dtype=torch.uint8)
    write_mnist(tmp_path, pixels, labels=torch.arange(100, dtype=torch.uint8) % 10)
    monkeypatch.chdir(tmp_path)
    arguments = ["demo", "--dataset", "mnist", "--data-root", ".", "--output", "out"]
    assert cli.main([*arguments, "--epochs", "1", "--batch-size", "50"]) == 0
    out = capsys.readouterr().out
    assert "100 training and 100 test images" in out
    assert out.count("all 100 test predictions are the same") == 2
    assert isinstance(bnn_ext.load("out/mnist.bnn")(torch.zeros(1, 1, 28, 28)), torch.Tensor)


# --- errors ---------------------------------------------------------------------------------------


def test_mistakes_give_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    output = str(tmp_path / "demo")
    assert cli.main(["demo", "--epochs", "0", "--output", output]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bnn-ext demo: epochs must be at least 1, found 0\n"

    def missing(root: Path) -> None:
        raise FileNotFoundError(f"MNIST is not in {root}")

    recipe = demo.Recipe(missing, lambda: None, 1, 2)
    monkeypatch.setitem(demo.RECIPES, "mnist", recipe)
    assert cli.main(["demo", "--dataset", "mnist", "--data-root", "x", "--output", output]) == 2
    assert capsys.readouterr().err == "bnn-ext demo: MNIST is not in x\n"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("arguments", [[], ["demos"], ["demo", "--dataset", "letters"]])
def test_unknown_commands_and_choices_give_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: bnn-ext" in capsys.readouterr().err


def test_ctrl_c_gives_status_130(monkeypatch, capsys):
    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"bnn_ext {bnn_ext.__version__}\n"


def test_without_the_extras_all_but_the_demo_works():
    blocked = ("lightning", "matplotlib", "sklearn", "torchmetrics", "torchvision", "tqdm")
    run = python(
        "-c",
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import bnn_ext, bnn_ext.data, bnn_ext.models, bnn_ext.diagnostics;"
        "from bnn_ext import cli;"
        "sys.exit(cli.main(['demo']))",
    )
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("bnn-ext demo: ") and "pip install 'bnn_ext[demo]'" in line


# --- python -m bnn_ext ----------------------------------------------------------------------------


def test_diagnostics_pass_at_every_level(capsys):
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("bnn_ext", run_name="__main__")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in (bnn_ext.__version__, torch.__version__, bnn_ext.cpu_capability()):
        assert text in out
    for level in bnn_ext._C.cpu_capabilities():
        assert f"  {level:<16}OK" in out


def test_diagnostics_report_wrong_sums_and_keep_the_level(monkeypatch, capsys):
    right = diagnostics.ops.conv2d
    monkeypatch.setattr(diagnostics.ops, "conv2d", lambda *a, **k: right(*a, **k) + 1)
    level = bnn_ext.cpu_capability()
    assert diagnostics.main() == 1
    assert "FAILED: conv2d gave wrong sums" in capsys.readouterr().out
    assert bnn_ext.cpu_capability() == level


def test_diagnostics_report_what_a_kernel_raises(monkeypatch, capsys):
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(diagnostics.ops, "linear", broken)
    assert diagnostics.main() == 1
    out = capsys.readouterr().out
    assert "FAILED: no kernel image" in out and "and more" not in out
