"""A pytest plugin: `--stop-after SECONDS` skips the tests that are left when the time is up.

So a run always ends with a report, which says what it did not reach. The functions take turns with
their parameters, so that whatever the time allows holds something of each.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest
from gpu.pytest_run import NOT_REACHED

_START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stop-after", type=float, required=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = Counter[str]()

    def turn(item: pytest.Item) -> int:
        function = item.nodeid.partition("[")[0]
        turns[function] += 1
        return turns[function]

    items.sort(key=turn)  # keeps the order among equals


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - _START > item.config.getoption("--stop-after"):
        pytest.skip(NOT_REACHED)
