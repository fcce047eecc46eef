"""The README's pictures, of a run and an analysis that are there: `python experiments/pictures/pictures.py`.

Figures are taken as TensorBoard shows them, from the last look of the run; its page and the report are shown by a
headless Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
FIGURES = {"tokens": "fresh_2/tokens", "signals": "fresh_2/curves", "maps": "fresh_2/maps", "heads": "heads/distance"}
PAGE, REPORT = (1280, 640), (1280, 898)  # pixels


def save(picture: Image.Image, name: str) -> None:
    """With at most 256 colours."""
    path = HERE / f"{name}.png"
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def shoot(page: Path, size: tuple[int, int]) -> Image.Image:
    """The upper part of a page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: no chromium here: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags += [f"--screenshot={shot}", "--window-size={},{}".format(*size)]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        return Image.open(BytesIO(shot.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("logs/pictures/coupled-0"), help="folder of a run with signals"
    )
    parser.add_argument("--analysis", type=Path, default=Path("logs/analysis"), help="output of analyze.py")
    given = parser.parse_args()
    page, report = max((given.run / "inspect").glob("*.html"), default=None), given.analysis / "report.html"
    if page is None or not report.is_file():
        sys.exit(
            f"error: no page in {given.run / 'inspect'}, or no {report}: README.md has the commands that make them"
        )
    looks = EventAccumulator(str(given.run), size_guidance={"images": 0}).Reload()
    for name, tag in FIGURES.items():
        save(Image.open(BytesIO(looks.Images(tag)[-1].encoded_image_string)), name)
    save(shoot(page, PAGE), "page")
    save(shoot(report, REPORT), "report")


if __name__ == "__main__":
    main()
