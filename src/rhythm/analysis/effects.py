"""What the trials of a perturbation say: Table 1 of arXiv:2510.13554, problem by problem."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rhythm.analysis.intervals import RESAMPLES, bootstrap, mean_interval, share_interval
from rhythm.analysis.perturbation import SIDES, Trial

CONFOUNDERS = ("depth", "entropy", "probability")


def table_1(trials: Sequence[Trial], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Overlaps by side, and how often that at high FAI is the lower one.

    The unit is the problem: its overlap on a side is the mean over its places and alternatives, and the share is over
    problems. 0.871 of 70 problems, as in the paper, are 61 of them.
    """
    means = problem_means(trials)
    sides = [side for side in SIDES if any(side in by_side for by_side in means.values())]
    summary: dict[str, Any] = {
        side: _side([by_side[side] for by_side in means.values() if side in by_side], trials, side, resamples, seed)
        for side in sides
    }
    for other, name in (("bottom", "top_below_bottom"), ("matched", "top_below_matched")):
        if other in sides:
            summary[name] = _compare(means, other, resamples, seed)
    summary["at_equal_place_and_probability"] = adjusted_difference(trials, resamples=resamples, seed=seed)
    summary["at_equal_place"] = adjusted_difference(trials, ("depth",), resamples=resamples, seed=seed)
    return summary | {
        "trials": len(trials),
        "without_content_words": sum(trial.overlap is None for trial in trials),
    }


def problem_means(trials: Sequence[Trial]) -> dict[int, dict[str, float]]:
    """Row of the rollout -> side -> mean overlap; a side without a defined overlap is left out."""
    overlaps: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.overlap is not None:
            overlaps[trial.row][trial.side].append(trial.overlap)
    return {row: {side: fmean(values) for side, values in sides.items()} for row, sides in sorted(overlaps.items())}


def adjusted_difference(
    trials: Sequence[Trial], held: Sequence[str] = CONFOUNDERS, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Top minus bottom overlap that is left where some of the confounders are held equal, as far as lines can.

    Within each problem, overlap is regressed on the side and on those of the depth in the response, the entropy of the
    place and the log-probability of the forced token that are named. The interval resamples problems. What the forced
    token's probability explains may be part of the effect rather than beside it.
    """
    grams = []
    for row in sorted({trial.row for trial in trials}):
        mine = [t for t in trials if t.row == row and t.side in ("top", "bottom") and t.overlap is not None]
        if {trial.side for trial in mine} == {"top", "bottom"}:
            grams.append(_gram(mine, held))
    if len(grams) < 2:
        return {"difference": float("nan"), "interval": (float("nan"),) * 2, "problems": len(grams)}
    flat = np.stack([gram.ravel() for gram in grams])
    return {
        "difference": float(_slope(flat.sum(0, keepdims=True))[0]),
        "interval": bootstrap(flat, _slope, resamples=resamples, seed=seed),
        "problems": len(grams),
    }


def _gram(trials: Sequence[Trial], held: Sequence[str]) -> NDArray:
    """[k, k] products of side, what is held equal, and overlap, as differences from the problem's means."""
    of = {
        "depth": lambda t: t.depth,
        "entropy": lambda t: t.entropy,
        "probability": lambda t: np.log(max(t.probability, 1e-12)),
    }
    columns = [[t.side == "top" for t in trials], *([of[name](t) for t in trials] for name in held)]
    columns.append([t.overlap for t in trials])
    centred = np.array(columns, dtype=float)
    centred -= centred.mean(1, keepdims=True)
    return centred @ centred.T


def _slope(grams: NDArray) -> NDArray:
    """[R], the coefficient of the side from [R, k²]; the shortest solution where columns depend on each other."""
    size = round(grams.shape[1] ** 0.5)
    grams = grams.reshape(-1, size, size)
    return (np.linalg.pinv(grams[:, :-1, :-1], hermitian=True) @ grams[:, :-1, -1:])[:, 0, 0]


def _side(overlaps: list[float], trials: Sequence[Trial], side: str, resamples: int, seed: int) -> dict[str, Any]:
    mine = [trial for trial in trials if trial.side == side]
    return {
        "overlap": fmean(overlaps),
        "interval": mean_interval(overlaps, resamples=resamples, seed=seed),
        "problems": len(overlaps),
        **{name: fmean(getattr(trial, name) for trial in mine) for name in CONFOUNDERS},
    }


def _compare(means: dict[int, dict[str, float]], other: str, resamples: int, seed: int) -> dict[str, Any]:
    """Pr(top < other) over problems. A tie is no success; how many there are is told."""
    pairs = np.array([(sides["top"], sides[other]) for sides in means.values() if {"top", other} <= sides.keys()])
    if not len(pairs):
        undefined = {"share": math.nan, "interval": (math.nan,) * 2, "difference": math.nan}
        return undefined | {"difference_interval": (math.nan,) * 2, "problems": 0, "ties": 0}
    difference = pairs[:, 0] - pairs[:, 1]
    lower, ties = int((difference < -1e-12).sum()), int((abs(difference) <= 1e-12).sum())
    return {
        "share": lower / len(pairs),
        "interval": share_interval(lower, len(pairs)),
        "difference": float(difference.mean()),
        "difference_interval": mean_interval(difference, resamples=resamples, seed=seed),
        "problems": len(pairs),
        "ties": ties,
    }
