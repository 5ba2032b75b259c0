"""Draws what the benchmarks wrote: bars with ratios, and a roofline for each CPU level.

Beside each `results/<device>/<what>.json` comes `<what>.png`. For all of a CPU's runs on one thread
there is `roofline.png`; for a GPU's matrix products `gemm_sizes.png`, their rates by size, and for
its convolutions one file for each batch.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run import RESULTS

from bnn_ext._extras import needs_extra

with needs_extra("bench"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator
    from PIL import Image

Row = Mapping[str, Any]
Document = Mapping[str, Any]

BLUE, LIGHT_BLUE, ORANGE, GREY = "#1769aa", "#d3e5f5", "#d9822b", "#9aa5b1"
TEXT, FAINT = "#1f2933", "#e4e7eb"
BAR = 0.72
COLORS = (
    *("#1769aa", "#d9822b", "#2f9e6e", "#8a5bb5", "#c0455b"),
    *("#5f6b7a", "#b5a02a", "#3aa6b9", "#7a4a2b", "#e07ab0"),
)
MARKERS = "os^Dv"


def is_ours(row: Row) -> bool:
    return row["impl"].startswith("bnn_ext ")


def is_limit(row: Row) -> bool:
    return row["impl"].startswith("register peak ") or row["impl"] == "torch copy_"


def rate(row: Row) -> tuple[float, str]:
    """What more of is better, and its unit."""
    per_second = 1e3 / row["median_ms"]
    if row["what"].startswith("model_"):
        return _size(row) * per_second, "images/s"
    if row.get("tera_ops_per_s"):
        return row["tera_ops_per_s"], "TOP/s"
    if row.get("gmacs") is None:
        return row["bytes"] * per_second / 1e9, "GB/s"
    return row["gmacs"], "GMAC/s"


# --- bars -----------------------------------------------------------------------------------------


def draw_bars(document: Document, title: str, path: Path) -> None:
    """A panel for each problem, a bar for each implementation; ours in front of its limit."""
    problems = dict.fromkeys(
        (row["what"], row["shape"]) for row in document["rows"] if is_ours(row)
    )
    if not problems:
        return
    panels = []
    for problem in problems:
        rows, missing = (
            [row for row in document[key] if (row["what"], row["shape"]) == problem]
            for key in ("rows", "missing")
        )
        panels.append((problem, _bars(rows), missing))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    most = max(len(bars) + len(missing) for _, bars, missing in panels)
    size = (7.2 * columns, 1.0 + lines * (0.9 + 0.26 * most))
    figure, axes = _figure(document, title, size, lines, columns)
    for panel, (problem, bars, missing) in zip(axes, panels, strict=False):
        _draw_panel(panel, " ".join(problem), bars, missing)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    _save(figure, path)


def _bars(rows: Sequence[Row]) -> list[Row]:
    """Without the register peaks, which stand behind ours; of other levels only one output."""
    first = next(row for row in rows if is_ours(row))
    level = first["impl"].split()[-1]
    return [
        row
        for row in rows
        if not row["impl"].startswith("register peak ")
        and (
            not is_ours(row)
            or row["output_dtype"] == first["output_dtype"]
            or row["impl"].endswith(f" {level}")
        )
    ]


def _draw_panel(axes: Axes, title: str, bars: Sequence[Row], missing: Sequence[Row]) -> None:
    best = next(row for row in bars if is_ours(row))
    unit = rate(best)[1]
    widest = max(_limit(row) for row in bars)
    for y, row in enumerate(bars):
        value = rate(row)[0]
        if is_ours(row):
            axes.barh(y, _limit(row), BAR, color=LIGHT_BLUE)
        axes.barh(y, value, BAR, color=BLUE if is_ours(row) else GREY)
        label = f"{_digits(row['median_ms'])} ms"
        if row.get("fraction_of_peak") and not is_limit(row):
            label += f", {row['fraction_of_peak']:.0%} of the limit"
        if not is_ours(row) and not is_limit(row):
            label += f", bnn_ext is {_digits(rate(best)[0] / value)}x as fast"
        end = _limit(row) if is_ours(row) else value
        axes.text(end + 0.012 * widest, y, label, va="center", fontsize=8, color=TEXT)
    for y, row in enumerate(missing, start=len(bars)):
        axes.text(0.012 * widest, y, row["reason"], va="center", fontsize=8, color=ORANGE)
    names = [_name(row) for row in (*bars, *missing)]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1.6 * widest), ylim=(len(names) - 0.4, -0.6))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=TEXT)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.grid(axis="x", color=FAINT)


def _digits(value: float) -> str:
    """Three of them before the point or in all, never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _name(row: Row) -> str:
    output = row.get("output_dtype")
    return row["impl"] if output in (None, *row["impl"].split()) else f"{row['impl']}, {output}"


def _limit(row: Row) -> float:
    """What the row's rate is measured against, or the rate itself."""
    return rate(row)[0] / (row.get("fraction_of_peak") or 1)


# --- roofline -------------------------------------------------------------------------------------


def draw_roofline(documents: Sequence[Document], path: Path) -> None:
    """Our kernels on one thread below what each CPU level and each memory allows.

    The intensity counts every operand and result once: what the kernel has to move at least.
    """
    peaks: dict[str, float] = {}
    points: dict[str, dict[tuple[str, str], Row]] = {}  # by level and problem: the first output
    for row in (row for document in documents for row in document["rows"]):
        level = row["impl"].split()[-1]
        if row["impl"].startswith("register peak "):
            peaks[level] = max(peaks.get(level, 0), _limit(row))
        elif is_ours(row) and row["gmacs"] and row["bytes"] and row["threads"] == 1:
            points.setdefault(level, {}).setdefault((row["what"], row["shape"]), row)
    if not points:
        return
    memories = [document["read_gbytes_per_s"] for document in documents]
    bandwidths = {name: max(memory[name] for memory in memories) for name in memories[0]}

    problems = list(dict.fromkeys(problem for level in points.values() for problem in level))
    columns = min(3, len(points))
    lines = -(-len(points) // columns)
    legend_columns = columns + 1
    legend_lines = -(-len(problems) // legend_columns)
    size = (max(7.2, 4.8 * columns), 3.9 * lines + 0.9 + 0.22 * legend_lines)
    figure, axes = _figure(documents[0], "below the limits, on one thread", size, lines, columns)
    for panel, (level, rows) in zip(axes, points.items(), strict=False):
        _draw_roofs(panel, level, peaks[level], bandwidths)
        for problem, row in rows.items():
            intensity = row["gmacs"] * row["median_ms"] * 1e6 / row["bytes"]
            panel.plot(intensity, row["gmacs"], linestyle="", **_style(problem, problems))
    for panel in axes[len(points) :]:
        panel.set_axis_off()
    handles = [
        Line2D([], [], linestyle="", label=" ".join(problem), **_style(problem, problems))
        for problem in problems
    ]
    place = {"loc": "outside lower center", "ncols": legend_columns}
    figure.legend(handles=handles, **place, frameon=False, fontsize=8)
    _save(figure, path)


def _style(problem: tuple[str, str], problems: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A color for each operator, a marker for each of its shapes."""
    operators = list(dict.fromkeys(what for what, _ in problems))
    shapes = [shape for what, shape in problems if what == problem[0]]
    color = COLORS[operators.index(problem[0]) % len(COLORS)]
    return {"color": color, "marker": MARKERS[shapes.index(problem[1]) % len(MARKERS)]}


def _draw_roofs(axes: Axes, level: str, peak: float, bandwidths: Mapping[str, float]) -> None:
    lowest = peak / 100
    left, right = lowest / max(bandwidths.values()), 2e4  # multiply-accumulates a byte
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, 2 * peak))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.plot([left, right], [peak, peak], color=TEXT)
    text = f"register peak, {peak:,.0f} GMAC/s"
    axes.text(0.8 * right, 1.1 * peak, text, ha="right", fontsize=8, color=TEXT)
    for number, (memory, bandwidth) in enumerate(bandwidths.items()):
        axes.plot([lowest / bandwidth, peak / bandwidth], [lowest, peak], color=GREY)
        height = peak / (6, 3, 12)[number]
        axes.annotate(
            f"{memory}, {bandwidth:.0f} GB/s",
            (height / bandwidth, height),
            textcoords="offset points",
            xytext=(-3, 0) if number == 0 else (3, 0),
            ha="right" if number == 0 else "left",
            va="center",
            fontsize=8,
            color=TEXT,
        )
    axes.set_title(level, loc="left", fontsize=10, fontweight="bold", color=TEXT)
    axes.set_xlabel("multiply-accumulates for each byte that has to be moved")
    axes.set_ylabel("GMAC/s")
    axes.grid(color=FAINT)


# --- sizes ----------------------------------------------------------------------------------------


def draw_sizes(document: Document, ceilings: Sequence[Row], path: Path) -> None:
    """Rates of square products on a GPU over their size; ours by the chosen path in thick lines."""
    rows = [row for row in document["rows"] if row["what"] == "gemm"]
    if not any(map(is_ours, rows)):
        return
    squares: dict[str, list[Row]] = {}
    for row in _bars(rows):
        squares.setdefault(_name(row), []).append(row)
    figure, (axes,) = _figure(document, "products of square matrices", (8.6, 6), 1, 1)
    for number, (name, rows) in enumerate(squares.items()):
        chosen = name.startswith("bnn_ext auto")
        axes.plot(
            [*map(_size, rows)],
            [rate(row)[0] for row in rows],
            "-" if chosen else "--" if is_ours(rows[0]) else ":",
            color=COLORS[number % len(COLORS)],
            linewidth=2.2 if chosen else 1.2,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            label=name,
        )
    binary = [row for row in ceilings if row["what"].startswith("BGMMA")]
    if binary:
        best = max(binary, key=lambda row: row["tera_ops_per_s"])
        axes.axhline(
            best["tera_ops_per_s"], color=TEXT, linewidth=1, label=f"limit, {best['what']}"
        )
    axes.set(xscale="log", yscale="log", xlabel="size", ylabel="TOP/s")
    ticks = sorted({_size(row) for rows in squares.values() for row in rows})
    axes.set_xticks(ticks, map(str, ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=FAINT)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _save(figure, path)


def _size(row: Row) -> int:
    """The first of its shape: rows of a product, images of a batch."""
    return int(row["shape"].split("x")[0])


# --- figures --------------------------------------------------------------------------------------


def _figure(
    document: Document, title: str, size: tuple[float, float], lines: int, columns: int
) -> tuple[Figure, list[Axes]]:
    first = document["rows"][0]
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items() if v)
    isa = document.get("onednn_max_cpu_isa")
    limited = f", oneDNN limited to {isa}" if isa else ""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(
        f"{title}\n{first['device']}, {document['date'][:10]}\n{versions}{limited}",
        fontsize=9,
        color=TEXT,
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(colors=TEXT)
        panel.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    """As PNG with a palette, less than half as large as one without."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(256).save(path, format="PNG", optimize=True)
    print(f"written to {path}")


def _parts(name: str, document: Document) -> dict[str, Document]:
    """What is drawn as one figure: a file, but of a GPU's convolutions one batch."""
    if name != "conv":
        return {name: document}
    parts: dict[str, Any] = {}
    for key in ("rows", "missing"):
        for row in document[key]:
            part = f"{name}_batch{_size(row)}"
            parts.setdefault(part, {**document, "rows": [], "missing": []})[key].append(row)
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(arguments)
    for folder in sorted(path for path in options.results.iterdir() if path.is_dir()):
        files = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        documents = {path: file for path, file in files.items() if file.get("rows")}
        on_cpu = [document for document in documents.values() if "cpu_level" in document]
        for path, document in documents.items():
            for name, part in _parts(path.stem, document).items():
                draw_bars(part, name.replace("_", " "), folder / f"{name}.png")
        if on_cpu:
            draw_roofline(on_cpu, folder / "roofline.png")
        if (gemm := folder / "gemm.json") in documents:
            ceilings = files.get(folder / "ceilings.json", {"ceilings": []})["ceilings"]
            draw_sizes(documents[gemm], ceilings, folder / "gemm_sizes.png")


if __name__ == "__main__":
    main()
