"""How alike two sets, or two choices of tokens, are, and how alike chance would make them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.stats import hypergeom
from torch import Tensor


def jaccard(one: Iterable, other: Iterable) -> float | None:
    """|A ∩ B| / |A ∪ B|; None where both are empty."""
    one, other = set(one), set(other)
    return len(one & other) / len(one | other) if one | other else None


def jaccard_by_chance(one: int, other: int, among: int) -> float:
    """The mean of |A ∩ B| / |A ∪ B| of sets of these sizes, thrown among so many things; NaN where both are empty."""
    if not one + other:
        return float("nan")
    common = np.arange(max(0, one + other - among), min(one, other) + 1)
    return float((hypergeom.pmf(common, among, one, other) * common / (one + other - common)).sum())


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """Jaccard index of two choices in each row of [N, T] bool; NaN where nothing is chosen. [N] float64."""
    return (one & other).sum(1).double() / (one | other).sum(1).double()


def agreement_by_chance(chosen: Tensor, eligible: Tensor) -> Tensor:
    """What `agreement` is on average of as many tokens as are chosen, thrown among the eligible ones. [N] float64."""
    counts = zip(chosen.sum(1).tolist(), eligible.sum(1).tolist(), strict=True)
    return torch.tensor([jaccard_by_chance(some, some, among) for some, among in counts], dtype=torch.float64)
