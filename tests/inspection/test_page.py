"""A page is one file, small, and made of text."""

import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256

import numpy as np
import pytest

from rhythm.inspection.drawing import new_figure
from rhythm.inspection.page import document, fitting, picture, quantised, rollout_page, template, viewer_data
from rhythm.inspection.responses import SIGNALS, Response


def response(tokens, **values):
    values = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    return Response("", tokens, reward=0.5, values=values, anchor=np.arange(len(tokens)) == 1)


def test_values_are_steps_of_their_range():
    steps = quantised(np.array([-1.0, 0.0, 3.0, np.nan]), -1.0, 3.0)
    assert steps.dtype == "<u2"
    assert steps.tolist() == [0, 16384, 65534, 65535]  # a quarter of 65534 is 16383.5, rounded to even
    assert quantised(np.array([2.0, np.nan]), 2.0, 2.0).tolist() == [0, 65535]


def test_what_the_viewer_reads_is_what_was_known():
    rows = [response(["so", " a"], fai=[0.0, np.nan], credit=[1, 3]), response([" a"], fai=[0.5], credit=[2])]
    data = json.loads(json.dumps(viewer_data(rows), allow_nan=False))
    first, second = data["responses"]
    fai, credit = data["signals"]
    assert (fai["label"], fai["low"], fai["high"], credit["low"], credit["high"]) == ("FAI", 0, 0.5, 1, 3)
    assert [data["vocabulary"][i] for i in np.frombuffer(b64decode(first["tokens"]), "<u4")] == ["so", " a"]
    assert np.frombuffer(b64decode(first["values"]["fai"]), "<u2").tolist() == [0, 65535]
    assert np.frombuffer(b64decode(second["values"]["credit"]), "<u2").tolist() == [32767]
    assert list(b64decode(first["marks"])) == [0, 2]
    assert first["means"] == {"fai": 0.0, "credit": 2.0}
    assert first["advantage"] is None  # there was no group


def test_sixty_four_responses_of_a_thousand_tokens_have_less_than_three_megabytes():
    draw = np.random.default_rng(0)
    rows = [
        Response(
            "numbers",
            [f" {draw.integers(10**7):07}" for _ in range(1024)],  # hardly a word comes twice
            values={name: draw.standard_normal(1024) for name in SIGNALS},
        )
        for _ in range(66)
    ]
    page = rollout_page(rows, "Iteration 100")
    assert len(page.encode()) < 3e6
    assert "The first 64 of 66 completions." in page


def test_a_response_alone_is_shown_however_long_it_is():
    assert len(fitting([response(["a"] * 9), response(["a"] * 9)], tokens=5)) == 1
    assert len(fitting([response(["a"] * 2), response(["a"] * 3), response(["a"])], tokens=5)) == 2


@pytest.mark.parametrize("hostile", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028\ud800&amp;"])
def test_no_text_can_leave_the_element_that_it_stands_in(hostile):
    page = rollout_page([response([hostile, hostile])], hostile.replace("\ud800", ""), hostile.replace("\ud800", ""))
    page.encode()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["vocabulary"] == [hostile]
    assert page.count("<script") == page.count("</script>") == 2


def test_a_document_names_all_that_it_may_run_and_reaches_for_nothing():
    page = rollout_page([response(["a", "b"], credit=[1, 2])], "Iteration 1")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|https?://|style="', page)
    assert "script-src 'none'" in document("Report", "<p>no script</p>")


def luminance(colour):
    """Relative luminance of #rrggbb, as the Web Content Accessibility Guidelines define it."""
    shares = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_text_is_legible_on_every_colour_in_light_and_in_dark_mode():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    light, dark = re.findall(r":root \{(.*?)\}", template("page.css"), re.DOTALL)
    for mode in (light, dark):
        of = dict(re.findall(r"--(\w+): (#\w{6})", mode))
        for beneath in ("page", "raised", "high", "negative", "hatch"):  # mixtures with the page lie between
            assert contrast(of["ink"], of[beneath]) >= 4.5, beneath
        assert min(contrast(of["faint"], of[beneath]) for beneath in ("page", "raised")) >= 4.5
        assert min(contrast(of[mark], of["page"]) for mark in ("preplan", "anchor", "focus")) >= 3  # no text


def test_a_figure_stands_in_the_page():
    shown = picture(new_figure(2.0), 'a "title" <b>')
    assert 'alt="a &quot;title&quot; &lt;b&gt;" width="350" height="200"' in shown
    assert b64decode(re.search(r"base64,([^\"]+)", shown)[1]).startswith(b"\x89PNG")
