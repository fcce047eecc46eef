"""The tables and figures of a study from its results.csv: `python experiments/report.py experiments/credit_comparison`.

Beside its arms a study.yaml names the `baseline` that every arm is compared with and, where it has some, contrasts of
two arms that were fixed before the first run, `primary`, each tested alone, and `secondary`. These and all arms against
the baseline are one family, whose p-values are corrected by Holm's procedure. Prints Markdown; draws curves.png and
forest.png there, unless asked for another iteration, outcome or seeds than the study is about. Intervals are 95% and of
each number alone: Student's over seeds, of P(better) and of the interquartile mean by bootstrap, told from six seeds an
arm: of six, 95% are about 90%, of ten 93%. What "would be found" is the difference that has 80% power, in the family
by Bonferroni.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from rhythm.evaluation.comparison import (
    Comparison,
    brackets,
    compare,
    corrected,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
    smallest_difference,
)
from rhythm.evaluation.metrics import student_interval
from rhythm.evaluation.studies import Contrast, Study
from rhythm.inspection.drawing import BLUE, ORANGE

INK = "#444444"
NEEDED = ("pass@1", "well_formed", "grad_norm", "credit_entropy_weighted")  # columns


@dataclass(frozen=True)
class Results:
    """What a study has measured so far."""

    folder: Path
    arms: list[str]  # those with two seeds or more that the baseline has too, in the order of study.yaml
    shown: list[str]  # those of them that tables and figures tell of
    waiting: list[str]  # arms and contrasts of study.yaml that have too few seeds yet
    baseline: str
    primary: list[Contrast]  # those whose arms have two seeds or more in common too
    secondary: list[Contrast]
    rows: pd.DataFrame
    outcome: str = "pass@1"  # the column that arms are compared by, a share

    @classmethod
    def load(
        cls, folder: Path, only: list[str] | None = None, *, at=None, seeds: list[int] | None = None, outcome="pass@1"
    ) -> Results:
        """What was measured after iteration `at`, None for the last, of some `seeds`; `only` some arms are shown.

        Raises:
            ValueError: there is nothing to compare.
        """
        study = Study.load(folder)
        if study.baseline is None:
            raise ValueError(f"{folder / 'study.yaml'} names no baseline: add the arm that others are compared with")
        study.check("--arms", only or [])
        rows = _rows(study, at, seeds, outcome)
        of_arm = {arm: set(mine.seed) for arm, mine in rows.groupby("credit")}
        common = of_arm.get(study.baseline, set())
        arms = [arm for arm in study.arms if len(of_arm.get(arm, set()) & common) >= 2]
        if len(arms) < 2:
            raise ValueError(f"{folder / 'results.csv'}: no arm has two seeds in common with {study.baseline} yet")
        if early := [arm for arm in only or [] if arm not in arms]:
            raise ValueError(f"--arms {' '.join(early)}: fewer than two seeds in common with {study.baseline} yet")
        primary, secondary = (
            [pair for pair in of if set(pair) <= set(arms) and len(set.intersection(*map(of_arm.get, pair))) >= 2]
            for of in (study.primary, study.secondary)
        )
        waiting = [f"`{arm}`" for arm in study.arms if arm not in arms]
        waiting += [
            f"`{ours}` against `{theirs}`"
            for ours, theirs in study.primary + study.secondary
            if {ours, theirs} <= set(arms) and (ours, theirs) not in primary + secondary
        ]
        return cls(folder, arms, only or arms, waiting, study.baseline, primary, secondary, rows, outcome)

    def of(self, arm: str) -> pd.DataFrame:
        return self.rows[self.rows.credit == arm]

    def final(self, arm: str, column: str | None = None) -> pd.Series:
        """The outcome, or another column, after the last iteration, by seed."""
        return self.of(arm).groupby("seed").last()[column or self.outcome]

    def trained_mean(self, arm: str, column: str) -> float:
        """A metric of training over all iterations of all seeds; a row has the mean since the row before."""
        mine = self.of(arm)
        weights = mine.groupby("seed").iteration.diff()
        return float((mine[column] * weights).sum() / weights.sum())

    def compare(self, ours: str, theirs: str) -> Comparison:
        """Paired by seed, in percentage points of the outcome."""
        pairs = pd.concat([self.final(ours), self.final(theirs)], axis=1, join="inner") * 100
        return compare(pairs.iloc[:, 0], pairs.iloc[:, 1], student=True)

    @cached_property
    def family(self) -> dict[Contrast, Comparison]:
        """Every contrast that is not primary, with p by Holm over all of them, shown or not."""
        known = set(map(frozenset, self.primary))
        pairs = []
        for pair in [*((arm, self.baseline) for arm in self.arms if arm != self.baseline), *self.secondary]:
            if frozenset(pair) not in known:
                known.add(frozenset(pair))
                pairs.append(pair)
        return dict(zip(pairs, corrected([self.compare(*pair) for pair in pairs]), strict=True))

    def to_show(self, contrasts: Iterable[Contrast]) -> list[Contrast]:
        return [pair for pair in contrasts if set(pair) <= set(self.shown)]

    @property
    def start(self) -> float:
        """The outcome in percent before training, where all runs are one policy."""
        return float(self.rows.groupby(["credit", "seed"]).first()[self.outcome].mean()) * 100

    def smallest(self, seen: Comparison, pair: Contrast) -> str:
        """The difference that a contrast finds with 80% power, in points; of the family by Bonferroni."""
        level = 0.05 / (len(self.family) if pair in self.family else 1)
        found = smallest_difference(seen.spread, seen.pairs, level=level)
        return "unknown" if np.isnan(found) else f"{found:.1f}"


def _rows(study: Study, at: int | None, seeds: list[int] | None, outcome: str) -> pd.DataFrame:
    """results.csv up to an iteration. ValueError where it has no such rows, or runs of different lengths."""
    path, rows = study.results, pd.DataFrame(study.rows())
    if rows.empty:
        raise ValueError(f"{path} has no rows yet: python experiments/study.py {study.folder}")
    if missing := set(NEEDED) - set(rows.columns):
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: study.py writes them")
    for column in rows.columns.drop("credit"):  # an arm may be called 1e-3
        try:
            rows[column] = pd.to_numeric(rows[column].replace("", None))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not every {column} is a number") from error
    shares = [column for column in rows if column == "well_formed" or column.startswith("pass@")]
    if outcome not in shares:
        raise ValueError(f"--outcome {outcome}: use one of {', '.join(shares)}, columns of {path}")
    if seeds is not None:
        if unknown := sorted(set(seeds) - set(rows.seed)):
            raise ValueError(f"--seeds {' '.join(map(str, unknown))}: {path} has no such seed")
        rows = rows[rows.seed.isin(seeds)]
    if len(empty := rows[rows[outcome].isna()]):
        arm, seed, iteration = empty.iloc[0][["credit", "seed", "iteration"]]
        raise ValueError(f"{path}: {arm}, seed {seed} has no {outcome} at iteration {iteration}")
    if at is not None:
        later = sorted(set(rows.iteration))[1:]  # before the first nothing was trained
        if at not in later:
            raise ValueError(f"--at {at}: use one of {', '.join(map(str, later))}, iterations of {path}")
        rows = rows[rows.iteration <= at]
    ends = rows.groupby(["credit", "seed"]).iteration.max()
    if ends.nunique() > 1:
        (arm, seed), end = ends.idxmin(), ends.min()
        raise ValueError(f"{path}: {arm}, seed {seed} ends at iteration {end}, others at {ends.max()}")
    return rows


def arms_table(results: Results) -> str:
    """Markdown: a line an arm. Percent are of the outcome after the last iteration, over all seeds.

    Interquartile mean and P(better) stand alone where the seeds are too few for their intervals.
    """
    columns = ["arm", "seeds", f"{results.outcome}, %", "interquartile mean", f"against {results.baseline}, points"]
    columns += ["would be found", "corrected p", "P(better)", "well-formed, %", "gradient norm"]
    columns += ["entropy-weighted credit"]
    lines = [columns, ["---"] * len(columns)]
    base = results.final(results.baseline).to_numpy()
    for arm in results.shown:
        raw = results.final(arm).to_numpy()
        scores = raw * 100
        cells = [f"`{arm}`", str(len(scores)), f"{scores.mean():.1f} {brackets(student_interval(scores), '.1f')}"]
        middle = brackets(interquartile_interval(scores), ".1f", unknown="")
        cells += [f"{interquartile_mean(scores):.1f} {middle}".rstrip()]
        if arm == results.baseline:
            cells += ["", "", "", ""]
        else:
            pair = (arm, results.baseline)
            seen = results.family.get(pair)
            p = seen.level.removeprefix("= ") if seen else "primary"
            seen = seen or results.compare(*pair)
            chance = float(probability_of_improvement(raw, base))
            cells += [f"{seen.difference:+.1f} {brackets((seen.low, seen.high), '+.1f')}"]
            cells += [results.smallest(seen, pair), p]
            cells += [f"{chance:.2f} {brackets(improvement_interval(raw, base), '.2f', unknown='')}".rstrip()]
        cells += [f"{100 * results.final(arm, 'well_formed').mean():.1f}"]
        cells += [f"{results.trained_mean(arm, name):.3f}" for name in ("grad_norm", "credit_entropy_weighted")]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def contrasts(results: Results) -> str:
    """Markdown: the contrasts of two arms one by one, and what each was able to see."""
    lines = [line(results, results.compare(*pair), pair) for pair in results.to_show(results.primary)]
    secondary = set(map(frozenset, results.secondary))  # one may stand among the arms, the other way round
    others = [pair for pair in results.to_show(results.family) if frozenset(pair) in secondary]
    lines += [line(results, results.family[pair], pair) for pair in others]
    spread = results.final(results.baseline).std(ddof=1) * 100
    seeds = len(results.final(results.baseline))
    lines.append(
        f"- {seeds} seeds of `{results.baseline}` spread by {spread:.2f} points (standard deviation). "
        f"Before training {results.outcome} is {results.start:.1f}%."
    )
    if results.waiting:
        want = "for want of two seeds in common, nor counted in the correction of p"
        lines.append(f"- Not compared yet, {want}: {', '.join(results.waiting)}.")
    return "\n".join(lines)


def line(results: Results, seen: Comparison, pair: Contrast) -> str:
    """One contrast; of the family its p is corrected, its interval is of it alone."""
    ours, theirs = pair
    verdict = "distinguishable" if seen.distinguishable else "not distinguishable"
    found = results.smallest(seen, pair)
    found = "an unknown difference" if found == "unknown" else f"{found} points"
    p = "corrected p" if pair in results.family else "p"
    return (
        f"- `{ours}` against `{theirs}`: {seen.difference:+.1f} points {brackets((seen.low, seen.high), '+.1f')}, "
        f"{p} {seen.level}, {seen.basis}: **{verdict}**. With 80% power {found} would be found."
    )


def draw_curves(results: Results) -> Figure:
    """A panel an arm: mean over seeds and its 95% interval by iteration, the baseline's mean beneath."""
    columns = min(5, len(results.shown))
    rows = -(-len(results.shown) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(results.shown) :]:
        axis.set_visible(False)
    for axis in axes.flat[len(results.shown) - columns : len(results.shown)]:
        axis.tick_params(labelbottom=True)  # the lowest of its column, of those that share theirs
    base = results.of(results.baseline).groupby("iteration")[results.outcome].mean() * 100
    for axis, arm in zip(axes.flat, results.shown, strict=False):
        curves = results.of(arm).groupby("iteration")[results.outcome]
        mean = curves.mean() * 100
        start = mean.where(mean.index == 0)  # where all seeds are one policy
        bounds = pd.DataFrame([student_interval(scores) for _, scores in curves], mean.index) * 100
        low, high = (bounds[side].fillna(start) for side in bounds)
        axis.plot(base.index, base, color="#AAAAAA", linewidth=1.5)
        axis.plot(mean.index, mean, color=BLUE, linewidth=1.5)
        axis.fill_between(mean.index, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axis.set_title(arm, fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("iteration", fontsize=8)
    figure.supylabel(f"{results.outcome}, %; grey: {results.baseline}", fontsize=8)
    return figure


def draw_forest(results: Results) -> Figure:
    """Every contrast's difference with its 95% interval."""
    primary = results.to_show(results.primary)
    rows = [(f"{ours} − {theirs}", results.compare(ours, theirs), ORANGE) for ours, theirs in primary]
    rows += [(" − ".join(pair), results.family[pair], BLUE) for pair in results.to_show(results.family)]
    figure = Figure(figsize=(6.5, 0.32 * len(rows) + 0.9), layout="constrained")
    axis = figure.subplots()
    for place, (_, seen, colour) in enumerate(rows):
        axis.plot([seen.low, seen.high], [place, place], color=colour, linewidth=1.5)
        axis.plot(seen.difference, place, "o", color=colour, markersize=4)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    which = "; orange: primary" * bool(primary)
    axis.set_xlabel(f"points of held-out {results.outcome}, 95% over seeds, not corrected{which}", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study.yaml with its results.csv")
    parser.add_argument("--arms", nargs="+", help="show these alone; p is corrected over all")
    parser.add_argument("--at", type=int, help="tell of this iteration instead of the last")
    parser.add_argument("--seeds", type=int, nargs="+", help="tell of these seeds instead of all")
    parser.add_argument("--outcome", default="pass@1", help="compare by this column; default: pass@1")
    args = parser.parse_args()
    folder = args.study
    try:
        results = Results.load(folder, args.arms, at=args.at, seeds=args.seeds, outcome=args.outcome)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(" ".join(str(error).split()))
    print(arms_table(results), contrasts(results), sep="\n\n")
    if (args.at, args.seeds, args.outcome) != (None, None, "pass@1"):
        print("- Not what the study was made for, pass@1 of all seeds at the end: no p is corrected for this look.")
    else:
        draw_curves(results).savefig(folder / "curves.png", dpi=130)
        draw_forest(results).savefig(folder / "forest.png", dpi=150)


if __name__ == "__main__":
    main()
