"""Parts of a model's depth, each with head groups of its own: Table 10 of arXiv:2510.13554."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THIRDS = ("bottom", "middle", "top")


def thirds(layers: Sequence[int]) -> dict[str, list[int]]:
    """The layers in three parts by depth; the lower ones take what does not divide, and none of them is empty.

    The five middle layers that signals are read from in training are others: see `resolve_layers`.
    """
    parts = np.array_split(np.array(sorted(layers)), len(THIRDS))
    return {name: part.tolist() for name, part in zip(THIRDS, parts, strict=True) if len(part)}
