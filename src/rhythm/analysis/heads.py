"""Which heads look near, which look far, which concentrate, and how sure that is."""

from __future__ import annotations

from typing import Any

from rhythm.analysis.overlap import jaccard, jaccard_by_chance
from rhythm.analysis.reading import Reading, Selection, select
from rhythm.attention.heads import ByLayer
from rhythm.types import Head


def groups(selection: Selection) -> dict[str, list[Head]]:
    return {"local": selection.heads.local, "global": selection.heads.global_, "receivers": selection.receivers}


def overlaps(one: Selection, other: Selection) -> dict[str, float]:
    """Jaccard index of each group of two selections; 1 is the same heads."""
    theirs = groups(other)
    return {name: jaccard(mine, theirs[name]) for name, mine in groups(one).items()}


def overlaps_by_chance(one: Selection, other: Selection, among: int) -> dict[str, float]:
    """What `overlaps` is on average where each group is drawn at random from so many heads."""
    theirs = groups(other)
    return {name: jaccard_by_chance(len(mine), len(theirs[name]), among) for name, mine in groups(one).items()}


def head_tables(reading: Reading, layers: dict[str, list[int]], *fractions: float) -> dict[str, Any]:
    """What stands in analysis.json: distances, sinks and kurtosis by layer and head, and the groups of each choice.

    The fractions are those that the heads were grouped by, `head_fraction` and `receiver_fraction`.
    `agreement_of_halves` groups on every other response and on the rest, and tells the Jaccard index of the two: a
    difference between two models that is no larger says nothing.
    """
    sums = reading.sums
    return {
        "distance": _rounded(sums.mean_distance()),
        "sink": _rounded({layer: total / sums.rows for layer, total in sums.sink.items()}),
        "kurtosis": _rounded(sums.mean_kurtosis()),
        "rows": sums.rows,
        "groups": {
            name: {
                "layers": layers[name],
                **groups(selection),
                "receivers_among_global": _share(selection.receivers, selection.heads.global_),
                "agreement_of_halves": agreement_of_halves(reading, layers[name], *fractions),
            }
            for name, selection in reading.selections.items()
        },
    }


def agreement_of_halves(reading: Reading, layers: list[int], *fractions: float) -> dict[str, float]:
    """Jaccard index of each group on one half of the responses and on the other."""
    return overlaps(*(select(half, layers, *fractions) for half in reading.halves))


def _share(some: list[Head], among: list[Head]) -> float:
    return len(set(some) & set(among)) / len(some)


def _rounded(table: ByLayer) -> dict[str, list[float]]:
    return {str(layer): [round(value, 4) for value in values.tolist()] for layer, values in sorted(table.items())}
