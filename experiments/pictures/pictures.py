"""The README's pictures of a response, a rollout's page and a report: `python experiments/analysis/pictures.py`.

Of the embedded policy; the two pages are shown by a headless Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from rhythm.analysis.report import report, shown_responses
from rhythm.analysis.study import CHOSEN, AnalysisSettings, analyze
from rhythm.attention.definitions import SignalSettings
from rhythm.cli import CONFIGS
from rhythm.inspection.drawing import png
from rhythm.inspection.figures import curves_figure, maps_figure, tokens_figure
from rhythm.inspection.maps import mean_maps
from rhythm.inspection.page import rollout_page
from rhythm.policy import Policy

HERE = Path(__file__).parent
SHOTS = {"page": (1280, 620), "report": (1280, 900)}  # pixels


def shoot(name: str, page: str) -> None:
    """A page as a picture of at most 256 colours."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: no chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file, shot = Path(folder) / f"{name}.html", Path(folder) / f"{name}.png"
        file.write_text(page, encoding="utf-8")
        size = "{},{}".format(*SHOTS[name])
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
        subprocess.run(
            [browser, *flags, f"--screenshot={shot}", f"--window-size={size}", file.as_uri()],
            check=True,
            capture_output=True,
        )
        Image.open(shot).convert("RGB").quantize(256).save(HERE / f"{name}.png", optimize=True)


def main() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        task = instantiate(compose("analyze").task, _convert_="all")
    policy = Policy("embedded:tiny_countdown")
    settings = AnalysisSettings(  # as in training
        signals=SignalSettings(horizon=(10, 100)), temperature=1.0, perturbation=None
    )
    found = analyze(policy, task, settings)
    responses = shown_responses(policy, found, settings)
    row = next(i for i, response in enumerate(responses) if response.reward == 1 and 90 < len(response.tokens) < 140)
    response, rollout = responses[row], found.rollout
    ids = rollout.input_ids[row][rollout.attention_mask[row]]
    heads = found.reading.selections[CHOSEN].heads
    near, far = mean_maps(policy.model, ids, int(rollout.prompt_lengths[row]), heads)
    figures = {
        "tokens": tokens_figure(response, "a response"),
        "curves": curves_figure(response, "WAAD, FAI and entropy"),
        "maps": maps_figure(near, far, response, "mean maps of both head groups"),
    }
    for name, figure in figures.items():
        (HERE / f"{name}.png").write_bytes(png(figure))
    shoot("page", rollout_page(responses, "embedded:tiny_countdown", f"{len(responses)} completions."))
    settings = AnalysisSettings()
    found = analyze(policy, task, settings)
    shoot("report", report(policy, found, {"base": found.tables}, {}, settings, title="embedded:tiny_countdown, base"))


if __name__ == "__main__":
    main()
