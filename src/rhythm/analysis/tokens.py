"""The tokens that credit would amplify if a run read attention as the analysis does, and the words among them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rhythm.analysis.reading import Signals
from rhythm.credit.base import top_tokens

KINDS = {"preplan": "WAAD drop", "anchor": "FAI"}


def amplified(signals: Signals, mask: Tensor, top_fraction: float) -> dict[str, Tensor]:
    """What preplan and anchor credit select by these signals, [N, T] bool each.

    Training selects by its own: by default those of the middle layers, with a horizon of 10 to 100.
    """
    return {
        "preplan": top_tokens(signals.waad_drop(mask), mask, top_fraction),
        "anchor": top_tokens(signals.fai, mask, top_fraction),
    }


def words(
    chosen: Tensor, ids: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase, *, least: int = 10
) -> list[dict[str, Any]]:
    """The words of [N, T] tokens by the share of their occurrences that is chosen, highest first.

    Args:
        least: words that occur less often are left out.
    """
    often, picked = Counter(ids[mask].tolist()), Counter(ids[mask & chosen].tolist())
    rows = [(picked[token] / count, count, token) for token, count in often.items() if count >= least]
    return [
        {"word": tokenizer.decode([token]), "share": share, "count": count}
        for share, count, token in sorted(rows, key=lambda row: (-row[0], -row[1], row[2]))
    ]
