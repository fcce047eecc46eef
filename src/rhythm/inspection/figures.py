"""Figures of a response, each from plain values to a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from rhythm.analysis.coupling import PROMINENCE
from rhythm.inspection import drawing
from rhythm.inspection.drawing import (
    BLUE,
    FAINT,
    INK,
    LEFT,
    MAP,
    MONO,
    MONO_WIDTH,
    ORANGE,
    PALE_BLUE,
    PALE_ORANGE,
    put_title,
    write,
)
from rhythm.inspection.responses import SIGNALS, Response, peak_places
from rhythm.types import HeadGroups

TOKENS = 200  # shown of a response
STRIPS = {"waad": "W", "fai": "F", "entropy": "H", "credit": "γ"}  # beside each strip
SIZE, STRIP, RIGHT = 7.0, 5.5, 4.0  # points: of the font, a strip's height, the margin
LINE = 9.5  # points, of a line of text


def tokens_figure(response: Response, title: str) -> Figure:
    """The response as wrapped tokens; below each line a strip for each signal there is, on the scale of the response.

    Preplan tokens have a bar above, anchors one below. Where a signal is undefined its strip is crossed out.
    """
    tokens = response.tokens[:TOKENS]
    strips = {name: response.values[name][:TOKENS] for name in STRIPS if name in response.values}
    columns = int((drawing.WIDTH * 72 - LEFT - RIGHT) / (SIZE * MONO_WIDTH))
    lines = wrap(tokens, columns)
    marks = response.preplan is not None or response.anchor is not None
    problem = drawing.clipped(drawing.printable(response.problem), columns)
    top = 28 + (11 if problem else 0) + 10 * -(-len(strips) // 2) + (12 if marks else 0)
    height = LINE + 4 + STRIP * len(strips) + 4
    figure = drawing.new_figure((top + height * len(lines) + 6) / 72)
    axes = drawing.plain_axes(figure)
    _header(axes, response, title, problem)
    scales = {name: _scale(values) for name, values in strips.items()}
    _legend(axes, scales, 26 + (11 if problem else 0), marks)
    boxes: dict[str, list] = {PALE_ORANGE: [], PALE_BLUE: [], ORANGE: [], BLUE: []}
    cells, shades, holes = [], [], []
    for number, line in enumerate(lines):
        y = top + number * height
        for token, column, text in line:
            x, width = LEFT + column * SIZE * MONO_WIDTH, len(text) * SIZE * MONO_WIDTH
            write(axes, x, y + LINE - 2, text, size=SIZE, family=MONO)
            planned, anchored = (marks is not None and marks[token] for marks in (response.preplan, response.anchor))
            half = LINE / 2 if planned and anchored else LINE
            if planned:
                boxes[PALE_ORANGE].append(_box(x, y, width, half))
                boxes[ORANGE].append(_box(x + 0.4, y - 0.9, width - 0.8, 1.3))
            if anchored:
                boxes[PALE_BLUE].append(_box(x, y + LINE - half, width, half))
                boxes[BLUE].append(_box(x + 0.4, y + LINE - 0.4, width - 0.8, 1.3))
            for place, (name, values) in enumerate(strips.items()):
                cell = _box(x, y + LINE + 2 + place * STRIP, width, STRIP - 0.8)
                if np.isnan(values[token]):
                    holes.append(cell)
                else:
                    cells.append(cell)
                    shades.append(MAP(_shade(values[token], scales[name])))
        for place, name in enumerate(strips):
            middle = y + LINE + 2 + (place + 0.5) * STRIP - 0.4
            write(axes, 3, middle, STRIPS[name], size=5, va="center", color=FAINT)
    for colour, polygons in boxes.items():
        axes.add_collection(PolyCollection(polygons, facecolors=colour, edgecolors="none", zorder=0))
    axes.add_collection(PolyCollection(cells, facecolors=shades, edgecolors="white", linewidths=0.3))
    _cross_out(axes, holes)
    return figure


def curves_figure(response: Response, title: str, prominence: float = PROMINENCE, *, labels: int = 8) -> Figure:
    """WAAD, FAI and entropy along the response, after Fig. 2 of arXiv:2510.13554; its highest peaks named.

    Args:
        prominence: of a peak, in standard deviations of the values.
        labels: peaks of each curve that are named, at most.
    """
    shown = {name: response.values[name] for name in ("waad", "fai", "entropy") if name in response.values}
    height = 0.7 + 1.15 * len(shown)
    figure = drawing.new_figure(height)
    put_title(figure, title)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.13, right=0.98, top=1 - 0.25 / height, bottom=0.35 / height, hspace=0.18)
    for axes, (name, values), colour in zip(panels, shown.items(), (ORANGE, BLUE, drawing.GREEN), strict=False):
        signal, positions = SIGNALS[name], np.arange(len(values))
        axes.plot(positions, values, color=colour, linewidth=0.8)
        peaks = peak_places(values, prominence)
        axes.plot(peaks, values[peaks], "o", color=colour, markersize=2.2)
        low, high = _scale(values)
        axes.set_ylim(low - 0.05 * (high - low), low + 1.5 * max(high - low, 1e-9))  # room for tokens above peaks
        axes.set_ylabel(f"{signal.label}, {signal.unit}".rstrip(", "), size=6)
        _name_peaks(axes, peaks, values, response.tokens, labels)
        _tidy(axes)
    panels[-1].set_xlabel("token of the response", size=6.5)
    panels[-1].set_xlim(-1, len(response.tokens))
    return figure


def maps_figure(near: Tensor, far: Tensor, response: Response, title: str, prominence: float = PROMINENCE) -> Figure:
    """Ā^loc and Ā^glob of Eq. 8 of arXiv:2510.13554 among the tokens of a response, in two panels.

    Colours go by the square root, since attention is concentrated on few tokens. Triangles point at the rows of the
    WAAD peaks and at the columns of the FAI peaks.

    Args:
        near, far: [n, n], row t attends to column s; n may be less than the response has.
        prominence: of a peak, in standard deviations of the whole response's values.
    """
    side, below, gap = 2.6, 0.36, 0.4  # inches: of a panel, under the lower one, between the two
    figure = drawing.new_figure(below + 2 * side + gap + 0.45)
    put_title(figure, title)
    height = figure.get_figheight()
    names = ("Ā of the local heads", "Ā of the global heads")
    for bottom, attention, name in zip((below + side + gap, below), (near, far), names, strict=True):
        axes = figure.add_axes((0.13, bottom / height, side / drawing.WIDTH, side / height))
        n = len(attention)
        values = np.where(np.tri(n, dtype=bool), attention.float().cpu().numpy(), np.nan)
        highest = max(1e-9, float(np.nanquantile(values, 0.995)))
        image = axes.imshow(values, cmap=MAP, norm=PowerNorm(0.5, 0, highest, clip=True), origin="upper")
        write(axes, 0, 1.03, name, size=7, transform=axes.transAxes)
        _tidy(axes)
        axes.set_ylabel("looking token", size=6)
        _colour_bar(figure, image, bottom / height, side / height, extend="max")
        if attention is near and "waad" in response.values:
            rows = peak_places(response.values["waad"], prominence)
            rows = rows[rows < n]
            axes.plot(rows + 3, rows, linestyle="", marker="<", color=ORANGE, markersize=2.6, markeredgewidth=0)
            write(axes, 0.98, 0.94, "◂ WAAD peaks", size=6.5, color=ORANGE, ha="right", transform=axes.transAxes)
        if attention is far and "fai" in response.values:
            columns = peak_places(response.values["fai"], prominence)
            columns = columns[columns < n]
            axes.plot(columns, columns - 3, linestyle="", marker="v", color=BLUE, markersize=2.6, markeredgewidth=0)
            write(axes, 0.98, 0.94, "▾ FAI peaks", size=6.5, color=BLUE, ha="right", transform=axes.transAxes)
    axes.set_xlabel("token looked at", size=6)
    return figure


def heads_figure(distance: dict[int, Tensor], heads: HeadGroups, title: str) -> Figure:
    """Mean attention distance of each head, Eq. 7 of arXiv:2510.13554; local heads have a solid frame, global a dashed.

    Args:
        distance: layer -> [H], in tokens.
    """
    layers = sorted(distance)
    values = np.stack([distance[layer].double().cpu().numpy() for layer in layers])
    rows, columns = values.shape
    panel = max(1.0, 2.6 * min(1.4, rows / columns))  # inches
    figure = drawing.new_figure(0.75 + panel)
    height = figure.get_figheight()
    put_title(figure, title)
    axes = figure.add_axes((0.1, 0.34 / height, 0.76, panel / height))
    image = axes.imshow(values, cmap=MAP, aspect="auto")
    axes.set_yticks(range(rows), layers)
    axes.set_xlabel("head", size=6.5)
    axes.set_ylabel("layer", size=6.5)
    _tidy(axes)
    _colour_bar(figure, image, 0.34 / height, panel / height, label="tokens")
    if columns <= 16:
        for (row, column), value in np.ndenumerate(values):
            dark = image.norm(value) < 0.55
            write(axes, column, row, f"{value:.3g}", size=6, ha="center", va="center", color="w" if dark else INK)
    framed = (("local", heads.local, ORANGE, "-"), ("global", heads.global_, "#FFFFFF", (0, (2.5, 1.5))))
    for place, (name, group, colour, style) in enumerate(framed):
        for layer, head in group:
            at = (head - 0.5 + 0.05, layers.index(layer) - 0.5 + 0.05)
            for width, line in ((2.2, INK), (1.3, colour)):  # a dark rim, for frames on any colour
                axes.add_patch(Rectangle(at, 0.9, 0.9, fill=False, edgecolor=line, linewidth=width, linestyle=style))
        text = f"{'solid' if place == 0 else 'dashed'} frame: {name} heads"
        x = 0.1 + 0.4 * place
        figure.text(x, 1 - 0.27 / height, text, size=6.5, color=ORANGE if place == 0 else INK, va="center")
    return figure


def wrap(tokens: Sequence[str], columns: int) -> list[list[tuple[int, int, str]]]:
    """Lines of (token, its first column, its text as drawn); a line ends where it is full or behind a line feed."""
    lines: list[list[tuple[int, int, str]]] = [[]]
    column = 0
    for number, token in enumerate(tokens):
        text = drawing.clipped(drawing.printable(token) or "▯", columns)
        if column + len(text) > columns:
            lines.append([])
            column = 0
        lines[-1].append((number, column, text))
        column = columns if text.endswith("↵") else column + len(text)
    return lines


def _header(axes: Axes, response: Response, title: str, problem: str) -> None:
    write(axes, LEFT, 9, title, size=7.5, weight="bold")
    cut = f"; its first {TOKENS} are shown" if len(response.tokens) > TOKENS else ""
    write(axes, LEFT, 18.5, response.headline() + cut, size=6.5)
    if problem:
        write(axes, LEFT, 29, problem, size=6.5, family=MONO)


def _legend(axes: Axes, scales: dict[str, tuple[float, float]], top: float, marks: bool) -> None:
    for place, (name, (low, high)) in enumerate(scales.items()):
        x, y = LEFT + 119 * (place % 2), top + 10 * (place // 2)
        signal = SIGNALS[name]
        write(axes, x, y + 5, f"{STRIPS[name]}  {signal.label}", size=5.5)
        write(axes, x + 48, y + 5, _short(low, high), size=5.5, ha="right")
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=MAP, extent=(x + 50, x + 74, y + 5.5, y + 0.5), aspect="auto")
        write(axes, x + 76, y + 5, f"{_short(high, high)} {signal.unit}", size=5.5)
    width, height = axes.figure.get_size_inches() * 72
    axes.set(xlim=(0, width), ylim=(height, 0))  # images move them
    if marks:
        y = top + 10 * -(-len(scales) // 2)
        keys = ((PALE_ORANGE, ORANGE, -0.9, "preplan"), (PALE_BLUE, BLUE, 5.6, "anchor"))
        for place, (pale, colour, bar, name) in enumerate(keys):
            x = LEFT + 60 * place
            axes.add_patch(Rectangle((x, y), 14, 6, color=pale, linewidth=0))
            axes.add_patch(Rectangle((x, y + bar), 14, 1.3, color=colour, linewidth=0))
            write(axes, x + 17, y + 5, name, size=5.5)
        _cross_out(axes, [_box(LEFT + 120, y, 14, 6)])
        write(axes, LEFT + 137, y + 5, "undefined", size=5.5)


def _cross_out(axes: Axes, boxes: list) -> None:
    lines = [[box[0], box[2]] for box in boxes]
    axes.add_collection(PolyCollection(boxes, facecolors="#f0f0f0", edgecolors=FAINT, linewidths=0.3))
    axes.add_collection(PolyCollection(lines, facecolors="none", edgecolors=FAINT, linewidths=0.4))


def _name_peaks(axes: Axes, peaks: np.ndarray, values: np.ndarray, tokens: Sequence[str], count: int) -> None:
    """The tokens of the highest peaks, upright above them, none over another."""
    apart = max(2.0, len(tokens) / 32)
    named: list[int] = []
    for peak in peaks[np.argsort(-values[peaks], kind="stable")]:
        if len(named) < count and all(abs(peak - other) >= apart for other in named):
            named.append(int(peak))
    for peak in named:
        text = drawing.clipped(drawing.printable(tokens[peak].strip(" ")), 10)
        axes.annotate(
            text,
            (peak, values[peak]),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            size=5.5,
            family=MONO,
            color=INK,
            parse_math=False,
        )


def _scale(values: np.ndarray) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    return (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 0.0)


def _short(value: float, largest: float) -> str:
    """Three digits of what the largest value of its kind has three digits of."""
    return f"{value:.3g}" if abs(value) >= 1e-3 * abs(largest) else "0"


def _shade(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return (value - low) / (high - low) if high > low else 0.0


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=6, length=2, width=0.4, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def _colour_bar(figure: Figure, image: AxesImage, bottom: float, height: float, **settings) -> None:
    axes = figure.add_axes((0.885, bottom, 0.025, height))
    bar = figure.colorbar(image, cax=axes, ticks=MaxNLocator(4, prune="upper"), **{"label": ""} | settings)
    bar.ax.yaxis.label.set_size(6)
    bar.ax.tick_params(labelsize=5.5, length=2, width=0.4)
    bar.outline.set_linewidth(0.3)
