"""The tables and figures of a study from its results.csv: `python experiments/report.py experiments/credit_comparison`.

Beside its arms a study.yaml names the `baseline` that every arm is compared with and, where it has some, the `primary`
contrasts, pairs of arms that were fixed before the first run. Prints Markdown; draws curves.png and forest.png there.
Intervals are 95%, Student's over seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml

from rhythm.evaluation.comparison import Comparison, compare, corrected, interquartile_mean, smallest_difference
from rhythm.evaluation.metrics import student_interval
from rhythm.inspection.drawing import BLUE, ORANGE

INK = "#444444"


@dataclass(frozen=True)
class Results:
    """What a study has measured so far."""

    folder: Path
    arms: list[str]  # those with at least two seeds, in the order of study.yaml
    baseline: str
    primary: list[tuple[str, str]]  # contrasts whose two arms have at least two seeds in common
    rows: pd.DataFrame

    @classmethod
    def load(cls, folder: Path, only: list[str] | None = None) -> Results:
        """ValueError where there is nothing to compare; `only` some arms, where others have begun and not ended."""
        described = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        rows = pd.read_csv(folder / "results.csv", dtype={"credit": str})  # an arm may be called 1e-3
        if list(rows.columns) == [] or rows.empty:
            raise ValueError(f"{folder / 'results.csv'} has no rows yet: python experiments/study.py {folder}")
        if "baseline" not in described:
            raise ValueError(f"{folder / 'study.yaml'} names no baseline: add the arm that others are compared with")
        seeds = rows.groupby("credit").seed.nunique()
        if unknown := set(only or []) - set(described["arms"]):
            raise ValueError(f"--arms {' '.join(sorted(unknown))}: {folder / 'study.yaml'} names no such arm")
        arms = [arm for arm in only or described["arms"] if seeds.get(arm, 0) >= 2]
        primary = [(ours, theirs) for ours, theirs in described.get("primary", []) if {ours, theirs} <= set(arms)]
        return cls(folder, arms, described["baseline"], primary, rows)

    def final(self, arm: str, column: str = "pass@1") -> pd.Series:
        """The value after the last iteration, by seed."""
        mine = self.rows[self.rows.credit == arm]
        return mine.groupby("seed").last()[column]

    def compare(self, ours: str, theirs: str) -> Comparison:
        """Paired by seed, in percentage points of pass@1."""
        pairs = pd.concat([self.final(ours), self.final(theirs)], axis=1, join="inner") * 100
        return compare(pairs.iloc[:, 0], pairs.iloc[:, 1], student=True)

    def secondary(self) -> dict[str, Comparison]:
        """Every arm against the baseline, but for contrasts that are primary, with p by Holm over all of these."""
        others = [arm for arm in self.arms if arm != self.baseline and (arm, self.baseline) not in self.primary]
        return dict(zip(others, corrected([self.compare(arm, self.baseline) for arm in others]), strict=True))


def arms_table(results: Results) -> str:
    """Markdown: a line an arm. Percent are of pass@1 after the last iteration, over all seeds."""
    secondary = results.secondary()
    lines = [
        f"| arm | seeds | pass@1, % | middle half | against {results.baseline}, points | p | P(better) "
        "| gradient norm | entropy-weighted credit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in results.arms:
        scores = results.final(arm) * 100
        low, high = student_interval(scores)
        cells = [f"`{arm}`", len(scores), f"{scores.mean():.1f} [{low:.1f}, {high:.1f}]"]
        cells += [f"{interquartile_mean(scores):.1f}"]
        if arm == results.baseline:
            cells += ["", "", ""]
        else:
            seen = secondary.get(arm) or results.compare(arm, results.baseline)
            p = f"{seen.p:.3f}" if arm in secondary else "primary"
            cells += [f"{seen.difference:+.1f} [{seen.low:+.1f}, {seen.high:+.1f}]", p, f"{seen.improvement:.2f}"]
        means = (trained_mean(results, arm, name) for name in ("grad_norm", "credit_entropy_weighted"))
        cells += [f"{mean:.3f}" for mean in means]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def trained_mean(results: Results, arm: str, column: str) -> float:
    """A metric of training, over all iterations of all seeds; rows are evenly spaced."""
    return results.rows[results.rows.credit == arm][column].mean()  # empty before the first iteration: left out


def contrasts(results: Results) -> str:
    """Markdown: the primary contrasts, one by one, and what the study was able to see."""
    lines = []
    for ours, theirs in results.primary:
        seen = results.compare(ours, theirs)
        verdict = "distinguishable" if seen.distinguishable else "not distinguishable"
        lines.append(
            f"- `{ours}` against `{theirs}`: {seen.difference:+.1f} points [{seen.low:+.1f}, {seen.high:+.1f}], "
            f"p = {seen.p:.3f}, {seen.pairs} seeds: **{verdict}**"
        )
    if results.baseline in results.arms:
        scores = results.final(results.baseline) * 100
        spread = scores.std(ddof=1)
        seen = smallest_difference(2**0.5 * spread, len(scores))
        lines.append(
            f"- Power: {len(scores)} seeds of `{results.baseline}` spread by {spread:.2f} points (standard deviation); "
            f"with as many pairs that do not help each other, {seen:.1f} points are found four times out of five."
        )
    return "\n".join(lines)


def draw_curves(results: Results, path: Path) -> None:
    """A panel an arm: mean over seeds and its 95% interval by iteration, the baseline's mean beneath."""
    columns = min(5, len(results.arms))
    size = (2.2 * columns, 1.9 * -(-len(results.arms) // columns))
    figure, axes = plt.subplots(
        -(-len(results.arms) // columns), columns, figsize=size, sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(results.arms) :]:
        axis.set_visible(False)
    for axis, arm in zip(axes.flat, results.arms, strict=False):
        for name, colour in ((results.baseline, "#AAAAAA"), (arm, BLUE)):
            if name not in results.arms:
                continue
            curves = results.rows[results.rows.credit == name].groupby("iteration")["pass@1"]
            axis.plot(curves.mean().index, curves.mean() * 100, color=colour, linewidth=1.5)
        low, high = np.array([student_interval(scores) for _, scores in curves]).T * 100
        axis.fill_between(curves.mean().index, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axis.set_title(arm, fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("iteration", fontsize=8)
    figure.supylabel(f"pass@1, %; grey: {results.baseline}", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_forest(results: Results, path: Path) -> None:
    """Each arm's difference to the baseline and every primary contrast, with 95% intervals."""
    rows = [(f"{ours} − {theirs}", results.compare(ours, theirs), ORANGE) for ours, theirs in results.primary]
    rows += [(f"{arm} − {results.baseline}", seen, BLUE) for arm, seen in results.secondary().items()]
    figure, axis = plt.subplots(figsize=(6.5, 0.32 * len(rows) + 0.9), layout="constrained")
    for place, (_, seen, colour) in enumerate(rows):
        axis.plot([seen.low, seen.high], [place, place], color=colour, linewidth=1.5)
        axis.plot(seen.difference, place, "o", color=colour, markersize=4)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("points of held-out pass@1, 95% over seeds; orange: primary", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study.yaml with its results.csv")
    parser.add_argument("--arms", nargs="+", help="tell and draw these alone")
    args = parser.parse_args()
    folder = args.study
    try:
        results = Results.load(folder, args.arms)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(arms_table(results), contrasts(results), sep="\n\n")
    draw_curves(results, folder / "curves.png")
    draw_forest(results, folder / "forest.png")


if __name__ == "__main__":
    main()
