"""Which layers are read, and which of their heads look near and which look far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from rhythm.types import Head, HeadGroups

Layers = str | Sequence[int]  # "middle", "all", "top", "bottom" or 0-based layers
Groups = Literal["distance", "all", "receiver"]
ByLayer = dict[int, Tensor]  # layer -> [H]
SUMMED = ("distance", "sink", "kurtosis", "responses")  # the tables of HeadSums


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
    chosen = layers if isinstance(layers, (list, tuple)) else ()
    if not chosen or not all(isinstance(layer, int) and 0 <= layer < num_layers for layer in chosen):
        raise ValueError(f"layers={layers}: the model has layers 0 to {num_layers - 1}; choose at least one")
    return sorted(set(chosen))


@dataclass
class HeadSums:
    """What heads are grouped by, summed over the rows and responses of any number of passes; [H] a layer, float64."""

    rows: int = 0  # response rows summed over
    distance: ByLayer = field(default_factory=dict)  # tokens
    sink: ByLayer = field(default_factory=dict)  # attention to the first unpadded key
    kurtosis: ByLayer = field(default_factory=dict)  # over responses; see `received`
    responses: ByLayer = field(default_factory=dict)  # responses whose kurtosis is defined

    def __add__(self, other: HeadSums) -> HeadSums:
        tables = ((getattr(self, name), getattr(other, name)) for name in SUMMED)
        added = ({layer: total + mine.get(layer, 0.0) for layer, total in theirs.items()} for mine, theirs in tables)
        return HeadSums(self.rows + other.rows, *added)

    def pooled(self, pool: Callable[[Tensor], Tensor]) -> HeadSums:
        """The sums over all processes, which agree afterwards, on the CPU."""
        device = next(iter(self.distance.values())).device
        rows = pool(torch.tensor(float(self.rows), dtype=torch.float64, device=device))
        tables = (getattr(self, name) for name in SUMMED)
        return HeadSums(int(rows), *({layer: pool(total).cpu() for layer, total in table.items()} for table in tables))

    def mean_distance(self) -> ByLayer:
        """Eq. 7 of arXiv:2510.13554: layer -> [H], in tokens."""
        return {layer: total / self.rows for layer, total in self.distance.items()}

    def mean_kurtosis(self) -> ByLayer:
        """Layer -> [H], over responses; NaN where it was defined for none."""
        return {layer: total / self.responses[layer] for layer, total in self.kurtosis.items()}

    def mean_sink(self, heads: Sequence[Head]) -> float:
        """The share of these heads' attention that the first unpadded key takes."""
        return sum(float(self.sink[layer][head]) for layer, head in heads) / (self.rows * len(heads))

    def groups(self, kind: Groups, fraction: float) -> HeadGroups:
        """The groups that WAAD and FAI are means over.

        "distance": local and global heads, Eq. 8 of arXiv:2510.13554. "receiver": local heads as there, and in place of
        the global ones the same share of receiver heads. "all": every head in both.
        """
        if self.rows == 0:
            raise ValueError("completion_mask marks no token in any pass: there is no response to read")
        by_distance = group_heads(self.mean_distance(), fraction)
        if kind == "all":
            heads = sorted((layer, head) for layer, values in self.distance.items() for head in range(len(values)))
            return HeadGroups(local=heads, global_=heads)
        if kind == "receiver":
            return HeadGroups(local=by_distance.local, global_=receiver_heads(self.mean_kurtosis(), fraction))
        return by_distance


def group_heads(distance: ByLayer, fraction: float) -> HeadGroups:
    """Local and global heads, Eq. 8 of arXiv:2510.13554, among the heads of all captured layers together.

    Each group has max(1, round(fraction · heads)) members, never more than half of the heads, in ascending order of
    distance with ties by (layer, head).

    Args:
        distance: layer -> [H], mean attention distance in tokens.
        fraction: share of the heads in each group, in (0, 0.5].
    """
    heads = _ranked(distance, "attention distances are not finite: heads are grouped on at least one response row")
    count = _count(heads, fraction)
    return HeadGroups(local=heads[:count], global_=heads[-count:])


def receiver_heads(kurtosis: ByLayer, fraction: float) -> list[Head]:
    """The share of heads whose attention is concentrated on the fewest tokens, Bogdan et al. 2025, arXiv:2506.19143.

    Args:
        kurtosis: layer -> [H], excess kurtosis of how much each token is looked back at; see `received`.
        fraction: share of the heads, in (0, 0.5].
    """
    heads = _ranked(kurtosis, "no response is long enough for receiver heads: rows must look back from far enough")
    return heads[-_count(heads, fraction) :]


def check_groups(kind: Groups, fraction: float, name: str = "head_fraction") -> None:
    """Refuse groups that nobody knows, would be empty or overlap."""
    if kind not in get_args(Groups):
        raise ValueError(f"groups={kind!r}: use one of {', '.join(get_args(Groups))}")
    if not 0 < fraction <= 0.5:
        raise ValueError(f"{name}={fraction}: each group takes a share of the heads in (0, 0.5]")


def _ranked(values: ByLayer, otherwise: str) -> list[Head]:
    """All heads in ascending order of their values, ties by (layer, head)."""
    if not all(torch.isfinite(of_layer).all() for of_layer in values.values()):
        raise ValueError(otherwise)
    ranked = sorted(
        (value, layer, head) for layer, of_layer in values.items() for head, value in enumerate(of_layer.tolist())
    )
    return [(layer, head) for _, layer, head in ranked]


def _count(heads: list[Head], fraction: float) -> int:
    check_groups("distance", fraction)
    return max(1, min(round(fraction * len(heads)), len(heads) // 2))


def _evenly_spaced(first: int, last: int, count: int) -> list[int]:
    """The distinct values of round(linspace(first, last, count))."""
    return sorted({round(value) for value in torch.linspace(first, last, count, dtype=torch.float64).tolist()})
