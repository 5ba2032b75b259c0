"""What `bnn-ext demo` does: the whole way of a binary network, step by step.

Read `run` first; the steps are the functions below it, in the same order.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import bnn_ext
from bnn_ext import data, models
from bnn_ext._extras import needs_extra
from bnn_ext.convert import PackedNetwork, Verification
from bnn_ext.convert.summary import tensor_bytes
from bnn_ext.convert.tables import format_table
from bnn_ext.data import ImageData
from bnn_ext.nn.binary import BinaryConv2d, BinaryLinear
from bnn_ext.training.classifier import Classifier
from bnn_ext.training.fit import fit
from bnn_ext.training.plots import Pair, plot_comparison, plot_training

with needs_extra("train"):
    import lightning as L

TIMED_BATCHES = (1, 64)  # images
_EVAL_BATCH = 250  # images that go through a network at once, to need little memory


@dataclass(frozen=True)
class Recipe:
    """How to train on one data set."""

    load: Callable[[Path], ImageData]
    model: Callable[[], nn.Sequential]
    epochs: int
    batch_size: int


RECIPES = {
    "digits": Recipe(functools.partial(data.load, "digits"), models.digits_cnn, 12, 64),
    "mnist": Recipe(functools.partial(data.load, "mnist"), models.mnist_cnn, 5, 128),
}


@dataclass(frozen=True)
class Figures:
    """What a network reaches and needs."""

    accuracy: float  # fraction of the test images
    bytes: int  # parameters and buffers
    milliseconds: dict[int, float]  # by batch size, for a whole batch


@dataclass(frozen=True)
class Results:
    """Both forms of the network, and how far their outputs agree on the test images."""

    float32: Figures
    packed: Figures
    verification: Verification


def run(
    dataset: str = "digits",
    *,
    data_root: Path = Path("data"),
    output: Path = Path("demo"),
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Results:
    """Trains, converts, verifies, saves, reloads, measures and plots, and prints what it does.

    Args:
        dataset: "digits" or "mnist".
        data_root: where MNIST lies, or is downloaded to; not needed for digits.
        output: folder for the model file, the plots and the log.
        epochs, batch_size: of the training; None takes the recipe's.
        seed: of the first weights, the order of the images and their shifts.

    Raises:
        ValueError: an argument is out of range.
        FileNotFoundError: MNIST is not in `data_root` and could not be downloaded.
        RuntimeError: the converted network does not predict what the trained one predicts.
    """
    if dataset not in RECIPES:
        raise ValueError(f"dataset must be one of {', '.join(RECIPES)}, found {dataset!r}")
    recipe = RECIPES[dataset]
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = recipe.batch_size if batch_size is None else batch_size
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, found {epochs}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, for BatchNorm, found {batch_size}")
    images = recipe.load(data_root)
    train_images, _ = images.train[:]
    test_images, test_labels = images.test[:]

    output.mkdir(parents=True, exist_ok=True)
    model_file = output / f"{dataset}.bnn"
    training_plot = output / f"{dataset}_training.png"
    comparison_plot = output / f"{dataset}_comparison.png"
    log_dir = output / "logs" / dataset

    L.seed_everything(seed, verbose=False)
    model = recipe.model()
    sizes = f"{len(train_images):,} training and {len(test_images):,} test images"
    _say("data", f"{images.title}: {sizes}")
    weights = sum(layer.weight.numel() for layer in _binary_layers(model))
    _say("model", f"a convolutional network with {weights:,} weights, each +1 or -1")
    _say("train", f"{_count(epochs, 'epoch')}; train, val: accuracy on training and test images\n")
    history = train(model, images, epochs, batch_size, seed, log_dir)

    print()
    # The first layer by torch, too: then every output is the same, bit for bit.
    example = test_images[:_EVAL_BATCH]
    fast = bnn_ext.convert(model, example_inputs=example, real_layers="torch")
    layers = fast.report.layers
    on_bits = sum(layer.status != "left" for layer in layers)
    _say("convert", f"{on_bits} of {len(layers)} layers now run on packed bits")
    _say("verify", agreement(verify(model, fast, test_images)))

    bnn_ext.save(fast, model_file)
    fast = bnn_ext.load(model_file)
    _say("save", f"{model_file}, {model_file.stat().st_size:,} bytes; loaded again from there")
    verification = verify(model, fast, test_images)
    _say("verify", agreement(verification))

    _say("measure", "both networks on the CPU\n")
    float_ms, packed_ms = measure(model, fast, test_images)
    results = Results(
        Figures(accuracy(model, test_images, test_labels), tensor_bytes(model), float_ms),
        Figures(accuracy(fast, test_images, test_labels), tensor_bytes(fast), packed_ms),
        verification,
    )
    print(table(results))
    print(f"\nfloat32: PyTorch {torch.__version__}, with the weights binarized beforehand")
    print(f"packed:  bnn_ext {bnn_ext.__version__}, CPU level {bnn_ext.cpu_capability()}")
    print("times:   medians of blocks of calls, both networks in turn, on one CPU thread")

    plot_training(history, f"Training a binary network: {images.title}", training_plot)
    plot(results, comparison_plot)
    print("\nwritten:")
    for path in (model_file, training_plot, comparison_plot, log_dir / "metrics.csv"):
        print(f"  {path}")
    return results


def train(
    model: nn.Module,
    images: ImageData,
    epochs: int,
    batch_size: int,
    seed: int,
    log_dir: Path,
) -> list[dict[str, float]]:
    """Trains `model` and puts it in eval mode; returns a row of figures per epoch."""
    # PyTorch's CPU convolutions are a third faster with channels last, in training and after it.
    model.to(memory_format=torch.channels_last)
    shifted = replace(images, augmentation=data.Augmentation(shift=1))
    history = fit(
        Classifier(model, images.num_classes, seed=seed),
        data.Batches(shifted, batch_size, seed=seed),
        data.EvaluationBatches(images.test, _EVAL_BATCH),
        epochs=epochs,
        log_dir=log_dir,
    )
    model.eval()
    return history


def verify(model: nn.Module, fast: PackedNetwork, images: Tensor) -> Verification:
    """Compares both networks on all images.

    Raises:
        RuntimeError: a prediction differs.
    """
    parts = [bnn_ext.verify(model, fast, batch) for batch in images.split(_EVAL_BATCH)]
    verification = Verification(
        elements=sum(part.elements for part in parts),
        different=sum(part.different for part in parts),
        largest_difference=max(part.largest_difference for part in parts),
        predictions=sum(part.predictions for part in parts),
        different_predictions=sum(part.different_predictions for part in parts),
    )
    if verification.different_predictions:
        raise RuntimeError(
            f"{verification.different_predictions:,} of {verification.predictions:,} predictions "
            "are different after the conversion"
        )
    return verification


def agreement(verification: Verification) -> str:
    """A successful verification in words."""
    text = f"all {verification.predictions:,} test predictions are the same"
    if verification.equal:
        return f"{text}, and all outputs equal bit for bit"
    return (
        f"{text}; {verification.different:,} of {verification.elements:,} outputs differ a little"
    )


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images whose largest logit is that of their label."""
    predictions = torch.cat([model(batch).argmax(1) for batch in images.split(_EVAL_BATCH)])
    return (predictions == labels).double().mean().item()


def measure(
    model: nn.Module, fast: PackedNetwork, images: Tensor
) -> tuple[dict[int, float], dict[int, float]]:
    """Milliseconds per batch of the float and of the packed network, by batch size.

    On one thread: so the figures say what the work costs, whatever else the machine does.
    """
    model = with_fixed_weights(model)
    float_ms, packed_ms = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in TIMED_BATCHES:
            batch = images[:size]
            run_float, run_packed = functools.partial(model, batch), functools.partial(fast, batch)
            float_ms[size], packed_ms[size] = medians(run_float, run_packed)
    finally:
        torch.set_num_threads(threads)
    return float_ms, packed_ms


def with_fixed_weights(model: nn.Module) -> nn.Module:
    """A copy that computes the same, but has its weights binarized once and not in every forward.

    Training needs that; a float network in use does not, and the comparison should be fair.
    """
    model = copy.deepcopy(model)
    for layer in _binary_layers(model):
        layer.weight.data = layer.binary_weight.detach()
        layer.weight_quantizer = None
    return model


@torch.inference_mode()
def medians(
    *functions: Callable[[], object], blocks: int = 15, seconds: float = 0.02
) -> list[float]:
    """Median milliseconds per call of each function.

    The functions take turns in blocks of calls, so that all meet the same state of the machine;
    the first call of each block only warms the caches.

    Args:
        functions: what to time.
        blocks: per function.
        seconds: that a block lasts, at least one call.
    """

    def time_calls(function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls * 1e3

    calls = []
    for function in functions:
        time_calls(function, 3)
        calls.append(max(1, round(seconds * 1e3 / time_calls(function, 3))))
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(blocks):
        for function, count, times in zip(functions, calls, samples, strict=True):
            function()
            times.append(time_calls(function, count))
    return [median(times) for times in samples]


def table(results: Results) -> str:
    """The results side by side."""
    before, after = results.float32, results.packed
    rows = [
        (
            "test accuracy",
            f"{before.accuracy:.2%}",
            f"{after.accuracy:.2%}",
            "as accurate",  # verified
        ),
        (
            "bytes",
            f"{before.bytes:,}",
            f"{after.bytes:,}",
            f"{before.bytes / after.bytes:.1f} times smaller",
        ),
    ]
    for size, ms in before.milliseconds.items():
        packed_ms = after.milliseconds[size]
        ratio = f"{ms / packed_ms:.1f} times faster"
        rows.append((f"ms for {_count(size, 'image')}", f"{ms:.3f}", f"{packed_ms:.3f}", ratio))
    return format_table(("", "float32", "packed", "packed is"), rows, right=(1, 2))


def plot(results: Results, path: Path) -> None:
    """Draws times and sizes of both networks as bars."""
    before, after = results.float32, results.packed
    pairs = [
        Pair(f"time for {_count(size, 'image')}", "ms", ms, after.milliseconds[size], "faster")
        for size, ms in before.milliseconds.items()
    ]
    pairs.append(Pair("size", "MB", before.bytes / 1e6, after.bytes / 1e6, "smaller"))
    title = f"One binary network, {after.accuracy:.2%} accurate, in two forms"
    plot_comparison(pairs, title, path)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _binary_layers(model: nn.Module) -> list[BinaryConv2d | BinaryLinear]:
    return [layer for layer in model.modules() if isinstance(layer, (BinaryConv2d, BinaryLinear))]


def _say(step: str, text: str) -> None:
    print(f"{step:<9}{text}", flush=True)
