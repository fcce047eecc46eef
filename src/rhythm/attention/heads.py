"""Which layers are read, and which of their heads look near and which look far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rhythm.types import HeadGroups

Layers = str | Sequence[int]  # "middle", "all", "top", "bottom" or 0-based layers


def resolve_layers(layers: Layers, num_layers: int) -> list[int]:
    """0-based layers, ascending, of a model of L layers.

    "middle": the distinct values of round(linspace(⌊L/3⌋, ⌊2L/3⌋, 5)), n ≤ 5 of them.
    "bottom": n evenly spaced layers from 0 to the end of the first third, or the first n where a third has fewer.
    "top": the mirror image of "bottom". "all": every layer.
    """
    middle = _evenly_spaced(num_layers // 3, 2 * num_layers // 3, 5)
    bottom = _evenly_spaced(0, max(num_layers // 3, len(middle)) - 1, len(middle))
    named = {
        "all": list(range(num_layers)),
        "middle": middle,
        "bottom": bottom,
        "top": [num_layers - 1 - layer for layer in reversed(bottom)],
    }
    if isinstance(layers, str):
        if layers not in named:
            raise ValueError(f"layers={layers!r}: use one of {', '.join(named)}, or a list of layers")
        return named[layers]
    chosen = sorted(set(layers))
    if not chosen or not all(isinstance(layer, int) and 0 <= layer < num_layers for layer in chosen):
        raise ValueError(f"layers={list(layers)}: the model has layers 0 to {num_layers - 1}; choose at least one")
    return chosen


def group_heads(distance: dict[int, Tensor], fraction: float) -> HeadGroups:
    """Local and global heads, Eq. 8 of arXiv:2510.13554, among the heads of all captured layers together.

    Each group has max(1, round(fraction · heads)) members, never more than half of the heads, in ascending order of
    distance with ties by (layer, head).

    Args:
        distance: layer -> [H], mean attention distance in tokens.
        fraction: share of the heads in each group, in (0, 0.5].
    """
    check_fraction(fraction)
    if not all(torch.isfinite(values).all() for values in distance.values()):
        raise ValueError("attention distances are not finite: heads are grouped on at least one response row")
    ranked = sorted(
        (value, layer, head) for layer, values in distance.items() for head, value in enumerate(values.tolist())
    )
    heads = [(layer, head) for _, layer, head in ranked]
    count = max(1, min(round(fraction * len(heads)), len(heads) // 2))
    return HeadGroups(local=heads[:count], global_=heads[-count:])


def check_fraction(fraction: float) -> None:
    """Refuse groups that would be empty or overlap."""
    if not 0 < fraction <= 0.5:
        raise ValueError(f"head_fraction={fraction}: each group takes a share of the heads in (0, 0.5]")


def _evenly_spaced(first: int, last: int, count: int) -> list[int]:
    """The distinct values of round(linspace(first, last, count))."""
    return sorted({round(value) for value in torch.linspace(first, last, count, dtype=torch.float64).tolist()})
