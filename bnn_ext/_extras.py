"""Optional dependencies: what to install when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Makes a failed import in its body say which extra of this package to install.

        with needs_extra("demo"):
            from sklearn.datasets import load_digits

    Raises:
        ModuleNotFoundError: the body imported a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; install it with: pip install 'bnn_ext[{extra}]'",
            name=error.name,
        ) from None
