"""The main findings as one picture, by matplotlib: the text with surprise and neurons, the memory, the embedding."""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings
from typing import Any, NamedTuple

import numpy as np

from charwright.errors import MissingExtraError
from charwright.explanation.charts import SMALLEST, measurable, uncovered, visible
from charwright.explanation.results import Findings
from charwright.explanation.summary import BOUNDS, LABELS, strongest

COLUMNS, ROWS, HEADING = 92, 13, 90
NEURONS = 2
SURPRISE = ("#ffffff", "#fcefdc", "#f7d6ae", "#f0b37c", "#e78f52")
FONTS = ["DejaVu Sans Mono", "Noto Sans Mono CJK TC", "Noto Sans CJK TC", "Noto Sans CJK JP", "WenQuanYi Zen Hei"]
FONTS += ["PingFang TC", "Microsoft JhengHei", "Arial Unicode MS", "DejaVu Sans"]
MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")
_RIGHT_TO_LEFT = {"R", "AL"}


def matplotlib() -> Any:
    """The library that draws.

    Raises:
        MissingExtraError: when it is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("a picture of an explanation", "plot") from error
    return mpl


def png_bytes(findings: Findings, *, dpi: int = 150) -> bytes:
    """The picture as PNG: the first 13 lines of the text, 92 cells wide, above the memory and the embedding.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    mpl = matplotlib()
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib depends on it.

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in FONTS if name in installed] or ["monospace"]
    # One neuron for each feature shows more than the best two of one.
    neurons = list({neuron.feature: neuron for neuron in reversed(strongest(findings.neurons.found, 99))}.values())
    neurons = sorted(neurons, key=lambda neuron: -abs(neuron.confirmed))[:NEURONS]
    with mpl.rc_context({"font.family": fonts, "font.size": 8.5, "svg.fonttype": "none"}), warnings.catch_warnings():
        # A character that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        heights = [2.4] * (1 + len(neurons)) + [2.3]
        # Not pyplot, which would choose how the whole program draws.
        figure = Figure(figsize=(8.4, sum(heights)), dpi=dpi, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        heading = textwrap.fill(f"{findings.name}: {findings.network}", HEADING)
        figure.suptitle(heading, x=0.01, ha="left", parse_math=False)
        cells = _cells(findings.text)
        mean = findings.surprise.bits_per_char
        axes = figure.add_subplot(grid[0, :])
        levels = [sum(bits >= bound for bound in BOUNDS) for bits in np.nan_to_num(findings.surprise.bits)]
        shades = [SURPRISE[level] for level in levels]
        _text(axes, cells, shades, f"Surprise in bits (mean {mean:.2f} per character)")
        _legend(axes)
        colours = mpl.colormaps["cividis"]
        places = list(zip(findings.activations.layers, findings.activations.units, strict=True))
        for row, neuron in enumerate(neurons, 1):
            track = findings.activations.values[places.index((neuron.layer, neuron.unit))]
            low, high = float(track.min()), float(track.max())
            title = (
                f"Neuron {neuron.unit} of layer {neuron.layer}: {neuron.feature} (r = {neuron.confirmed:+.2f}); "
                f"from {low:+.2f}, dark blue, to {high:+.2f}, yellow"
            ).replace("-", "−")
            shades = [colours((value - low) / max(high - low, 1e-6)) for value in track.tolist()]
            _text(figure.add_subplot(grid[row, :]), cells, shades, title)
        _memory(figure.add_subplot(grid[-1, 0]), findings)
        _embedding(figure.add_subplot(grid[-1, 1]), findings)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    # With 256 colours it takes a third of the space. The method keeps colours that few pixels have, as in the legend.
    out = io.BytesIO()
    Image.fromarray(drawn).quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(
        out, format="PNG", optimize=True, dpi=(dpi, dpi)
    )
    return out.getvalue()


class _Cell(NamedTuple):
    """A character of the text in the grid of the picture."""

    at: int
    row: int
    column: int
    width: int
    sign: str


def _cells(text: str) -> list[_Cell]:
    """The characters of the first rows, each at its place."""
    cells: list[_Cell] = []
    index = row = 0
    for line in text.splitlines(keepends=True):
        placed: list[_Cell] = []
        column = 0
        for character in line:
            width = 4 if character == "\t" else 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if column + width > COLUMNS:
                cells += _directed(line, placed)
                placed, column, row = [], 0, row + 1
            placed.append(_Cell(index, row, column, width, visible(character) if character == "\n" else character))
            index, column = index + 1, column + width
        cells += _directed(line, placed)
        row += 1
        if row >= ROWS:
            break
    return [cell for cell in cells if cell.row < ROWS]


def _directed(line: str, placed: list[_Cell]) -> list[_Cell]:
    """The cells of a row, from right to left with mirrored brackets if the line's first letter is written so."""
    direction = next((unicodedata.bidirectional(character) for character in line if character.isalpha()), "L")
    if direction not in _RIGHT_TO_LEFT:
        return placed
    return [
        cell._replace(column=COLUMNS - cell.column - cell.width, sign=cell.sign.translate(MIRRORED)) for cell in placed
    ]


def _text(axes: Any, cells: list[_Cell], colours: list[Any], title: str) -> None:
    from matplotlib import colors
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, COLUMNS), ylim=(ROWS, 0))
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=8.5, parse_math=False)
    for cell in cells:
        colour = colors.to_rgb(colours[cell.at])
        axes.add_patch(Rectangle((cell.column, cell.row), cell.width, 1, facecolor=colour, edgecolor="none"))
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
        if not cell.sign.isspace() and cell.sign.isprintable():
            axes.text(
                cell.column + cell.width / 2,
                cell.row + 0.55,
                cell.sign,
                ha="center",
                va="center",
                color="white" if dark else "black",
                parse_math=False,
            )


def _legend(axes: Any) -> None:
    """The bits of each colour, at the right of the title."""
    from matplotlib.patches import Patch

    swatches = [
        Patch(facecolor=colour, edgecolor="#888888", linewidth=0.5, label=label)
        for colour, label in zip(SURPRISE, LABELS, strict=True)
    ]
    axes.legend(
        handles=swatches,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(swatches),
        frameon=False,
        borderaxespad=0,
        borderpad=0.3,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _memory(axes: Any, findings: Findings) -> None:
    memory = findings.memory
    points = measurable(memory)
    axes.plot([k for k, *_ in points], [max(bits, SMALLEST) for _, bits, _ in points], color="#8a3b12")
    last = points[-1][0]
    beyond = "" if last > 0.8 * memory.lags[-1] else f"; beyond {last:.0f} less than {SMALLEST:.4f} bits"
    axes.set(xscale="log", yscale="log", xlabel=f"k, {memory.unit}s back{beyond}", ylabel="bits")
    ticks = [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200) if k <= last]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(f"The effect of the {memory.unit} k back", loc="left", fontsize=8.5)
    axes.grid(visible=True, alpha=0.3)


def _embedding(axes: Any, findings: Findings) -> None:
    found = findings.embedding
    axes.set_title("Map of the characters", loc="left", fontsize=8.5)
    axes.set(xticks=[], yticks=[])
    if len(found.points):
        span = np.maximum(np.ptp(found.points, axis=0), 1e-9)
        # The map is about 24 characters wide and 14 high.
        for token, (x, y), free in zip(
            found.tokens, found.points, uncovered(found.points / span, (1 / 24, 1 / 14)), strict=True
        ):
            if free:
                axes.text(x, y, visible(token), ha="center", va="center", fontsize=8, parse_math=False)
            else:
                axes.plot(x, y, ".", markersize=1.5, color="grey")
        low, high = found.points.min(axis=0), found.points.max(axis=0)
        margin = np.maximum(0.08 * (high - low), 1e-6)
        axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
