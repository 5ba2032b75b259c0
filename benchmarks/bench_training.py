"""Short trainings on real data: what the methods reach in minutes on a CPU, or in an hour or two.

Each trains into a folder like bnn-ext train; one that was interrupted goes on, one that is done is
only measured. Kept of it, in `results/<cpu>/training/<name>/`, are its settings, its log, its
curves, and `result.json` with the accuracy on the test images after the last epoch.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import provenance
import torch
import yaml
from run import RESULTS, cpu_folder, cpu_name

from bnn_ext.training import memory, recipes
from bnn_ext.training.run_plots import plot_runs
from bnn_ext.training.settings import Settings
from bnn_ext.training.train import evaluate, train


class Experiment(NamedTuple):
    """One training.

    Attributes:
        settings: of bnn_ext.training.Settings.
        least: the accuracy that it has to reach; None where it is only compared.
        init: the experiment whose weights it begins with.
    """

    settings: Mapping[str, Any]
    least: float | None = None
    init: str | None = None


def _recipe(name: str, **changes: Any) -> Mapping[str, Any]:
    return recipes.get(name).settings | changes


# BNEW and its rivals, all from one phase 1. Steps are fewer than in the paper, so those towards
# ±1 are longer and sharpness grows faster; Bop has the settings of its authors' shorter trainings.
_BRN = {
    "model": "brn",
    "model_config": {"blocks": 2},
    "dataset": "fashion_mnist",
    "preprocessing": "unit",
    "batch_size": 128,
    "lr": 1e-2,
    "schedule": "linear",
}
_PHASE_2 = _BRN | {"epochs": 10}
_PHASE_1 = "bnew-phase1-fashion"

EXPERIMENTS = {
    "dense-128-64-mnist": Experiment(_recipe("dense-128-64-mnist"), 0.942),
    "bnn-mlp-1024-mnist": Experiment(
        _recipe("bnn-mlp-mnist", model_config={"hidden": 1024}, epochs=20), 0.98
    ),
    "binaryconnect-mlp-mnist": Experiment(_recipe("binaryconnect-mnist", epochs=30), 0.983),
    "mnist-cnn-fashion": Experiment(
        {"model": "mnist_cnn", "dataset": "fashion_mnist", "epochs": 6, "batch_size": 100}, 0.88
    ),
    "vgg-small-half-cifar10": Experiment(
        {
            "model": "vgg_small_binary",
            "model_config": {"width": 0.5},
            "dataset": "cifar10",
            "preprocessing": "cifar_statistics",
            "epochs": 12,
            "batch_size": 100,
        },
        0.78,
    ),
    _PHASE_1: Experiment(_BRN | {"epochs": 4, "method": "real", "test_weights": "real"}),
    "bnew-fashion": Experiment(
        _PHASE_2 | {"method": "bnew", "method_config": {"strength": 3e-3, "frozen_epochs": 1}},
        init=_PHASE_1,
    ),
    "bnew-ste-fashion": Experiment(_PHASE_2, init=_PHASE_1),
    "bnew-bmd-fashion": Experiment(
        _PHASE_2
        | {"method": "mirror_descent", "method_config": {"growth": 1.1, "growth_interval": 47}},
        init=_PHASE_1,
    ),
    "bnew-bop-fashion": Experiment(
        _PHASE_2 | {"method": "bop", "method_config": {"lr": 1e-3, "threshold": 1e-6}},
        init=_PHASE_1,
    ),
}
# Drawn together as well.
GROUPS = {"bnew-and-rivals": [name for name in EXPERIMENTS if name.startswith("bnew")]}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, or goes on, and keeps the result."""
    experiment, folder = EXPERIMENTS[name], options.runs / name
    settings = dict(experiment.settings)
    if experiment.init is not None:
        settings["init"] = str(options.runs / experiment.init)
    settings = Settings().changed(settings)
    rows = read_rows(folder)
    if len(rows) < settings.epochs:
        resume = folder if (folder / "last.ckpt").exists() else None
        train(settings, folder, data_root=options.data_root, resume=resume, gpu=-1)
        rows = read_rows(folder)

    test = evaluate(folder / "last.ckpt", data_root=options.data_root)
    kept = options.results / cpu_folder() / "training" / name
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "metrics.csv", kept / "metrics.csv")
    # Of what it began with the name: folders of runs are elsewhere on every machine.
    config = settings.as_dict() | {"init": experiment.init}
    (kept / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    plot_runs([folder], kept / "curves.png")
    result = {
        "commit": provenance.commit(),
        "date": provenance.now(),
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "bnn_ext": provenance.version("bnn_ext"),
        },
        "test_top1": test.top1,
        "least": experiment.least,
        "seconds": sum(float(row["seconds"]) for row in rows),
    }
    provenance.write(kept / "result.json", result)
    return result


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The epochs that are done."""
    try:
        with open(folder / "metrics.csv") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def compare(group: str, options: argparse.Namespace) -> None:
    """Draws runs side by side, and tabulates accuracy and distance to ±1 of every epoch."""
    folders = [options.runs / name for name in GROUPS[group]]
    kept = options.results / cpu_folder() / "training"
    plot_runs(folders, kept / f"{group}.png")
    runs = {folder.name: read_rows(folder) for folder in folders}
    lines = [
        "Validation accuracy, and the mean distance of binary layers' latent weights to ±1.\n",
        "| epoch | " + " | ".join(runs) + " |",
        "|---" * (1 + len(runs)) + "|",
    ]
    for epoch in range(max(map(len, runs.values()))):
        cells = [
            f"{float(rows[epoch]['val_acc']):.2%}, {float(rows[epoch]['distance']):.4f}"
            if epoch < len(rows)
            else ""
            for rows in runs.values()
        ]
        lines.append(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    (kept / f"{group}.md").write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "names", nargs="*", metavar="NAME", default=list(EXPERIMENTS), help=", ".join(EXPERIMENTS)
    )
    options.add_argument("--data-root", type=Path, default=Path("data"), help="data sets (data)")
    options.add_argument("--runs", type=Path, default=Path("results"), help="folder (results)")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of what is kept")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="(all)")
    chosen = options.parse_args(arguments)
    if unknown := set(chosen.names) - set(EXPERIMENTS):
        options.error(f"NAME must be of {', '.join(EXPERIMENTS)}, found {', '.join(unknown)}")
    torch.set_num_threads(chosen.threads)
    memory.keep_freed()
    for name in chosen.names:
        result = run(name, chosen)
        least = "" if result["least"] is None else f", should be at least {result['least']:.2%}"
        print(f"{name}: {result['test_top1']:.2%} of the test images{least}\n")
    for group, names in GROUPS.items():
        if set(names) <= set(chosen.names):
            compare(group, chosen)


if __name__ == "__main__":
    main()
