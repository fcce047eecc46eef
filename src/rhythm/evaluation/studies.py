"""What a study is: arms and seeds in study.yaml, and a row for each evaluation of each run in results.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import yaml

EVALUATED = {  # columns at the iteration of the row, and the tags that they are from
    "pass@1": "eval/pass@1",
    "pass@8": "eval/pass@8",
    "pass@1_well_formed": "eval/pass@1_well_formed",
    "well_formed": "eval/well_formed",
    "length": "eval/mean_length",
    "kl": "eval/kl",
}
TRAINED = {  # means over the iterations since the row before
    "reward": "reward",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "credit_mean": "credit/mean",
    "credit_entropy_weighted": "credit/entropy_weighted",
    "iteration_seconds": "time/iteration",
}
FIELDS = ("credit", "seed", "iteration", *EVALUATED, "low", "high", "n", *TRAINED, "run_seconds", "peak_mb")
OF_THE_MACHINE = ("iteration_seconds", "run_seconds", "peak_mb")  # what the same run measures differently again
Row = dict[str, str]  # by FIELDS; empty where there is no such value
Run = tuple[str, int]  # arm and seed
Contrast = tuple[str, str]  # ours, theirs


@dataclass(frozen=True)
class Study:
    """What study.yaml says."""

    folder: Path
    arms: dict[str, list[str]]  # overrides of train.py
    seeds: list[int]
    common: list[str]  # overrides of all arms
    baseline: str | None  # the arm that others are compared with
    primary: list[Contrast]
    secondary: list[Contrast]

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Raises ValueError where study.yaml describes no study, or results.csv is not one of it."""
        path = folder / "study.yaml"
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        arms, seeds = (described.get(key) if isinstance(described, dict) else None for key in ("arms", "seeds"))
        if not (arms and isinstance(arms, dict) and all(isinstance(overrides, list) for overrides in arms.values())):
            raise ValueError(f"{path}: give `arms`, each a name with a list of overrides")
        if not (seeds and isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)):
            raise ValueError(f"{path}: give `seeds`, a list of whole numbers")
        primary, secondary = ([tuple(pair) for pair in described.get(kind, [])] for kind in ("primary", "secondary"))
        study = cls(folder, arms, seeds, described.get("common", []), described.get("baseline"), primary, secondary)
        study.check("baseline", [study.baseline] if study.baseline else [])
        for kind, pairs in {"primary": primary, "secondary": secondary}.items():
            study.check(kind, chain.from_iterable(pairs))
        study.rows()
        return study

    @property
    def results(self) -> Path:
        return self.folder / "results.csv"

    def check(self, where: object, arms: Iterable[str]) -> None:
        """Raises ValueError where arms that are named somewhere are not of the study."""
        if unknown := sorted(set(arms) - set(self.arms)):
            raise ValueError(f"{where} {' '.join(unknown)}: {self.folder / 'study.yaml'} has no such arm")

    def rows(self) -> list[Row]:
        """What has been measured so far. Raises ValueError where results.csv is not one of this study."""
        return self.read(self.results) if self.results.exists() else []

    def read(self, path: Path) -> list[Row]:
        """The rows of a results.csv. Raises ValueError where it is not one of this study, or damaged."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                names, rows = set(reader.fieldnames or FIELDS), list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is no table: {error}") from error
        if missing := {"credit", "seed", "iteration"} - names:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: it is no results.csv of a study")
        if unknown := names - set(FIELDS):
            raise ValueError(f"{path} has columns that study.py does not write: {', '.join(sorted(unknown))}")
        seen = set()
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {number} has too few or too many cells")
            if not (row["credit"] and row["seed"].isdecimal() and row["iteration"].isdecimal()):
                raise ValueError(f"{path}, line {number} has no arm, or a seed or iteration that is no whole number")
            if (place := (*run_of(row), int(row["iteration"]))) in seen:
                raise ValueError(f"{path}, line {number}: there is a row of this arm, seed and iteration before")
            seen.add(place)
        self.check(f"{path}, rows of", (row["credit"] for row in rows))
        return rows

    def merge(self, path: Path) -> tuple[int, int]:
        """Takes in the runs of another checkout's results.csv: how many of them are new, and how many stand here.

        Raises:
            ValueError: it is not one of this study, or a run stands here with other numbers; nothing is taken in.
        """
        theirs, ours = _by_run(self.read(path)), _by_run(self.rows())
        for run in theirs.keys() & ours.keys():
            if _lasting(theirs[run]) != _lasting(ours[run]):
                arm, seed = run
                raise ValueError(
                    f"{path}: {arm}, seed {seed} has other rows than in {self.results}: remove one of the two"
                )
        new = theirs.keys() - ours.keys()
        self.add([row for run in new for row in theirs[run]])
        return len(new), len(theirs) - len(new)

    def add(self, new: list[Row]) -> None:
        """Puts rows into results.csv, by arm, seed and iteration; rows of the same run are replaced."""
        runs = set(map(run_of, new))
        order = list(self.arms)
        rows = [row for row in self.rows() if run_of(row) not in runs] + new
        rows.sort(key=lambda row: (order.index(row["credit"]), int(row["seed"]), int(row["iteration"])))
        staged = self.results.with_suffix(".tmp")
        with staged.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        staged.replace(self.results)


def run_of(row: Row) -> Run:
    return row["credit"], int(row["seed"])


def _by_run(rows: list[Row]) -> dict[Run, list[Row]]:
    found: dict[Run, list[Row]] = {}
    for row in rows:
        found.setdefault(run_of(row), []).append(row)
    return found


def _lasting(rows: list[Row]) -> list[Row]:
    """What the same run measures again, in the order of its iterations."""
    ordered = sorted(rows, key=lambda row: int(row["iteration"]))
    return [{name: row.get(name, "") for name in FIELDS if name not in OF_THE_MACHINE} for row in ordered]
