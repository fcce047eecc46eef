"""A response as wrapped tokens with a strip for each signal beneath every line: from plain values to a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
    SMALL,
    write,
)
from rhythm.inspection.responses import SCALED_TO, SIGNALS, Response

TOKENS = 200  # shown of a response
STRIPS = {"waad": "W", "fai": "F", "entropy": "H", "credit": "γ"}  # beside each strip
SIZE, STRIP, RIGHT = 7.0, 6.5, 4.0  # points: of the font, a strip's height, the margin
LINE = 9.5  # points, of a line of text


class Scale(NamedTuple):
    """From the lowest value to the highest, or to what 99% of them do not exceed: one large value rules no strip."""

    low: float
    high: float
    capped: bool  # whether a value lies above

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        defined = values[~np.isnan(values)]
        if not len(defined):
            return cls(0.0, 0.0, False)
        low, largest = float(defined.min()), float(defined.max())
        high = float(np.quantile(defined, SCALED_TO))
        return cls(low, high, high < largest) if high > low else cls(low, largest, False)

    def share(self, value: float) -> float:
        return min(1.0, (value - self.low) / (self.high - self.low)) if self.high > self.low else 0.0


def tokens_figure(response: Response, title: str) -> Figure:
    """The response as wrapped tokens; below each line a strip for each signal there is, on the response's scale.

    Preplan tokens have a bar above, anchors one below. Where a signal is undefined its strip is crossed out.
    """
    tokens = response.tokens[:TOKENS]
    strips = {name: response.values[name][:TOKENS] for name in STRIPS if name in response.values}
    columns = int((drawing.WIDTH * 72 - LEFT - RIGHT) / (SIZE * MONO_WIDTH))
    lines = wrap(tokens, columns)
    marks = response.preplan is not None or response.anchor is not None
    problem = drawing.clipped(drawing.printable(response.problem), columns)
    top = 28 + (11 if problem else 0) + 10 * len(strips) + (12 if marks else 0)
    height = LINE + 4 + STRIP * len(strips) + 4
    figure = drawing.new_figure((top + height * len(lines) + 6) / 72)
    axes = drawing.plain_axes(figure)
    _header(axes, response, title, problem)
    scales = {name: Scale.of(values) for name, values in strips.items()}
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
                    shades.append(MAP(scales[name].share(values[token])))
        for place, name in enumerate(strips):
            middle = y + LINE + 2 + (place + 0.5) * STRIP - 0.4
            write(axes, 3, middle, STRIPS[name], size=SMALL, va="center", color=INK)
    for colour, polygons in boxes.items():
        axes.add_collection(PolyCollection(polygons, facecolors=colour, edgecolors="none", zorder=0))
    axes.add_collection(PolyCollection(cells, facecolors=shades, edgecolors="white", linewidths=0.3))
    _cross_out(axes, holes)
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
    write(axes, LEFT, 18.5, response.headline() + cut, size=SMALL)
    if problem:
        write(axes, LEFT, 29, problem, size=SMALL, family=MONO)


def _legend(axes: Axes, scales: dict[str, Scale], top: float, marks: bool) -> None:
    for place, (name, (low, high, capped)) in enumerate(scales.items()):
        x, y = LEFT, top + 10 * place
        signal = SIGNALS[name]
        write(axes, x, y + 5, STRIPS[name], size=SMALL)
        write(axes, x + 10, y + 5, signal.label, size=SMALL)
        write(axes, x + 66, y + 5, _short(low, high), size=SMALL, ha="right")
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=MAP, extent=(x + 69, x + 117, y + 5.5, y), aspect="auto")
        write(axes, x + 120, y + 5, f"{'≥ ' * capped}{_short(high, high)} {signal.unit}", size=SMALL)
    width, height = axes.figure.get_size_inches() * 72
    axes.set(xlim=(0, width), ylim=(height, 0))  # images move them
    if marks:
        y = top + 10 * len(scales)
        keys = ((PALE_ORANGE, ORANGE, -0.9, "preplan"), (PALE_BLUE, BLUE, 5.6, "anchor"))
        for place, (pale, colour, bar, name) in enumerate(keys):
            x = LEFT + 60 * place
            axes.add_patch(Rectangle((x, y), 14, 6, color=pale, linewidth=0))
            axes.add_patch(Rectangle((x, y + bar), 14, 1.3, color=colour, linewidth=0))
            write(axes, x + 17, y + 5, name, size=SMALL)
        _cross_out(axes, [_box(LEFT + 120, y, 14, 6)])
        write(axes, LEFT + 137, y + 5, "undefined", size=SMALL)


def _cross_out(axes: Axes, boxes: list) -> None:
    lines = [[box[0], box[2]] for box in boxes]
    axes.add_collection(PolyCollection(boxes, facecolors="#f0f0f0", edgecolors=FAINT, linewidths=0.3))
    axes.add_collection(PolyCollection(lines, facecolors="none", edgecolors=FAINT, linewidths=0.4))


def _short(value: float, largest: float) -> str:
    """As many decimals as give the largest value of its kind three digits, but for zeros at the end."""
    decimals = max(0, 2 - math.floor(math.log10(abs(largest)))) if largest else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
