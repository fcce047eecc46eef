"""Learning curves of runs overlaid, and their arms compared in pairs: `python compare.py logs/anchor/* ...`.

Or what eval.py wrote, problem by problem: `python compare.py base.json adapter.json`. Intervals are 95%; those of
P(better) and of the interquartile mean, by bootstrap over runs, are told from six runs an arm: of six, 95% are about
90%, of ten 93%.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rhythm.evaluation.comparison import (
    Comparison,
    brackets,
    compare,
    corrected,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
)
from rhythm.evaluation.curves import (
    Run,
    arms,
    asked_apart,
    draw,
    last_common,
    over_problems,
    over_seeds,
    read_solved,
    table,
)
from rhythm.evaluation.metrics import student_interval

NOTHING = "no two seeds in common, and no runs that ended there on the same problems"


def main() -> None:
    """Writes compare.csv and compare.png, and prints each arm's last common value and every arm against the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="run folders, of which those that differ in their seed alone are an arm; or files of eval.py",
    )
    parser.add_argument("--metric", default="eval/pass@1", help="a TensorBoard tag")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the two files")
    given = parser.parse_args()
    try:
        files = [path for path in given.runs if path.is_file()]
        if files and len(files) < len(given.runs):
            raise ValueError(f"{files[0]} is a file and others are not: compare run folders, or files of eval.py")
        if files:
            compare_evaluations(files)
        else:
            compare_runs(given.runs, given.metric, given.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def compare_evaluations(files: Sequence[Path]) -> None:
    """Every file against the first, in pairs of problems."""
    (first, base), *others = [(path, read_solved(path)) for path in files]
    if not others:
        raise ValueError(f"{first} is one evaluation: name another to compare it with")
    for path, (asked, _) in others:
        if differing := [name for name, value in base[0].items() if asked[name] != value]:
            raise ValueError(f"{path} and {first} differ in {', '.join(differing)}: evaluate both alike")
    print(f"{first}: {sum(base[1]) / len(base[1]):.4f}")
    tell({f"{path} − {first}": compare(solved, base[1], unit="problems") for path, (_, solved) in others})


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
    seeds, problems = (
        {name: over(found[name], found[first], iteration) for name in others} for over in (over_seeds, over_problems)
    )
    tell({f"{name} − {first}": each for name, each in seeds.items() if each})
    for name in (name for name in others if seeds[name]):
        both = [[run.curve[iteration] for run in found[arm]] for arm in (name, first)]
        chance = probability_of_improvement(*map(np.array, both))
        bounds = brackets(improvement_interval(*both), ".2f", unknown="")
        print(f"P({name} > {first}): {chance:.2f} {bounds}".rstrip())
    if any(problems.values()):
        print("over problems, which tells of these runs, not of other runs of the same arms:")
        tell({f"{name} − {first}": each for name, each in problems.items() if each})
    for name in others:
        if apart := asked_apart(found[name], found[first]):
            print(f"{name} and {first} may have been asked otherwise: they differ in {', '.join(apart)}")
        if not seeds[name] and not problems[name]:
            print(f"{name} − {first}: {NOTHING}")
    print(f"written to {output / 'compare.csv'} and {output / 'compare.png'}")


def tell(family: dict[str, Comparison]) -> None:
    """A line each, with p by Holm over all of them."""
    for name, each in zip(family, corrected(list(family.values())), strict=True):
        print(f"{name}: {each}")
    if len(family) > 1:
        print(f"p is corrected for {len(family)} comparisons by Holm's procedure; intervals are of each alone")


def level(values: Sequence[float]) -> str:
    """The mean over seeds, with its interval where there are two or more, and their interquartile mean of four."""
    told = f"{sum(values) / len(values):.4f}"
    if len(values) == 1:
        return f"{told}, 1 seed"
    told = f"{told} {brackets(student_interval(values), '.4f')}, {len(values)} seeds"
    if len(values) < 4:
        return told
    bounds = brackets(interquartile_interval(values), ".4f", unknown="")
    return f"{told}, interquartile mean {interquartile_mean(values):.4f} {bounds}".rstrip()


if __name__ == "__main__":
    main()
