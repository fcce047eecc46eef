"""What the figures share: paper, colours, fonts and text that comes from a model.

Figures are as wide as TensorBoard shows them, 350 pixels, at twice its density. Their paper is opaque, since an image
does not know whether the page around it is dark. Colours are those of Okabe and Ito and the map cividis, which readers
with any kind of colour vision can tell apart; whatever a colour says, a place or a shape says as well.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

WIDTH = 3.5  # inches
DPI = 200
MAP = colormaps["cividis"]
PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#767676"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")  # of lines
PALE_ORANGE, PALE_BLUE = "#FBE3CC", "#D3E9F7"
MONO = "DejaVu Sans Mono"  # comes with matplotlib
MONO_WIDTH = 0.602  # of the size of the font
LEFT = 11.0  # points, the margin where titles begin
SMALL = 6.5  # points, of a font: nine pixels where TensorBoard shows the figure; none is smaller
SHOWN = {"\n": "↵", "\r": "↵", "\t": "⇥", "\u2028": "↵", "\u2029": "↵"}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure of the object interface, which no other figure and no window knows of; height in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def plain_axes(figure: Figure) -> Axes:
    """Axes over the whole figure, in points from its upper left corner, without anything drawn."""
    axes = figure.add_axes((0, 0, 1, 1))
    width, height = figure.get_size_inches() * 72
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def pixels(figure: Figure) -> np.ndarray:
    """[height, width, 3] uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """A PNG file of at most 256 colours, a third of the size of one of all."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels(figure)).quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def write(axes: Axes, x: float, y: float, text: str, *, size: float = 7, **settings) -> None:
    """Text on a base line, as it is: `$` starts no formula."""
    axes.text(x, y, text, **{"size": size, "color": INK, "va": "baseline", "parse_math": False} | settings)


def printable(text: str) -> str:
    """Text of a model, character by character in a monospaced font: what has no glyph or no width is a box."""
    return "".join(SHOWN.get(mark, mark if _drawable(mark) else "▯") for mark in text)


def put_title(figure: Figure, title: str) -> None:
    """A line at the top of the figure, 20 points of it."""
    figure.text(
        LEFT / 72 / figure.get_figwidth(),
        1 - 9 / 72 / figure.get_figheight(),
        title,
        size=7.5,
        weight="bold",
        color=INK,
        va="baseline",
        parse_math=False,
    )


def clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


@cache
def _drawable(mark: str) -> bool:
    if unicodedata.category(mark)[0] in "CM" or unicodedata.bidirectional(mark) in ("R", "AL"):
        return False  # controls and surrogates; marks on the character before; scripts that would turn the line around
    return bool(_font().get_char_index(ord(mark)))


@cache
def _font() -> FT2Font:
    return FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"))
