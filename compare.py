"""Learning curves of runs overlaid, and their last values compared in pairs: `python compare.py logs/anchor/* ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rhythm.evaluation.curves import Run, against, arms, draw, table


def main() -> None:
    """Writes compare.csv and compare.png, and prints each arm's last value and every arm against the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run folders; an arm is those that differ in their seed alone"
    )
    parser.add_argument("--metric", default="eval/pass@1", help="a TensorBoard tag")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the two files")
    given = parser.parse_args()
    try:
        found = arms([Run.load(folder, given.metric) for folder in given.runs])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    given.output.mkdir(parents=True, exist_ok=True)
    rows = table(found)
    rows.to_csv(given.output / "compare.csv", index=False)
    draw(rows, given.metric).savefig(given.output / "compare.png", dpi=150)
    first = next(iter(found))
    for name, group in found.items():
        last = [run.curve[max(run.curve)] for run in group]
        print(f"{name}: {sum(last) / len(last):.4f}, {len(last)} seed{'s' if len(last) > 1 else ''}")
    for name in list(found)[1:]:
        seen = against(found[name], found[first])
        print(f"{name} − {first}: {seen or 'no two seeds in common, and no two single runs on the same problems'}")
    print(f"written to {given.output / 'compare.csv'} and {given.output / 'compare.png'}")


if __name__ == "__main__":
    main()
