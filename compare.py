"""Learning curves of runs overlaid, and their arms compared in pairs: `python compare.py logs/anchor/* ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rhythm.evaluation.comparison import corrected
from rhythm.evaluation.curves import Run, against, arms, draw, last_common, table
from rhythm.evaluation.metrics import student_interval

NOTHING = "no two seeds in common, and no two single runs that ended there on the same problems"


def main() -> None:
    """Writes compare.csv and compare.png, and prints each arm's last common value and every arm against the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run folders; an arm is those that differ in their seed alone"
    )
    parser.add_argument("--metric", default="eval/pass@1", help="a TensorBoard tag")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the two files")
    given = parser.parse_args()
    try:
        compare_runs(given.runs, given.metric, given.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def compare_runs(folders: Sequence[Path], metric: str, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: there is a file of that name; name a folder")
    runs = [Run.load(folder, metric) for folder in folders]
    found, iteration = arms(runs), last_common(runs)
    rows = table(found)
    output.mkdir(parents=True, exist_ok=True)
    rows.to_csv(output / "compare.csv", index=False, float_format="%.6g")
    draw(rows, metric).savefig(output / "compare.png", dpi=150)
    behind = [f"{run.folder} ends at {run.end}" for run in runs if run.end < max(each.end for each in runs)]
    print(f"after iteration {iteration}, the last that all of them have{': ' if behind else ''}{', '.join(behind)}")
    for name, group in found.items():
        print(f"{name}: {level([run.curve[iteration] for run in group])}")
    first, *others = found
    seen = {name: against(found[name], found[first], iteration) for name in others}
    paired = [name for name in others if seen[name] is not None]
    seen |= dict(zip(paired, corrected([seen[name] for name in paired]), strict=True))
    for name in others:
        print(f"{name} − {first}: {seen[name] or NOTHING}")
    if len(paired) > 1:
        print(f"p is corrected for {len(paired)} comparisons by Holm's procedure; intervals are of each alone")
    print(f"written to {output / 'compare.csv'} and {output / 'compare.png'}")


def level(values: Sequence[float]) -> str:
    """The mean over seeds, with its interval where there are two or more."""
    told = f"{sum(values) / len(values):.4f}"
    if len(values) == 1:
        return f"{told}, 1 seed"
    return "{} [{:.4f}, {:.4f}], {} seeds".format(told, *student_interval(values), len(values))


if __name__ == "__main__":
    main()
