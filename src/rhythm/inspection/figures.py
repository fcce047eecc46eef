"""Figures of signals, maps and heads, each from plain values to a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from rhythm.analysis.coupling import PROMINENCE
from rhythm.attention.definitions import SignalSettings
from rhythm.inspection import drawing
from rhythm.inspection.drawing import (
    BLUE,
    INK,
    MAP,
    MONO,
    ORANGE,
    SMALL,
    put_title,
    write,
)
from rhythm.inspection.responses import SIGNALS, Response, peak_places
from rhythm.types import HeadGroups


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
    figure.subplots_adjust(left=0.15, right=0.98, top=1 - 0.25 / height, bottom=0.35 / height, hspace=0.18)
    for axes, (name, values), colour in zip(panels, shown.items(), (ORANGE, BLUE, drawing.GREEN), strict=False):
        signal, positions = SIGNALS[name], np.arange(len(values))
        axes.plot(positions, values, color=colour, linewidth=0.8)
        peaks = peak_places(values, prominence)
        axes.plot(peaks, values[peaks], "o", color=colour, markersize=2.2)
        defined = values[~np.isnan(values)]
        low, high = (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 0.0)
        reach = high - low or 1.0
        axes.set_ylim(low - 0.05 * reach, low + 1.5 * reach)  # room for tokens above peaks
        axes.set_ylabel(f"{signal.label}, {signal.unit}".rstrip(", "), size=SMALL)
        _name_peaks(axes, peaks, values, response.tokens, labels)
        _tidy(axes)
    panels[-1].set_xlabel("token of the response", size=SMALL)
    panels[-1].set_xlim(-1, len(response.tokens))
    figure.align_ylabels(panels)
    return figure


def maps_figure(
    near: Tensor,
    far: Tensor,
    response: Response,
    title: str,
    settings: SignalSettings,
    prominence: float = PROMINENCE,
) -> Figure:
    """Ā^loc and Ā^glob of Eq. 8 of arXiv:2510.13554 among the tokens of a response, in two panels.

    Colours go by the square root, since attention is concentrated on few tokens. Triangles point at the rows of the
    WAAD peaks and at the columns of the FAI peaks.

    Args:
        near, far: [n, n] of `mean_maps`, row t attends to column s; n may be less than the response has.
        settings: those that the maps were read by; the figure says which rows they have, and whether the sink.
        prominence: of a peak, in standard deviations of the whole response's values.
    """
    side, below, gap = 2.6, 0.36, 0.4  # inches: of a panel, under the lower one, between the two
    figure = drawing.new_figure(below + 2 * side + gap + 0.45)
    put_title(figure, title)
    height = figure.get_figheight()
    kept = ", sink dropped" * (settings.sink == "drop")
    before = settings.row == "predictor"
    looking = "token, read from the row before it" if before else "looking token"
    panels = (
        (below + side + gap, near, f"Ā of the local heads{kept}", looking, -int(before)),
        (below, far, f"Ā of the global heads{kept}", "looking token", 0),
    )
    for bottom, attention, name, rows, diagonal in panels:
        axes = figure.add_axes((0.13, bottom / height, side / drawing.WIDTH, side / height))
        n = len(attention)
        values = np.where(np.tri(n, k=diagonal, dtype=bool), attention.float().cpu().numpy(), np.nan)
        highest = max(1e-9, float(np.nanquantile(values, 0.995)))
        image = axes.imshow(values, cmap=MAP, norm=PowerNorm(0.5, 0, highest, clip=True), origin="upper")
        write(axes, 0, 1.03, name, size=7, transform=axes.transAxes)
        _tidy(axes)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel(rows, size=SMALL)
        _colour_bar(figure, image, bottom / height, side / height, extend="max")
        if attention is near and "waad" in response.values:
            peaks = peak_places(response.values["waad"], prominence)
            _beside(axes, peaks[peaks < n], "<", (6, 0), ORANGE)
            write(axes, 0.98, 0.94, "◂ WAAD peaks", size=SMALL, color=ORANGE, ha="right", transform=axes.transAxes)
        if attention is far and "fai" in response.values:
            peaks = peak_places(response.values["fai"], prominence)
            _beside(axes, peaks[peaks < n], "v", (0, 6), BLUE)
            write(axes, 0.98, 0.94, "▾ FAI peaks", size=SMALL, color=BLUE, ha="right", transform=axes.transAxes)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))  # marks move them
    axes.set_xlabel("token looked at", size=SMALL)
    return figure


def _beside(axes: Axes, places: np.ndarray, marker: str, points: tuple[float, float], colour: str) -> None:
    """Marks at some distance, in points, from places of the diagonal."""
    away = ScaledTranslation(points[0] / 72, points[1] / 72, axes.figure.dpi_scale_trans)
    style = {"markersize": 2.6, "markeredgewidth": 0, "clip_on": False, "color": colour}
    axes.plot(places, places, marker, transform=axes.transData + away, **style)


def heads_figure(distance: dict[int, Tensor], heads: HeadGroups, title: str) -> Figure:
    """Mean attention distance of each head, Eq. 7 of arXiv:2510.13554, with the two groups marked.

    Local heads have a solid frame and global ones a dashed one; where cells are too small for that, dots and rings.

    Args:
        distance: layer -> [H], in tokens.
    """
    layers = sorted(distance)
    values = np.stack([distance[layer].double().cpu().numpy() for layer in layers])
    rows, columns = values.shape
    large = columns <= 12  # cells of three digits and a frame; of a point too up to 10
    panel = max(1.0, 0.19 * rows, 2.6 * min(1.4, rows / columns)) if large else max(1.0, 0.11 * rows)  # inches
    figure = drawing.new_figure(0.75 + panel)
    height = figure.get_figheight()
    put_title(figure, title)
    axes = figure.add_axes((0.1, 0.34 / height, 0.76, panel / height))
    image = axes.imshow(values, cmap=MAP, aspect="auto")
    for axis, count, names in ((axes.xaxis, columns, range(columns)), (axes.yaxis, rows, layers)):
        shown = range(0, count, max(1, -(-count // 12)))
        axis.set_ticks(list(shown), [str(names[place]) for place in shown])
    axes.set_xlabel("head", size=SMALL)
    axes.set_ylabel("layer", size=SMALL)
    _tidy(axes)
    _colour_bar(figure, image, 0.34 / height, panel / height, unit="tokens")
    if large:
        for (row, column), value in np.ndenumerate(values):
            dark = image.norm(value) < 0.55
            write(
                axes,
                column,
                row,
                f"{value:{'.3g' if columns <= 10 else '.0f'}}",
                size=SMALL,
                ha="center",
                va="center",
                color="w" if dark else INK,
            )
    marked = (("local", heads.local, ORANGE), ("global", heads.global_, "#FFFFFF"))
    for place, (name, group, colour) in enumerate(marked):
        cells = [(head, layers.index(layer)) for layer, head in group]
        mark = (_frame if large else _dot)(axes, cells, colour, place == 0)
        at = (0.1 + 0.35 * place, 1 - 0.27 / height)
        figure.text(*at, f"{mark}: {name} heads", size=SMALL, va="center", color=INK if place else ORANGE)
    return figure


def _frame(axes: Axes, cells: Sequence[tuple[int, int]], colour: str, solid: bool) -> str:
    """Frames cells, (column, row), solid or dashed, with a dark rim for any colour beneath; says what it drew."""
    style = "-" if solid else (0, (2.5, 1.5))
    for column, row in cells:
        for width, line in ((2.2, INK), (1.3, colour)):
            axes.add_patch(
                Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor=line, linewidth=width, ls=style)
            )
    return "solid frame" if solid else "dashed frame"


def _dot(axes: Axes, cells: Sequence[tuple[int, int]], colour: str, filled: bool) -> str:
    """Marks the middle of cells, (column, row), by a dot or by a ring, dark beneath; says what it drew."""
    fill = colour if filled else "none"
    for width, line in ((1.9, INK), (0.9, colour)):
        axes.plot(
            *np.transpose(cells), "o", markersize=2.6, markerfacecolor=fill, markeredgecolor=line, markeredgewidth=width
        )
    return "● dot" if filled else "○ ring"


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
            size=SMALL,
            family=MONO,
            color=INK,
            parse_math=False,
        )


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=SMALL, length=2, width=0.4, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def _colour_bar(
    figure: Figure, image: AxesImage, bottom: float, height: float, unit: str = "", **settings: str
) -> None:
    axes = figure.add_axes((0.885, bottom, 0.025, height))
    axes.set_title(unit, size=SMALL, pad=3)
    bar = figure.colorbar(image, cax=axes, ticks=MaxNLocator(4, prune="upper"), **settings)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.4)
    bar.outline.set_linewidth(0.3)
