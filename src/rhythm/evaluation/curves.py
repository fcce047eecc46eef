"""Learning curves of runs side by side: runs that differ in their seed alone are one arm."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rhythm.evaluation.comparison import Comparison, compare
from rhythm.evaluation.metrics import student_interval
from rhythm.inspection.drawing import COLOURS
from rhythm.keys import flatten
from rhythm.settings import CONFIG, differences, is_free

# What two evaluations have in common that are compared problem by problem.
ASKED = ("task", "problems", "samples", "seed", "temperature", "max_completion_tokens", "prompts_at_once")
# And which settings beside the task say so of two runs.
OF_ASKING = ("callbacks.evaluation.problems", "max_completion_tokens")
OF_ASKING += tuple(f"policy.{name}" for name in ("chat_template", "system_prompt", "stop_strings"))
OF_CREDIT = ("credit.", "signals.", "callbacks.attention_signals.")  # what a credit brings with it


@dataclass(frozen=True)
class Run:
    """What a run folder says of its held-out accuracy."""

    folder: Path
    seed: int
    settings: dict[str, Any]  # dotted keys of its config, without the seed and what changes no result
    curve: dict[int, float]  # iteration -> value
    solved: dict[int, list[float]]  # of the last iteration the share of right samples of each problem, where it is told

    @classmethod
    def load(cls, folder: Path, tag: str) -> Run:
        """Raises ValueError or FileNotFoundError where the folder is no run or has logged no such value."""
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder}: no run folder, it has no {CONFIG}")
        config = flatten(_config(folder / CONFIG))
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if tag not in events.Tags()["scalars"]:
            raise ValueError(f"{folder}: no `{tag}` in its TensorBoard events; there is {_likely(events, tag)}")
        solved = _solved(folder / "metrics.json") if tag == "eval/pass@1" else {}
        told = {key: value for key, value in config.items() if not (isinstance(value, dict) or _apart(key))}
        curve = {event.step: event.value for event in events.Scalars(tag)}
        return cls(folder, int(config["seed"]), told, curve, solved)

    @property
    def end(self) -> int:
        """The last iteration of the curve."""
        return max(self.curve)


def arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs with equal settings together, ordered by seed, under names that tell the arms apart.

    Raises:
        ValueError: two runs of an arm have the same seed.
    """
    grouped: list[list[Run]] = []
    for run in runs:
        same = next((group for group in grouped if not _differing([group, [run]])), None)
        grouped.append([run]) if same is None else same.append(run)
    found = {}
    for name, group in zip(_names(grouped), grouped, strict=True):
        group.sort(key=lambda run: run.seed)
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            twice = next(run.folder for run in group if seeds.count(run.seed) > 1)
            raise ValueError(f"{twice}: another run has its settings and its seed; name one of the two")
        found[name] = group
    return found


def last_common(runs: Sequence[Run]) -> int:
    """The last iteration at which all runs have a value: what they may be compared at, finished or not.

    Raises:
        ValueError: there is none.
    """
    common = set.intersection(*(set(run.curve) for run in runs))
    if not common:
        ends = ", ".join(f"{run.folder} at {sorted(run.curve)}" for run in runs[:4])
        raise ValueError(f"there is no iteration at which all of these runs have a value: {ends}")
    return max(common)


def table(found: dict[str, list[Run]]) -> pd.DataFrame:
    """A row for each arm and iteration: n seeds, their mean with its 95% interval, Student's, and each seed's value.

    The interval is NaN where there is one seed, or all agree.
    """
    rows = []
    for name, group in found.items():
        for iteration in sorted(set().union(*(run.curve for run in group))):
            values = {f"seed {run.seed}": run.curve[iteration] for run in group if iteration in run.curve}
            seen = list(values.values())
            low, high = student_interval(seen)
            row = {"arm": name, "iteration": iteration, "n": len(seen), "mean": sum(seen) / len(seen)}
            rows.append(row | {"low": low, "high": high, **values})
    return pd.DataFrame(rows)


def over_seeds(ours: Sequence[Run], theirs: Sequence[Run], iteration: int) -> Comparison | None:
    """Two arms at an iteration that all of them have, in pairs of runs; None where no two seeds are common."""
    pairs = [(one.curve[iteration], other.curve[iteration]) for one, other in _common(ours, theirs)]
    return compare(*zip(*pairs, strict=True), student=True, unit="seeds") if len(pairs) >= 2 else None


def over_problems(ours: Sequence[Run], theirs: Sequence[Run], iteration: int) -> Comparison | None:
    """Two arms that ended at an iteration on the same held-out problems, in pairs of those; None where they did not.

    A problem counts by its mean over the seeds that both arms have, or over one run of each: seeds are strata, all of
    which every draw of problems holds alike.
    """
    pairs = _common(ours, theirs) or [(ours[0], theirs[0])] * (len(ours) == len(theirs) == 1)
    solved = [[run.solved.get(iteration, []) for run in arm] for arm in zip(*pairs, strict=True)]
    counts = {len(of) for arm in solved for of in arm}
    other = any(key.startswith("task.") for key in asked_apart(ours, theirs))
    if len(counts) != 1 or counts <= {0, 1} or other:
        return None
    return compare(*(np.mean(arm, 0) for arm in solved), unit="problems")


def asked_apart(ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    """The settings by which two arms may have been asked other held-out problems, or in another way."""
    apart = differences(ours[0].settings, theirs[0].settings, importing="rhythm.")
    return [key for key in apart if key in OF_ASKING or (key.startswith("task.") and not key.startswith("task.train"))]


def _common(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of the seeds that both arms have."""
    by_seed = {run.seed: run for run in theirs}
    return [(run, by_seed[run.seed]) for run in ours if run.seed in by_seed]


def read_solved(path: Path) -> tuple[dict[str, Any], list[float]]:
    """What a file of eval.py says was asked, and how, as settings; and the share of right samples of each problem.

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        asked = {name: told[name] for name in ASKED}
        solved = [count / told["samples"] for count in told["correct"]]
        if not len(solved) == told["problems"] > 0:
            raise ValueError(f"{len(solved)} of {told['problems']} problems")
        return asked, solved
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} was not written by this version of eval.py: evaluate again") from error


def draw(rows: pd.DataFrame, label: str) -> Figure:
    """Mean by iteration of each arm, as far as all of its seeds go, with its interval where there are two or more."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, mine) in enumerate(rows.groupby("arm", sort=False)):
        seeds, colour = mine.n.max(), COLOURS[i % len(COLOURS)]
        whole = mine[mine.n == seeds]
        style = ("-", "--", ":")[i // len(COLOURS) % 3]
        line = {"marker": "o", "markersize": 3, "color": colour, "label": f"{name} ({seeds})"}
        axes.plot(whole.iteration, whole["mean"], style, **line)
        if seeds > 1:
            start = whole["mean"].where(whole.iteration == 0)  # where all seeds are one policy
            low, high = whole.low.fillna(start), whole.high.fillna(start)
            axes.fill_between(whole.iteration, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="iteration", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    bands = "; bands: 95% over seeds, Student's t" if rows.n.max() > 1 else ""
    axes.legend(frameon=False, fontsize=8, alignment="left", title=f"arm (seeds){bands}", title_fontsize=8)
    return figure


def _names(grouped: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each arm; those that would share one have every setting in which they differ, as Python writes it."""
    told = [_told(group[0], grouped) for group in grouped]
    short = [_name(group[0], keys) for group, keys in zip(grouped, told, strict=True)]
    names = []
    for name, group, keys in zip(short, grouped, told, strict=True):
        alike = [other for other, its in zip(grouped, short, strict=True) if its == name]
        more = [key for key in _differing(alike) if key not in keys]
        names.append(name if len(alike) == 1 else _name(group[0], keys + more, form=repr))
    return names


def _told(run: Run, grouped: Sequence[Sequence[Run]]) -> list[str]:
    """The settings in which an arm differs from the others, those of credit from others with the same credit."""
    target = run.settings.get("credit._target_")
    kin = [group for group in grouped if group[0].settings.get("credit._target_") == target]
    told = [key for key in _differing(grouped) if not key.startswith(OF_CREDIT)]
    return told + [key for key in _differing(kin) if key not in told]


def _name(run: Run, told: Sequence[str], form: Callable[[Any], str] = str) -> str:
    """The credit and these settings; one that the run's config lacks is left out."""
    credit = str(run.settings.get("credit._target_", "")).rpartition(".")[2].removesuffix("Credit").lower()
    values = {key: run.settings[key] for key in told if key in run.settings}
    return " ".join([credit, *(f"{key}={'null' if value is None else form(value)}" for key, value in values.items())])


def _differing(grouped: Sequence[Sequence[Run]]) -> list[str]:
    """The keys that differ; of those that differ in the same way, such as an interpolation and its source, one."""
    first, *others = (group[0].settings for group in grouped)
    keys = set().union(*(differences(first, other, importing="rhythm.") for other in others))
    ways = {key: tuple(repr(mine.get(key)) for mine in (first, *others)) for key in keys}
    return sorted({ways[key]: key for key in sorted(keys, key=lambda key: (len(key), key), reverse=True)}.values())


def _apart(key: str) -> bool:
    """Whether a key says nothing about the arm: its seed, or what changes no result."""
    return (is_free(key) and key != "iterations") or key in ("seed", "algorithm.seed")


def _likely(events: EventAccumulator, tag: str) -> str:
    prefix = tag.partition("/")[0]
    alike = [name for name in events.Tags()["scalars"] if name.startswith(prefix)]
    return ", ".join(alike or events.Tags()["scalars"][:8]) or "nothing"


def _config(path: Path) -> dict[str, Any]:
    """What a run's config.yaml holds, as data."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or "seed" not in config:
        raise ValueError(f"{path} is no run's config: it names no seed")
    return config


def _solved(path: Path) -> dict[int, list[float]]:
    """Of the last evaluation that metrics.json tells of, nothing where it tells of none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    last = told.get("last") if isinstance(told, dict) else None
    if not last or not {"iteration", "correct", "samples"} <= last.keys():
        return {}
    return {last["iteration"]: [count / last["samples"] for count in last["correct"]]}
