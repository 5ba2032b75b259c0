"""The command `bnn-ext`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import bnn_ext
from bnn_ext._extras import needs_extra


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; see `bnn-ext --help`.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status: 0 after success, 2 after a mistake in the arguments or in what they name,
        130 after Ctrl-C. Everything else is a bug and raises.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
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
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
