"""Where FAI peaks stand beside WAAD peaks, example by example: Table 20 of arXiv:2510.13554."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rhythm.analysis.coupling import PROMINENCE, Lift, at_or_just_after, could_peak, peaks

OFFSETS = (-1, 0, 1)  # tokens from a WAAD peak to the FAI peak; 1 is just after


def by_offset(
    waad: Tensor, fai: Tensor, mask: Tensor, offsets: Sequence[int] = OFFSETS, prominence: float = PROMINENCE
) -> dict[int, Lift]:
    """For each offset the share of FAI peaks that stand so many tokens behind a WAAD peak, against chance.

    Args:
        waad, fai: [N, T]; NaN where undefined.
        mask: [N, T] bool, True on response tokens.
    """
    near, far = peaks(waad, mask, prominence), peaks(fai, mask, prominence)
    return {offset: at_or_just_after(far, near, could_peak(fai, mask), (offset,)) for offset in offsets}


def by_example(lifts: dict[int, Lift]) -> list[dict[str, Any]]:
    """Of each response its number of FAI peaks, and the share of them at each offset; None where it has none."""
    marks = next(iter(lifts.values())).marks.sum(1).tolist()
    shares = {offset: _shares(lift) for offset, lift in lifts.items()}
    return [
        {"fai_peaks": count, "share": {str(offset): float(of[row]) if count else None for offset, of in shares.items()}}
        for row, count in enumerate(marks)
    ]


def _shares(lift: Lift) -> NDArray:
    """[N], the observed mean of each response alone."""
    marked = lift.marks & lift.eligible
    total, count = (lift.values * marked).sum(1), marked.sum(1)
    return (total / count.clamp(min=1)).cpu().numpy().astype(np.float64)
