"""Prints roofline.md: what each kernel has to do on an H200, how long that takes at least, how long
it should take, and how long it took.

    python -m gpu.roofline >roofline.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu import conv, gemm, stream
from run import RESULTS

from bnn_ext.reference import words

FOLDER = RESULTS / "h200"
MEASURED = ("gemm", "conv", "stream")

MULTIPROCESSORS = 132
CLOCK = 1.83e9
LAUNCH = 2e-6  # seconds of a kernel that does nothing, by events

# Of one multiprocessor, in a cycle.
WGMMA_PRODUCTS = 32768  # 8 times those of int8
MMA_PRODUCTS = 17700
L2_BYTES = 34
SHARED_BYTES = 128
POPCOUNTS = 16  # of 32 bits
STORED_RESULTS = 16  # what an epilogue may do, a guess
# Accesses of shared memory by a warp, for each lookup of four weights of 32 channels: that itself,
# weights in and out, and a quarter of making the tables. See csrc/cuda/signed_tables.cuh.
LOOKUP_ACCESSES = 1 + 8 / 32 + 160 / 4 / 256


class Machine(NamedTuple):
    """What bounds every kernel, in operations and bytes a second."""

    binary: float = 2 * WGMMA_PRODUCTS * MULTIPROCESSORS * CLOCK
    memory: float = 4.3e12
    measured: bool = False


class Tile(NamedTuple):
    """What a block computes, and how: as in csrc/cuda/gemm_sm90.cuh and gemm_sm80.cuh.

    Attributes:
        kernel: wgmma or mma.
        products: in a cycle.
        slab_bytes: of each row and column that are in shared memory at once.
        shared_reads: how often the rows and the columns are read from there.
        stages: slabs that are there at once.
        threads: of a block.
        blocks: that share a multiprocessor, by the kernel's launch bounds.
    """

    kernel: str
    rows: int
    columns: int
    products: int
    slab_bytes: int
    shared_reads: tuple[int, int]
    stages: int
    threads: int
    blocks: int

    @property
    def shared_memory(self) -> int:
        """Bytes of a block: stages, where each row begins, mbarriers."""
        barriers = 2 * self.stages * 8 if self.kernel == "wgmma" else 0
        slab = (self.rows + self.columns) * self.slab_bytes
        return self.stages * slab + 16 * self.rows + barriers


def _wgmma(rows: int, columns: int, stages: int, blocks: int) -> Tile:
    """Each 64 rows read all columns; rows are read by wgmma and once more for their popcounts."""
    warpgroups = 1 + rows // 64
    reads = (2, rows // 64)
    return Tile(
        "wgmma", rows, columns, WGMMA_PRODUCTS, 128, reads, stages, 128 * warpgroups, blocks
    )


def _mma(rows: int, columns: int) -> Tile:
    """2 x 2 warps."""
    return Tile("mma", rows, columns, MMA_PRODUCTS, 64, (2, 2), stages=3, threads=128, blocks=2)


TILES = {
    "wgmma": (_wgmma(128, 256, 4, 1), _wgmma(192, 128, 5, 1), _wgmma(64, 64, 4, 3)),
    "mma": (_mma(128, 128), _mma(64, 64), _mma(32, 64)),
}


class Product(NamedTuple):
    """A layer as a product of matrices, `depth` words of 32 bits in a row.

    What memory alone bounds has no sizes.
    """

    file: str
    what: str
    shape: str
    output: str
    bytes: int
    macs: int = 0
    rows: int = 0
    depth: int = 0
    columns: int = 0


class Estimate(NamedTuple):
    """Seconds, by what bounds a kernel; what it should take; the kernel."""

    floors: Mapping[str, float]
    expected: float
    kernel: str = ""


# --- problems -------------------------------------------------------------------------------------


def gemms(kind: str) -> Iterator[Product]:
    for shape in gemm.SHAPES[kind]:
        for output in gemm.OUTPUTS:
            yield Product(
                "gemm",
                kind,
                str(shape),
                output,
                gemm.moved_bytes(shape, output),
                shape.macs,
                shape.rows,
                words(shape.in_features),
                shape.out_features,
            )


def convolutions(batch: int) -> Iterator[Product]:
    for shape in (shape for shapes in conv.SHAPES.values() for shape in shapes):
        for output in ("bits", "residual"):
            yield Product(
                "conv",
                conv.name(shape),
                shape.name(batch),
                output,
                conv.moved_bytes(shape, batch, output),
                batch * shape.macs,
                batch * conv.out_size(shape) ** 2,
                shape.kernel**2 * words(shape.in_channels),
                shape.out_channels,
            )


def streams() -> Iterator[Product]:
    for kernel in stream.kernels():
        product = Product("stream", kernel.what, kernel.shape, kernel.output, kernel.bytes)
        if kernel.what == "binary_weight_linear":
            sizes = {"rows": 1, "depth": words(stream.FEATURES), "columns": stream.FEATURES}
            product = product._replace(**sizes)
        yield product


# --- estimates ------------------------------------------------------------------------------------


def by_tiles(product: Product, tile: Tile, machine: Machine) -> Estimate:
    """Tiles take turns on the multiprocessors; whatever bounds the main loop hides the rest."""
    slabs = math.ceil(4 * product.depth / tile.slab_bytes)
    tiles = math.ceil(product.rows / tile.rows) * math.ceil(product.columns / tile.columns)
    loaded = (tile.rows + tile.columns) * tile.slab_bytes
    row_reads, column_reads = tile.shared_reads
    read = (row_reads * tile.rows + column_reads * tile.columns) * tile.slab_bytes
    cycles = {
        "L2": loaded / L2_BYTES,
        "shared": (loaded + read) / SHARED_BYTES,
    }
    slower = WGMMA_PRODUCTS / tile.products
    slab_operations = 2 * tile.rows * tile.columns * 8 * tile.slab_bytes
    compute = slower * slab_operations * MULTIPROCESSORS / machine.binary
    slab = max(compute, *(bound / CLOCK for bound in cycles.values()))
    store = tile.rows * tile.columns / STORED_RESULTS / CLOCK
    turns = math.ceil(tiles / MULTIPROCESSORS)
    memory = product.bytes / machine.memory
    floors = {"compute": 2 * slower * product.macs / machine.binary, "memory": memory}
    whole = tiles * slabs / MULTIPROCESSORS / CLOCK
    floors |= {bound: whole * bound_cycles for bound, bound_cycles in cycles.items()}
    expected = LAUNCH + max(memory, turns * (slabs * slab + store))
    return Estimate(floors, expected, f"{tile.kernel} {tile.rows}x{tile.columns}")


def by_tensor_cores(product: Product, kernel: str, machine: Machine) -> Estimate:
    """By the best of its tiles."""
    estimates = [by_tiles(product, tile, machine) for tile in TILES[kernel]]
    return min(estimates, key=lambda estimate: estimate.expected)


def by_popcounts(product: Product, machine: Machine) -> Estimate:
    """gemv: one popcount for each word of each product, weights read once."""
    popcounts = product.rows * product.columns * product.depth
    floors = {
        "compute": popcounts / (POPCOUNTS * MULTIPROCESSORS * CLOCK),
        "memory": product.bytes / machine.memory,
    }
    return Estimate(floors, LAUNCH + max(floors.values()), "gemv")


def by_memory(product: Product, machine: Machine) -> Estimate:
    """Bytes, but for binary_weight_linear with its tables of sums."""
    floors = {"memory": product.bytes / machine.memory}
    if product.depth:
        lookups = product.rows * product.depth * 8 * math.ceil(product.columns / 32)
        floors["shared"] = lookups * LOOKUP_ACCESSES / MULTIPROCESSORS / CLOCK
    return Estimate(floors, LAUNCH + max(floors.values()))


# --- results --------------------------------------------------------------------------------------


class Results:
    """The files of one GPU, of which some or all may be missing."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Any] = {
            name: json.loads(path.read_text())
            for name in ("ceilings", *MEASURED)
            if (path := folder / f"{name}.json").exists()
        }

    def machine(self) -> Machine:
        """Its limits as measured, or else as assumed."""
        if "ceilings" not in self.files:
            return Machine()
        limits = self.files["ceilings"]["ceilings"]
        binary = max(x["tera_ops_per_s"] for x in limits if x["what"].startswith("BGMMA"))
        copy = next(x["gbytes_per_s"] for x in limits if x["what"] == "copy")
        return Machine(1e12 * binary, 1e9 * copy, measured=True)

    def seconds(self, product: Product, path: str) -> float | None:
        wanted = (product.what, product.shape, f"bnn_ext {path}", product.output)
        for row in self.files.get(product.file, {"rows": []})["rows"]:
            if (row["what"], row["shape"], row["impl"], row["output_dtype"]) == wanted:
                return 1e-3 * row["median_ms"]
        return None

    def origin(self) -> str:
        measured = [name for name in MEASURED if name in self.files]
        if not measured:
            return "**Nothing on this page is measured yet**: the last two columns are empty."
        sources = (
            f"`{name}.json` at commit {self.files[name]['commit']}, {self.files[name]['date'][:10]}"
            for name in measured
        )
        return f"Measured, on {self.files[measured[0]]['device']['name']}: {', '.join(sources)}."


# --- the page -------------------------------------------------------------------------------------

BOUNDS = ("compute", "memory", "L2", "shared")
COLUMNS = (
    *("problem", "result", "kernel", "10^9 ops", "MB", *BOUNDS),
    *("expected", "POP/s", "measured", "of it"),
)

INTRODUCTION = """\
# Rooflines on an H200

What `gpu/roofline.py` prints; see [README.md](README.md#on-a-gpu) for the measurements.

{origin}

All times are in microseconds. `10^9 ops` counts a multiply-accumulate as two operations, without
the padding; `MB` are the operands and the result, each moved once. Floors are what the whole
problem takes at least:

- **compute**: operations at {binary:.1f} POP/s{binary_source}; by `mma.sync` at {mma:.0%} of that,
  as others report; by `gemv` {popcounts} popcounts of 32 bits a cycle and multiprocessor;
- **memory**: bytes at {memory:.1f} TB/s{memory_source};
- **L2**: what the tiles load, at {l2} bytes a cycle and multiprocessor, together {l2_all:.1f} TB/s,
  about what a public kernel of this kind is reported to reach;
- **shared**: what the tiles write to and read from shared memory, {shared} bytes a cycle and
  multiprocessor; of `binary_weight_linear` the lookups of sums in tables.

L2 and shared depend on the tile, `rows x columns`, that should be fastest, and on depths rounded up
to whole slabs, of {wgmma_slab} bits (wgmma) and {mma_slab} (mma): all tiles count as full. A kernel
should take as long as its tiles need in turns on {processors} multiprocessors at {clock} GHz, each
turn the slowest of the bounds of its main loop and then {stores} results a cycle to be stored (a
guess), or as long as its memory, and {launch} us to start. Latencies are not counted, so small
problems will take longer. `POP/s` is 10^15 operations a second at the expected time; `of it` is the
expected time over the measured one.
"""


def page(results: Results) -> str:
    machine = results.machine()
    source = ", measured" if machine.measured else ", assumed"
    sections = [
        INTRODUCTION.format(
            origin=results.origin(),
            binary=machine.binary / 1e15,
            binary_source=f" (8 times int8{source})",
            mma=MMA_PRODUCTS / WGMMA_PRODUCTS,
            popcounts=POPCOUNTS,
            memory=machine.memory / 1e12,
            memory_source=f" (of a copy{source})",
            l2=L2_BYTES,
            l2_all=L2_BYTES * MULTIPROCESSORS * CLOCK / 1e12,
            shared=SHARED_BYTES,
            wgmma_slab=8 * TILES["wgmma"][0].slab_bytes,
            mma_slab=8 * TILES["mma"][0].slab_bytes,
            processors=MULTIPROCESSORS,
            clock=CLOCK / 1e9,
            stores=STORED_RESULTS,
            launch=round(1e6 * LAUNCH),
        )
    ]
    rows = []
    for product in gemms("gemm"):
        rows.append(_row(product, by_tensor_cores(product, "wgmma", machine), "auto", results))
        if product.output == "bits":
            rows.append(_row(product, by_tensor_cores(product, "mma", machine), "mma", results))
    sections.append(_table("Linear layers", rows))
    rows = [
        _row(product, by_popcounts(product, machine), "auto", results) for product in gemms("gemv")
    ]
    sections.append(_table("Linear layers of few rows", rows))
    for batch in conv.BATCHES:
        rows = [
            _row(product, by_tensor_cores(product, "wgmma", machine), "auto", results)
            for product in convolutions(batch)
        ]
        sections.append(_table(f"Convolutions, batch {batch}", rows))
    rows = [_row(product, by_memory(product, machine), "auto", results) for product in streams()]
    sections.append(_table("Without tensor cores", rows))
    sections.append(_occupancy())
    return "\n".join(sections)


def _row(product: Product, estimate: Estimate, path: str, results: Results) -> list[str]:
    what = product.what.removeprefix("conv2d_").replace("_", " ")
    highest = max(estimate.floors.values())
    floors = [estimate.floors.get(bound) for bound in BOUNDS]
    measured = results.seconds(product, path)
    return [
        f"{what} {product.shape}",
        product.output,
        estimate.kernel,
        _digits(2 * product.macs / 1e9) if product.macs else "",
        _digits(product.bytes / 1e6),
        *("" if s is None else _microseconds(s, bold=s == highest) for s in floors),
        _microseconds(estimate.expected),
        _digits(2 * product.macs / estimate.expected / 1e15) if product.macs else "",
        "" if measured is None else _microseconds(measured),
        "" if measured is None else f"{estimate.expected / measured:.0%}",
    ]


def _occupancy() -> str:
    """What the tiles take of a multiprocessor's 65,536 registers, 227 KB and 64 warps."""
    lines = []
    for tile in (tile for tiles in TILES.values() for tile in tiles):
        warps = tile.blocks * tile.threads // 32
        lines.append(
            f"| {tile.kernel} {tile.rows}x{tile.columns} | {tile.threads} | {tile.blocks} "
            f"| {65536 // (tile.blocks * tile.threads)} | {tile.shared_memory:,} "
            f"| {warps} of 64 |\n"
        )
    return (
        "## Occupancy\n\nBlocks that share a multiprocessor at least, by their launch bounds, and "
        "what these leave to a thread.\n\n"
        "| kernel | threads | blocks | registers | shared bytes of a block | warps |\n"
        "| --- | --: | --: | --: | --: | --: |\n" + "".join(lines)
    )


def _microseconds(seconds: float, bold: bool = False) -> str:
    return f"**{_digits(1e6 * seconds)}**" if bold else _digits(1e6 * seconds)


def _digits(value: float) -> str:
    """Three of them before the point or in all, never as a power of ten."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 0.1 else f"{value:.3g}"


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * 3 + ["--:"] * (len(COLUMNS) - 3), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    print(page(Results(FOLDER)), end="")


if __name__ == "__main__":
    main()
