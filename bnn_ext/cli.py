"""The command `bnn-ext`."""

from __future__ import annotations

import argparse
import ast
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bnn_ext
from bnn_ext._extras import needs_extra


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; see `bnn-ext --help`.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status: 0 after success, 1 after a training that came to nothing because its loss
        is not finite, 2 after a mistake in the arguments or in what they name, 130 after Ctrl-C.
        Everything else is a bug and raises.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"bnn-ext {arguments.command}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"bnn-ext {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bnn-ext", description="Binarized neural networks: train, convert, run on packed bits."
    )
    parser.add_argument("--version", action="version", version=f"bnn_ext {bnn_ext.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)

    demo = commands.add_parser(
        "demo",
        help="see the whole point in a minute",
        description="Trains a binary network on images of handwritten digits, converts it to "
        "packed bits, verifies that both forms predict the same, and compares size and time.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--dataset",
        choices=("digits", "mnist"),
        default="digits",
        help="digits: 1797 images that come with scikit-learn (default); mnist: 70,000 images",
    )
    demo.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder of MNIST/raw, downloaded if it is missing (default: data)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the model file, the plots and the log (default: demo)",
    )
    demo.add_argument("--epochs", type=int, metavar="N", help="default: 12 for digits, 5 for mnist")
    demo.add_argument(
        "--batch-size", type=int, metavar="N", help="default: 64 for digits, 128 for mnist"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    _add_train(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    _add_recipes(commands)
    _add_plot(commands)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Trains a model of bnn_ext.models and writes checkpoints and metrics.csv. "
        "Settings come from the recipe, then from the config file, then from the options; a "
        "resumed training begins with its own.",
        argument_default=argparse.SUPPRESS,  # so that only what was given overrides
    )
    train.set_defaults(run=_train)
    what = train.add_argument_group("what to train")
    what.add_argument("--recipe", metavar="NAME", help="a published experiment: bnn-ext recipes")
    what.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, like a run's config.yaml"
    )
    what.add_argument("-a", "--model", metavar="NAME", help="default: digits_cnn")
    what.add_argument(
        "--model-config",
        "--model_config",
        type=_literal,
        metavar="DICT",
        help="settings of the model's constructor: \"{'width': 0.5}\"",
    )
    what.add_argument("--dataset", metavar="NAME", help="default: digits")
    what.add_argument("--preprocessing", metavar="NAME", help="default: the data set's own")
    what.add_argument(
        "--input-size",
        "--input_size",
        type=int,
        metavar="N",
        help="scale images to N x N (default: 224 for alexnet, else as they are)",
    )
    _add_data_root(what)

    how = train.add_argument_group("how")
    how.add_argument("--epochs", type=int, metavar="N", help="passes in all (default: 10)")
    how.add_argument(
        "-b",
        "--batch-size",
        type=int,
        metavar="N",
        help="images of a step, over all GPUs (default: 64)",
    )
    how.add_argument("--loss", metavar="NAME", help="default: cross_entropy")
    how.add_argument(
        "--label-smoothing", type=float, metavar="X", help="of cross_entropy (default: 0)"
    )
    how.add_argument("--optimizer", metavar="NAME", help="of torch.optim (default: Adam)")
    how.add_argument(
        "--lr",
        "--learning-rate",
        "--learning_rate",
        type=float,
        metavar="X",
        help="at the start (default: 0.005)",
    )
    how.add_argument("--momentum", type=float, metavar="X", help="default: 0.9")
    how.add_argument("--weight-decay", "--wd", type=float, metavar="X", help="default: 0")
    how.add_argument(
        "--schedule", metavar="NAME", help="of the learning rate (default: cosine, to 0)"
    )
    how.add_argument(
        "--method", metavar="NAME", help="what happens to binary weights (default: bnn)"
    )
    how.add_argument(
        "--method-config",
        type=_literal,
        metavar="DICT",
        help="settings of the method: \"{'threshold': 1e-7}\" of bop",
    )
    how.add_argument(
        "--init", metavar="PATH", help="a checkpoint or a run's folder, whose weights to begin with"
    )
    how.add_argument(
        "--teachers",
        nargs="+",
        metavar="PATH",
        help="checkpoints of networks whose answers to learn, instead of the labels",
    )
    how.add_argument("--seed", type=int, metavar="N", help="default: 0")
    how.add_argument("--precision", metavar="32|bf16|16", help="of float parts (default: 32)")
    how.add_argument(
        "--gpus", metavar="LIST", help="0 or 0,1,...; none for the CPU (default: 0 if there is one)"
    )
    _add_workers(how)

    files = train.add_argument_group("files")
    files.add_argument(
        "--results-dir",
        "--results_dir",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of all runs (default: results)",
    )
    files.add_argument(
        "--save", metavar="NAME", help="this run's folder there (default: date and time)"
    )
    files.add_argument(
        "--resume",
        type=Path,
        metavar="PATH",
        help="go on from a checkpoint or a run's folder; results go there but for --save",
    )
    files.add_argument(
        "-e", "--evaluate", type=Path, metavar="PATH", help="do not train, but as bnn-ext evaluate"
    )
    files.add_argument(
        "-p",
        "--print-freq",
        type=int,
        default=10,
        metavar="N",
        help="show the loss every N steps (default: 10)",
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a checkpoint or a converted network on the test images",
        description="Prints top-1 and top-5 accuracy, the loss and the confusion matrix.",
        argument_default=argparse.SUPPRESS,
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument(
        "evaluate", type=Path, metavar="FILE", help="a checkpoint, a run's folder, or a .bnn file"
    )
    of_file = "(default: the checkpoint's; needed for a .bnn file)"
    evaluate.add_argument("--dataset", metavar="NAME", help=of_file)
    evaluate.add_argument("--preprocessing", metavar="NAME", help="default: the checkpoint's")
    evaluate.add_argument(
        "--input-size",
        type=int,
        metavar="N",
        help="scale images to N x N (default: the checkpoint's)",
    )
    evaluate.add_argument("--loss", metavar="NAME", help="default: the checkpoint's")
    _add_data_root(evaluate)
    _add_workers(evaluate)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="turn a checkpoint into a network on packed bits",
        description="Converts a checkpoint of bnn-ext train and prints what became of each layer.",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder")
    convert.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the .bnn file"
    )
    convert.add_argument(
        "--real-layers",
        choices=("torch", "fused"),
        default="torch",
        help="torch: every output as in training, bit for bit (default); fused: faster, real sums "
        "rounded in another order",
    )


def _add_recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="list published experiments",
        description="Lists the experiments that bnn-ext train --recipe NAME runs, with the "
        "accuracy to expect and where that is from.",
    )
    recipes.set_defaults(run=_recipes)


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot",
        help="draw training runs",
        description="Draws loss, error, time, flipped signs, distance to ±1, weights and confusion "
        "matrices of runs into one picture.",
    )
    plot.set_defaults(run=_plot)
    plot.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    plot.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs.png"),
        metavar="FILE",
        help="the PNG file (default: runs.png)",
    )


def _add_data_root(group: Any) -> None:
    group.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder of the data sets, which are downloaded if they are missing (default: data)",
    )


def _add_workers(group: Any) -> None:
    group.add_argument(
        "-j",
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read image files (default: 0)",
    )


def _literal(text: str) -> dict[str, Any]:
    """A Python literal of a dict."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a dict like {{'width': 0.5}}, found {text}")
    return value


def _demo(arguments: argparse.Namespace) -> None:
    with needs_extra("demo"):  # only this command needs the extra packages
        from bnn_ext.training import demo

    demo.run(
        arguments.dataset,
        data_root=arguments.data_root,
        output=arguments.output,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )


def _train(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    if "evaluate" in given:
        return _evaluate(arguments)
    with needs_extra("train"):
        from bnn_ext.training import files, memory, recipes, train
        from bnn_ext.training.settings import Settings, read_config

    gpus = _gpus(given.get("gpus"))
    if len(gpus) > 1 and "WORLD_SIZE" not in os.environ:
        _start_processes(gpus)
    memory.keep_freed()
    settings = Settings()
    resume: Path | None = given.get("resume")
    if resume is not None:
        resume = files.checkpoint_file(resume)
        settings = files.settings_in(files.read_checkpoint(resume))
    if "recipe" in given:
        settings = settings.changed(recipes.get(arguments.recipe).settings)
    if "config" in given:
        settings = settings.changed(read_config(arguments.config))
    settings = settings.changed(
        {name: value for name, value in given.items() if hasattr(settings, name)}
    )
    if resume is not None and "save" not in given:
        folder = resume.parent
    else:
        folder = arguments.results_dir / (given.get("save") or time.strftime("%Y-%m-%d_%H-%M-%S"))
    train(
        settings,
        folder,
        data_root=arguments.data_root,
        resume=resume,
        gpu=gpus[0] if gpus else None,
        workers=arguments.workers,
        print_freq=arguments.print_freq,
    )


def _gpus(text: str | None) -> list[int]:
    """Numbers of GPUs; none of them for the default, -1 for the CPU."""
    if text is None:
        return []
    if text == "none":
        return [-1]
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--gpus must be like 0 or 0,1 or none, found {text!r}") from None


def _start_processes(gpus: list[int]) -> None:
    """Replaces this process by torchrun and one process for each GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(
        sys.executable,
        [*torchrun, f"--nproc-per-node={len(gpus)}", "-m", "bnn_ext.cli", *sys.argv[1:]],
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    with needs_extra("train"):
        from bnn_ext.training import evaluate, memory

    memory.keep_freed()
    settings = ("dataset", "preprocessing", "input_size", "loss")
    given = vars(arguments)
    result = evaluate(
        arguments.evaluate,
        data_root=arguments.data_root,
        changes={name: given[name] for name in settings if name in given},
        workers=arguments.workers,
    )
    print(f"{result}\n\nimages of each class (row), by what they were taken for (column):")
    print(result.confusion_table())


def _convert(arguments: argparse.Namespace) -> None:
    with needs_extra("train"):
        from bnn_ext.training import convert

    network = convert(arguments.checkpoint, arguments.output, real_layers=arguments.real_layers)
    print(network.report)
    print(f"\nwritten: {arguments.output}, {arguments.output.stat().st_size:,} bytes")


def _recipes(arguments: argparse.Namespace) -> None:
    with needs_extra("train"):
        from bnn_ext.training import recipes

    print(recipes.table())


def _plot(arguments: argparse.Namespace) -> None:
    with needs_extra("demo"):
        from bnn_ext.training.run_plots import plot_runs

    plot_runs(arguments.runs, arguments.output)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
