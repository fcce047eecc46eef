"""HTML pages that are one file each: no request leaves them, and nothing that a model wrote runs or formats there."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rhythm.inspection.drawing import png
from rhythm.inspection.responses import SCALED_TO, SIGNALS, Response

PAGE_TOKENS = 2**16  # a page of so many tokens has about 2 MB
STEPS = 2**16 - 2  # values are packed as whole steps of their range; the number behind the last means undefined
TEMPLATE = resources.files("rhythm.inspection") / "template"


def document(title: str, body: str, *, script: str = "", data: Any = None) -> str:
    """A whole page around a body of HTML, in light and dark mode, whose policy allows its own script and style alone.

    Args:
        body: HTML; its texts are escaped already, and no element has a `style` attribute, which the policy forbids.
        script: JavaScript, run when the body is there.
        data: what JSON can hold, for the script to read from the element with the id `data`.
    """
    style = template("page.css")
    policy = {
        "default-src": "'none'",
        "style-src": _fingerprint(style),
        "script-src": _fingerprint(script) if script else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    packed = "" if data is None else f'<script type="application/json" id="data">{as_json(data)}</script>\n'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{"; ".join(f"{key} {value}" for key, value in policy.items())}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
{packed}{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def rollout_page(responses: Sequence[Response], title: str, note: str = "") -> str:
    """The responses of a rollout, with every signal of every token; as many of the first as a page can hold.

    Args:
        note: a paragraph of plain text under the title.
    """
    shown = fitting(responses)
    if len(shown) < len(responses):
        note = f"{note} The first {len(shown)} of {len(responses)} completions.".strip()
    body = f"<p>{html.escape(note)}</p>\n{viewer()}"
    return document(title, body, script=viewer_script(), data=viewer_data(shown))


def fitting(responses: Sequence[Response], tokens: int = PAGE_TOKENS) -> list[Response]:
    """The first responses, at least one, that have so many tokens together."""
    total = np.cumsum([len(response.tokens) for response in responses])
    return list(responses[: max(1, int((total <= tokens).sum()))])


def picture(figure: Figure, alt: str) -> str:
    """A figure as an element of a page, at half of its pixels."""
    width, height = figure.get_size_inches() * figure.dpi / 2
    source = b64encode(png(figure)).decode()
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return f'<img src="data:image/png;base64,{source}" alt="{html.escape(alt)}" {size}>'


def viewer() -> str:
    """The elements that the viewer's script fills from `viewer_data`."""
    return template("viewer.html")


def viewer_script() -> str:
    return template("viewer.js")


def viewer_data(responses: Sequence[Response]) -> dict[str, Any]:
    """What the viewer shows: texts once, and numbers in base64, two bytes a value.

    A value is low + k·(high − low)/65534 with the lowest and highest of its signal in all responses; k = 65535 is NaN.
    """
    numbers: dict[str, int] = {}  # text -> its place in the vocabulary
    tokens = [[numbers.setdefault(text, len(numbers)) for text in response.tokens] for response in responses]
    names = [name for name in SIGNALS if any(name in response.values for response in responses)]
    ranges = {name: _range([r.values[name] for r in responses if name in r.values]) for name in names}
    return {
        "steps": STEPS,
        "signals": [_signal(name, responses, ranges[name]) for name in names],
        "vocabulary": list(numbers),
        "responses": [
            {
                "problem": response.problem,
                "group": response.group + 1,
                "reward": _number(response.reward),
                "advantage": _number(response.advantage),
                "length": len(response.tokens),
                "truncated": response.truncated,
                "means": {name: _number(_mean(values)) for name, values in response.values.items()},
                "tokens": _packed(np.asarray(ids, dtype="<u4")),
                "marks": _packed(_marks(response)),
                "values": {name: _packed(quantised(v, *ranges[name])) for name, v in response.values.items()},
            }
            for response, ids in zip(responses, tokens, strict=True)
        ],
    }


def quantised(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Steps from low to high as little-endian uint16, `STEPS + 1` where NaN."""
    share = (np.asarray(values, dtype=float) - low) / (high - low) if high > low else np.asarray(values, float) * 0
    return np.where(np.isnan(share), STEPS + 1, np.rint(np.nan_to_num(share) * STEPS)).astype("<u2")


def as_json(data: Any) -> str:
    """JSON that cannot end the element that it stands in, in ASCII."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def template(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _fingerprint(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _signal(name: str, responses: Sequence[Response], bounds: tuple[float, float]) -> dict[str, Any]:
    values = np.concatenate([response.values[name] for response in responses if name in response.values])
    defined = values[~np.isnan(values)]
    label, unit, meaning = SIGNALS[name]
    signed = name == "advantage"
    top = float(np.quantile(np.abs(defined) if signed else defined, SCALED_TO)) if len(defined) else 0.0
    scale = [-top, top] if signed else [bounds[0], top if top > bounds[0] else bounds[1]]
    low, high = bounds
    described = {"name": name, "label": label, "unit": unit, "meaning": meaning, "signed": signed}
    return described | {"low": low, "high": high, "scale": scale}


def _range(of_responses: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate(of_responses)
    defined = values[~np.isnan(values)]
    return (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 0.0)


def _marks(response: Response) -> np.ndarray:
    """1 on preplan tokens, 2 on anchors, 3 on both."""
    marks = np.zeros(len(response.tokens), dtype=np.uint8)
    for bit, tokens in ((1, response.preplan), (2, response.anchor)):
        marks |= 0 if tokens is None else np.uint8(bit) * np.asarray(tokens, dtype=np.uint8)
    return marks


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _packed(values: np.ndarray) -> str:
    return b64encode(values.tobytes()).decode()
