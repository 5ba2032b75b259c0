"""Published experiments, as settings of `bnn-ext train`; see recipes.yaml beside this file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnn_ext.convert.tables import format_table

_FILE = Path(__file__).with_name("recipes.yaml")


@dataclass(frozen=True)
class Recipe:
    """A published experiment.

    Attributes:
        title: what it is.
        expected: the accuracy that its authors, or users of theirs, report on test images.
        source: where settings and accuracy are from.
        settings: of `bnn_ext.training.Settings`.
        notes: how it differs from the original; empty if it does not.
    """

    title: str
    expected: str
    source: str
    settings: dict[str, Any]
    notes: str = ""


@functools.cache
def all_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    described = yaml.safe_load(_FILE.read_text())
    return {name: Recipe(**fields) for name, fields in described.items()}


def get(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none.
    """
    known = all_recipes()
    if name not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}, found {name!r}")
    return known[name]


def table() -> str:
    """All recipes, for people."""
    rows = [
        [name, recipe.settings["model"], recipe.settings["dataset"], recipe.expected, recipe.source]
        for name, recipe in all_recipes().items()
    ]
    return format_table(["recipe", "model", "data", "expected accuracy", "source"], rows)
