"""The demonstration's pictures, as PNG files (needs the extra `demo`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnn_ext._extras import needs_extra

with needs_extra("demo"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

GREY, BLUE = "#9aa5b1", "#1769aa"
TEXT, FAINT = "#1f2933", "#e4e7eb"


@dataclass(frozen=True)
class Pair:
    """One quantity of two networks, of which less is better."""

    title: str
    unit: str
    float32: float
    packed: float
    gain: str  # what a ratio above 1 means: "faster", "smaller"


def plot_training(history: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs.

    Args:
        history: rows of `bnn_ext.training.fit`, validated on the test images.
        title: of the whole picture.
        path: the PNG file; an existing one is replaced.
    """
    figure, (loss, accuracy) = new_figure(title, panels=2, size=(9, 3.8))
    epochs = [row["epoch"] for row in history]
    for axes, quantity in ((loss, "loss"), (accuracy, "acc")):
        for stage, label, color in (("train", "training", GREY), ("val", "test", BLUE)):
            values = [row[f"{stage}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=color, label=label, marker="o", markersize=3.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=FAINT)
    loss.set_title("cross-entropy")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False)
    accuracy.set_title(f"accuracy, {history[-1]['val_acc']:.2%} in the end")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    save_figure(figure, path)


def plot_comparison(pairs: Sequence[Pair], title: str, path: Path) -> None:
    """Draws two bars per quantity, each quantity in its own panel.

    Args:
        pairs: the quantities.
        title: of the whole picture.
        path: the PNG file; an existing one is replaced.
    """
    figure, panels = new_figure(title, panels=len(pairs), size=(3 * len(pairs), 3.8))
    for axes, pair in zip(panels, pairs, strict=True):
        values = [pair.float32, pair.packed]
        bars = axes.bar(["float32", "packed"], values, color=[GREY, BLUE], width=0.62)
        axes.bar_label(bars, [f"{value:.3g} {pair.unit}" for value in values], padding=3)
        axes.set_title(f"{pair.title}\n", color=TEXT)
        axes.text(
            0.5,
            1.03,
            f"{pair.float32 / pair.packed:.1f} times {pair.gain}",
            transform=axes.transAxes,
            ha="center",
            color=BLUE,
            fontweight="bold",
        )
        axes.set_ylim(0, 1.12 * max(values))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0)
    save_figure(figure, path)


def new_figure(
    title: str, panels: int, size: tuple[float, float], rows: int = 1
) -> tuple[Figure, Sequence[Axes]]:
    """An empty picture and its panels, row by row."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15))
    figure.suptitle(title, color=TEXT, fontweight="bold")
    axes = list(figure.subplots(rows, -(-panels // rows), squeeze=False).flat)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(colors=TEXT)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture; an existing file is replaced at one stroke."""
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)
