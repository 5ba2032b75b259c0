"""Pictures of training runs: several runs side by side (needs the extra `demo`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bnn_ext import nn as bnn
from bnn_ext._extras import needs_extra
from bnn_ext.training import files
from bnn_ext.training.methods import has_binary_layers
from bnn_ext.training.plots import FAINT, new_figure, save_figure

with needs_extra("demo"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator, PercentFormatter

_COLORS = ("#1769aa", "#d9822b", "#29a634", "#8f398f", "#c23030", "#00998c")
_CURVES = 6  # panels
_BINS = 60


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        name: of its folder.
        rows: of `metrics.csv`, values that are there.
        confusion: of the validation images after the last epoch, int64 `[C, C]`.
        weights: latent weights of all binary layers, flat; None for a float model.
    """

    name: str
    rows: list[dict[str, float]]
    confusion: Tensor
    weights: Tensor | None


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: it holds no `metrics.csv` or no `last.ckpt`.
        ValueError: these are not of `bnn-ext train`.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no metrics.csv; a folder of bnn-ext train is needed"
        )
    with open(path) as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    checkpoint = files.checkpoint_file(folder)
    model = files.model_in(checkpoint)
    weights = None
    if has_binary_layers(model):
        weights = torch.cat([w.detach().flatten() for w in bnn.binary_parameters(model)])
    confusion = files.read_checkpoint(checkpoint)["state_dict"]["confusion"]
    return Run(folder.resolve().name, rows, confusion, weights)


def plot_runs(folders: Sequence[Path], path: Path) -> None:
    """Draws loss, error, time, flips, distance and weights of runs, and their confusion matrices.

    Runs share the panels of curves, a colour each, training dashed; every run has a panel of its
    own for its confusion matrix.

    Args:
        folders: of runs, at least one.
        path: the PNG file; an existing one is replaced.

    Raises:
        FileNotFoundError: a folder is not that of a run.
        ValueError: there is no run, or its files are damaged.
    """
    if not folders:
        raise ValueError("folders must hold at least one run, found none")
    runs = [read_run(folder) for folder in folders]
    columns = 3
    rows = -(-(_CURVES + len(runs)) // columns)
    title = ", ".join(run.name for run in runs)
    figure, panels = new_figure(title, rows * columns, (4.2 * columns, 3.4 * rows), rows)
    loss, error, seconds, flips, distance, weights = panels[:_CURVES]
    for run, color in zip(runs, _cycled(len(runs)), strict=True):
        _curve(loss, run, "train_loss", color, dashed=True)
        _curve(loss, run, "val_loss", color, label=run.name)
        _curve(error, run, "train_acc", color, dashed=True, error=True)
        _curve(error, run, "val_acc", color, error=True)
        _curve(seconds, run, "seconds", color)
        _curve(flips, run, "flips", color)
        _curve(distance, run, "distance", color)
        if run.weights is not None:
            counts, edges = torch.histogram(run.weights.float().cpu(), _BINS)
            shares = counts / len(run.weights)
            weights.stairs(shares.tolist(), edges.tolist(), color=color)
    loss.legend(frameon=False)
    titles = (
        "loss (training dashed)",
        "error",
        "seconds per epoch",
        "signs flipped per epoch",
        "mean distance of weights to ±1",
        "latent weights",
    )
    for axes, text in zip(panels[:_CURVES], titles, strict=True):
        axes.set_title(text)
        axes.grid(axis="y", color=FAINT)
    for axes in (loss, error, seconds, flips, distance):
        axes.set_ylim(bottom=0)  # now that all curves are there
    for axes in (error, flips, weights):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes, run in zip(panels[_CURVES:], runs, strict=False):
        _confusion(axes, run)
    for axes in panels[_CURVES + len(runs) :]:
        axes.remove()
    save_figure(figure, path)


def _cycled(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]


def _curve(
    axes: Axes,
    run: Run,
    quantity: str,
    color: str,
    *,
    dashed: bool = False,
    error: bool = False,
    label: str | None = None,
) -> None:
    rows = [row for row in run.rows if quantity in row]
    values = [1 - row[quantity] if error else row[quantity] for row in rows]
    axes.plot(
        [row["epoch"] for row in rows],
        values,
        color=color,
        linestyle="--" if dashed else "-",
        marker="o",
        markersize=2.5,
        label=label,
    )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _confusion(axes: Axes, run: Run) -> None:
    shares = run.confusion.double() / run.confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.cpu().tolist(), cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"confusion: {run.name}")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
