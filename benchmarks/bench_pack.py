"""Packing of real maps, against the bandwidth of a copy."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from run import Run, parser
from timing import Implementation

from bnn_ext import ops

SHAPE = (64, 56, 56)  # channels, height and width
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


def implementations(batch: int, dtype: torch.dtype, levels: Sequence[str]) -> list[Implementation]:
    """Packing reads the map and writes its bits; a copy reads and writes the map."""
    maps = torch.randn(batch, *SHAPE).to(dtype)
    copy = functools.partial(torch.empty_like(maps).copy_, maps)
    bandwidth = Implementation("torch copy_", str(dtype)[6:], copy, bytes=2 * maps.nbytes)
    packs = []
    for name, memory_format in FORMATS.items():
        nhwc = maps.to(memory_format=memory_format).permute(0, 2, 3, 1)
        run = functools.partial(ops.pack, nhwc)
        bytes = maps.nbytes + run().nbytes
        for level in levels:
            pack = Implementation(f"bnn_ext {name}", "bits", run, None, bytes, level, bandwidth)
            packs.append(pack)
    return packs


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=50)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="(1 32)")
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for batch in chosen.batches:
        shape = "x".join(str(size) for size in (batch, *SHAPE))
        for dtype in DTYPES:
            what = f"pack_{str(dtype)[6:]}"
            run.compare(what, shape, implementations(batch, dtype, run.levels), peers={})
    run.write(f"pack_threads{chosen.threads}")


if __name__ == "__main__":
    main()
