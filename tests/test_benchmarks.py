"""The benchmarks run and write what they promise; nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bnn_ext import _C

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_blocks_alternate_and_the_order_rotates():
    import timing

    calls: list[str] = []
    implementations = [
        timing.Implementation(name, None, lambda name=name: calls.append(name), 1) for name in "abc"
    ]
    timings = timing.measure(implementations, rounds=3)
    assert all(0 < t.fastest <= t.median for t in timings)
    order = [calls[0], *(b for a, b in zip(calls, calls[1:], strict=False) if a != b)]
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # calibration, then three rounds


def test_the_level_of_an_implementation_is_set_and_restored():
    import timing

    before, seen = _C.cpu_capability(), []
    for level in _C.cpu_capabilities():
        run = timing.Implementation("", None, lambda: seen.append(_C.cpu_capability()), 1, level)
        timing.measure([run], rounds=2)
        assert set(seen) == {level}
        seen.clear()
    assert _C.cpu_capability() == before


def test_bench_conv_writes_a_row_for_everything(tmp_path, monkeypatch, capsys):
    import bench_conv

    monkeypatch.setattr(bench_conv, "SHAPES", ((32, 4), (40, 3)))
    monkeypatch.setitem(bench_conv.IMPLEMENTATIONS, "no_such_peer", None)
    monkeypatch.setattr("timing.BLOCK_SECONDS", 1e-5)
    threads = torch.get_num_threads()
    levels = _C.cpu_capabilities()
    arguments = ["--rounds", "2", "--batch", "2", "--results", str(tmp_path), "--levels", *levels]
    bench_conv.main(arguments)
    torch.set_num_threads(threads)

    printed = capsys.readouterr().out
    assert "no_such_peer is not installed" in printed
    (path,) = tmp_path.glob("*/conv2d_3x3_batch2_threads1.json")
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    document = json.loads(path.read_text())
    assert document["versions"]["torch"] == torch.__version__
    names = [(row["shape"], row["impl"], row["output_dtype"]) for row in document["rows"]]
    for shape in ("2x32x4x4", "2x40x3x3"):
        for level in levels:
            assert (shape, f"register peak {level}", None) in names
            for output in ("bits", "int32", "float32"):
                assert (shape, f"bnn_ext {level}", output) in names
        assert (shape, "torch float32 NHWC", "float32") in names
    assert len(names) == 2 * (4 * len(levels) + 2)
    for row in document["rows"]:
        assert list(row) == [
            *("device", "what", "shape", "impl", "output_dtype", "threads"),
            *("median_ms", "spread", "gmacs", "fraction_of_peak"),
        ]
        assert (row["fraction_of_peak"] is None) == row["impl"].startswith("torch")
