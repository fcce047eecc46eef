"""What is drawn is what is known; text of a model stays text; nothing touches the state of pyplot."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from rhythm.attention.definitions import SignalSettings
from rhythm.inspection import drawing
from rhythm.inspection.figures import curves_figure, heads_figure, maps_figure
from rhythm.inspection.responses import Response
from rhythm.inspection.tokens import STRIPS, Scale, tokens_figure, wrap
from rhythm.types import HeadGroups

HOSTILE = ["\n", "$\\frac{", "\u202e\u0301", "<script>", "日本", "%s {x}", "\x00", "$x$", "שלום"]


@pytest.fixture(autouse=True)
def no_warning_and_no_window():
    """A glyph that no font has is a warning, and so is a layout that does not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert pyplot.get_fignums() == []


def response(tokens, **values):
    values = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    marks = {name: values.pop(name).astype(bool) for name in ("preplan", "anchor") if name in values}
    return Response("target $9$", list(tokens), reward=1.0, values=values, **marks)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def polygons(figure, colour):
    """The boxes of the first axes that are filled with a colour, as (left, top)."""
    found = []
    for collection in figure.axes[0].collections:
        fills, paths = collection.get_facecolors(), collection.get_paths()
        for i, path in enumerate(paths):
            if len(fills) and np.allclose(fills[i % len(fills)], to_rgba(colour)):
                found.append(tuple(path.vertices.min(0)))
    return found


def test_lines_end_where_they_are_full_or_behind_a_line_feed():
    lines = wrap(["ab", " cd", "\n", "e", " fghijkl", " much too long"], 8)
    assert lines == [
        [(0, 0, "ab"), (1, 2, " cd"), (2, 5, "↵")],
        [(3, 0, "e")],
        [(4, 0, " fghijkl")],
        [(5, 0, " much t…")],
    ]


def test_marks_and_strips_stand_under_their_tokens():
    known = response(
        ["so", " a", " b"],
        fai=[0.1, 0.3, np.nan],
        credit=[1.0, 1.5, 1.0],
        preplan=[0, 1, 0],
        anchor=[0, 1, 1],
    )
    figure = tokens_figure(known, "fixed $1")
    assert {"so", " a", " b", "fixed $1", "reward 1, 3 tokens", "target $9$", "F", "γ"} <= set(texts(figure))
    pitch = drawing.MONO_WIDTH * 7
    (preplan,), anchors = polygons(figure, drawing.ORANGE), polygons(figure, drawing.BLUE)
    assert preplan[0] == pytest.approx(drawing.LEFT + 2 * pitch + 0.4)
    assert [x for x, _ in anchors] == pytest.approx([drawing.LEFT + 2 * pitch + 0.4, drawing.LEFT + 4 * pitch + 0.4])
    assert preplan[1] < anchors[0][1]  # above and below, whatever the colour
    low, high = drawing.MAP(0.0), drawing.MAP(1.0)
    assert len(polygons(figure, low)) == 3  # one FAI, two credits
    assert len(polygons(figure, high)) == 2
    crossed = polygons(figure, "#f0f0f0")
    assert len(crossed) == 2  # in the legend, and the FAI of the last token
    assert crossed[-1][0] == pytest.approx(drawing.LEFT + 4 * pitch)


def test_a_strip_is_not_ruled_by_its_largest_value():
    values = [*np.arange(199) / 198, 50.0]
    scale = Scale.of(np.array([*values, np.nan]))
    assert (scale.low, scale.capped) == (0.0, True)
    assert scale.high == pytest.approx(np.quantile(values, 0.99))
    assert scale.high < 1.01
    assert [scale.share(value) for value in (0.0, scale.high / 2, 50.0)] == pytest.approx([0, 0.5, 1])
    assert "≥ 0.995 nats" in texts(tokens_figure(response(["a"] * 200, entropy=values), "capped"))
    rare = Scale.of(np.array([1.0] * 199 + [1.5]))  # all but one are equal: the one still shows
    assert rare == (1.0, 1.5, False)


def test_a_response_without_signals_has_the_strips_that_exist():
    figure = tokens_figure(response(["so", " a"], entropy=[0.2, 0.1], credit=[1, 1]), "fixed 1")
    assert not {"W", "F", "preplan"} & set(texts(figure))
    assert {"H", "γ"} <= set(texts(figure))
    curves = curves_figure(response(["so", " a"], entropy=[0.2, 0.1], credit=[1, 1]), "fixed 1")
    assert [axes.get_ylabel() for axes in curves.axes] == ["entropy, nats"]


def test_whatever_a_model_writes_is_drawn_as_text():
    values = {name: np.arange(len(HOSTILE)) % 2 for name in ("waad", "fai", "entropy")}
    hostile = response(HOSTILE, **values)
    for figure in (tokens_figure(hostile, "$"), curves_figure(hostile, "$")):
        assert drawing.pixels(figure).std() > 0
        shown = texts(figure)
        assert "<script>" in shown
        assert not [text for text in shown if set(text) & set("\n日本\u202e\u0301\x00שלום")]
    assert drawing.printable("a\n日\u0301$") == "a↵▯▯$"


def test_only_the_beginning_of_a_long_response_is_drawn():
    figure = tokens_figure(response([f" t{i}" for i in range(300)], fai=np.arange(300)), "long")
    shown = texts(figure)
    assert " t199" in shown
    assert " t200" not in shown
    assert "reward 1, 300 tokens; its first 200 are shown" in shown


def test_peaks_are_marked_and_the_highest_name_their_token():
    curve = [0, 1, 0, 0, 5, 0, np.nan]
    figure = curves_figure(response("abcdefg", waad=curve, fai=curve), "curves", labels=1)
    for axes in figure.axes:
        line, peaks = axes.lines
        np.testing.assert_array_equal(line.get_ydata(), curve)
        assert list(peaks.get_xdata()) == [1, 4]
        assert [text.get_text() for text in axes.texts] == ["e"]


def test_a_curve_that_is_level_is_drawn():
    level = {"waad": np.full(3, 9.5, dtype=np.float32), "fai": np.full(3, np.nan, dtype=np.float32)}
    waad, fai = curves_figure(Response("", list("abc"), values=level), "curves").axes
    assert waad.get_ylim()[0] < 9.5 < waad.get_ylim()[1] < 12
    assert fai.get_ylim()[0] < fai.get_ylim()[1]


def test_maps_hide_what_no_row_may_see():
    near = torch.tensor([[1.0, 0.7], [0.4, 0.6]])
    known = response("abc", waad=[1, 2, 1], fai=[1, 2, np.nan])
    figure = maps_figure(near, near, known, "maps", SignalSettings())
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.mask.tolist() == [[False, True], [False, False]]
    assert drawn[1, 0] == pytest.approx(0.4)
    assert drawing.pixels(figure).shape[1] == 700


def test_peaks_are_those_of_the_whole_response_where_a_map_is_cropped():
    curve = [0, 1, 0, 5, 1, 0]
    figure = maps_figure(
        torch.eye(4), torch.eye(4), response("abcdef", waad=curve, fai=curve), "maps", SignalSettings()
    )
    rows, columns = (axes.lines[0] for axes in (figure.axes[0], figure.axes[2]))
    assert list(rows.get_ydata()) == list(columns.get_xdata()) == [1, 3]  # 3 would be an end, and no peak, of four
    figure = maps_figure(
        torch.eye(4), torch.eye(4), response("abcdef", waad=curve, fai=curve), "maps", SignalSettings(), 1.0
    )
    assert list(figure.axes[0].lines[0].get_ydata()) == [3]  # 1 stands out by half of the standard deviation of 1.8
    assert list(curves_figure(response("abcdef", waad=curve), "curves", 1.0).axes[0].lines[1].get_xdata()) == [3]


def test_the_maps_say_how_they_were_read():
    plain, other = SignalSettings(), SignalSettings(row="predictor", sink="drop")
    known = response("ab", waad=[1, 2], fai=[1, 2])
    for settings, said in (
        (plain, ["looking token"] * 2),
        (other, ["token, read from the row before it", "looking token"]),
    ):
        figure = maps_figure(torch.eye(2), torch.eye(2), known, "maps", settings)
        assert [axes.get_ylabel() for axes in figure.axes if axes.images and axes.texts] == said
        assert any("sink dropped" in text for text in texts(figure)) == (settings is other)
        hidden = [axes.images[0].get_array().mask[1].tolist() for axes in (figure.axes[0], figure.axes[2])]
        assert hidden == [[False, settings is other], [False, False]]  # no row before a token looks at it


def test_no_text_is_smaller_than_nine_pixels():
    """Where TensorBoard shows a figure, a hundred pixels an inch; numbers in cells and names of peaks too."""
    known = response([" 12"] * 60, **{name: np.arange(60) % 7 for name in STRIPS}, preplan=[1] * 60, anchor=[0] * 60)
    distance, heads = {0: torch.rand(8) * 90}, HeadGroups(local=[(0, 5)], global_=[(0, 2)])
    for figure in (
        tokens_figure(known, "a"),
        curves_figure(known, "a"),
        maps_figure(torch.eye(60), torch.eye(60), known, "a", SignalSettings()),
        heads_figure(distance, heads, "a"),
    ):
        figure.canvas.draw()
        shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert len(shown) > 10
        assert min(text.get_size() for text in shown) * 100 / 72 >= 9


def test_both_groups_are_outlined_where_they_are():
    distance = {2: torch.tensor([1.0, 20.0, 3.0]), 5: torch.tensor([30.0, 2.0, 9.0])}
    figure = heads_figure(distance, HeadGroups(local=[(2, 0)], global_=[(5, 0), (2, 1)]), "heads")
    axes = figure.axes[0]
    centres = {
        (round(patch.get_x() + 0.45), round(patch.get_y() + 0.45), patch.get_linestyle() == "-")
        for patch in axes.patches
    }
    assert centres == {(0, 0, True), (0, 1, False), (1, 0, False)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "5"]
    assert {"20", "30"} <= set(texts(figure))


def test_numbers_have_room_in_their_cells():
    """Sixteen heads a layer, as Qwen3-0.6B has, are too many for numbers."""
    distance = {layer: torch.full((12,), 88.8 + layer) for layer in range(28)}
    figure = heads_figure(distance, HeadGroups(local=[(0, 5)], global_=[(7, 2)]), "heads")
    axes = figure.axes[0]
    figure.canvas.draw()
    cell = axes.get_window_extent().width / 12
    assert max(text.get_window_extent().width for text in axes.texts) < 0.85 * cell  # within a frame too
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))  # along a layer
    assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[12:], strict=False))  # and across
    assert not heads_figure({0: torch.rand(16)}, HeadGroups(local=[(0, 5)], global_=[(0, 2)]), "heads").axes[0].texts


def test_many_heads_are_marked_by_dots_and_rings_with_a_tick_here_and_there():
    draw = torch.Generator().manual_seed(0)
    distance = {layer: torch.rand(32, generator=draw) for layer in range(36)}
    figure = heads_figure(distance, HeadGroups(local=[(0, 5), (35, 31)], global_=[(7, 2)]), "heads")
    axes = figure.axes[0]
    marks = {(line.get_markerfacecolor(), *zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert marks == {(drawing.ORANGE, (5, 0), (31, 35)), ("none", (2, 7))}
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["0", "3", "6"]
    assert len(axes.get_xticks()) <= 12
    assert {"● dot: local heads", "○ ring: global heads"} <= set(texts(figure))
    assert not axes.texts  # a thousand numbers would be none
    assert drawing.pixels(figure).shape[0] >= 700


def test_pictures_are_small_and_as_wide_as_tensorboard_shows_them_twice():
    known = response([f" word{i}" for i in range(200)], fai=np.random.default_rng(0).random(200))
    figure = tokens_figure(known, "a")
    assert drawing.pixels(figure).shape[1] == 700
    assert len(drawing.png(figure)) < 150_000
