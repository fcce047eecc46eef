"""A completion as it is shown: its tokens as texts, and what is known of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rhythm.analysis.coupling import PROMINENCE, peaks
from rhythm.credit.base import CreditStrategy, SelectiveCredit, top_tokens
from rhythm.credit.controls import MeanMatchedCredit, ShuffledCredit
from rhythm.types import Rollout

SCALED_TO = 0.99  # of a signal's values have a colour of their own; the rest share the last one
PAPER_FRACTION = 0.4  # q of arXiv:2510.13554, where the strategy has none


class Signal(NamedTuple):
    """How a value of each token is called."""

    label: str
    unit: str
    meaning: str


SIGNALS = {  # in the order in which they are shown
    "waad": Signal("WAAD", "tokens", "how far back the local heads look"),
    "fai": Signal("FAI", "", "the share of attention that later tokens pay it"),
    "entropy": Signal("entropy", "nats", "of the distribution that it was drawn from"),
    "credit": Signal("credit", "", "γ, the factor on the advantage"),
    "advantage": Signal(
        "shaped advantage",
        "",
        "Ã, what the token is pushed by: advantage · credit, times its importance weight if it has one",
    ),
    "waad_drop": Signal("WAAD drop", "tokens", "change of WAAD to the next token"),
}


@dataclass(frozen=True)
class Response:
    """One completion of n tokens."""

    problem: str
    tokens: list[str]  # n texts; joined they are the completion
    reward: float = np.nan  # NaN where it failed
    advantage: float = np.nan  # NaN where there was no group to compare with
    truncated: bool = False
    group: int = 0  # responses to one prompt have one number
    values: dict[str, np.ndarray] = field(default_factory=dict)  # of SIGNALS those that exist, [n]; NaN is undefined
    preplan: np.ndarray | None = None  # [n] bool: the largest drops of WAAD, TopQ of Eq. 14
    anchor: np.ndarray | None = None  # [n] bool: the highest FAI, TopQ of Eq. 16

    def __post_init__(self) -> None:
        marks = {name: marks for name in ("preplan", "anchor") if (marks := getattr(self, name)) is not None}
        for name, values in (self.values | marks).items():
            if len(values) != len(self.tokens):
                raise ValueError(f"{name} has {len(values)} values for {len(self.tokens)} tokens")

    def headline(self) -> str:
        parts = [f"reward {self.reward:g}", f"{len(self.tokens)} tokens"]
        if np.isfinite(self.advantage):
            parts.insert(1, f"advantage {self.advantage:+.2f}")
        return ", ".join(parts) + (", truncated" if self.truncated else "")


def describe(
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int],
    *,
    group_size: int,
    eligible: Tensor | None = None,
    fraction: float = PAPER_FRACTION,
) -> list[Response]:
    """Some rows of a rollout with rewards, and of the signals, credit and advantages those that are there.

    Args:
        eligible: [N, T] bool, the tokens that preplan and anchor marks are chosen from; None is all.
        fraction: q, the share of marked tokens.
    """
    mask, signals = rollout.completion_mask, rollout.signals
    eligible = mask if eligible is None else eligible
    drop, fai = (None if signals is None else getattr(signals, name) for name in ("waad_drop", "fai"))
    preplan, anchor = (None if scores is None else top_tokens(scores, eligible, fraction) for scores in (drop, fai))
    fields = {name: getattr(signals, name, None) for name in ("waad", "fai", "entropy", "waad_drop")}
    fields |= {"credit": rollout.credit, "advantage": rollout.shaped_advantages}
    named = {name: fields[name] for name in SIGNALS if fields[name] is not None}

    def of(row: int, values: Tensor | None) -> np.ndarray | None:
        return None if values is None else values[row][mask[row]].cpu().numpy()

    return [
        Response(
            problem=", ".join(f"{key} {value}" for key, value in rollout.problems[row].items()),
            tokens=token_texts(rollout.completion_ids[row][mask[row]].tolist(), tokenizer),
            reward=float(rollout.rewards[row]),
            advantage=np.nan if rollout.advantages is None else float(rollout.advantages[row]),
            truncated=bool(rollout.truncated[row]),
            group=row // group_size,
            values={name: of(row, values) for name, values in named.items()},
            preplan=of(row, preplan),
            anchor=of(row, anchor),
        )
        for row in rows
    ]


def marked_fraction(credit: CreditStrategy) -> float:
    """q of the strategy, or of the one that a control is of; the paper's where it has none."""
    if isinstance(credit, ShuffledCredit | MeanMatchedCredit):
        return marked_fraction(credit.of)
    return credit.top_fraction if isinstance(credit, SelectiveCredit) else PAPER_FRACTION


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds behind the one before it, special tokens by their names.

    A token of part of a character shows as U+FFFD.
    """

    @cache
    def decode(*tokens: int) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @cache
    def added(before: int, token: int) -> str:
        first, both = decode(before), decode(before, token)
        return both.removeprefix(first) if both.startswith(first) else decode(token)

    return [added(*pair) if pair[0] is not None else decode(pair[1]) for pair in zip([None, *ids], ids, strict=False)]


def peak_places(values: np.ndarray, prominence: float = PROMINENCE) -> np.ndarray:
    """Where a curve with NaN at its ends peaks; see `rhythm.analysis.coupling.peaks`."""
    series = torch.from_numpy(np.asarray(values, dtype=float))[None]
    return peaks(series, ~series.isnan(), prominence)[0].nonzero()[:, 0].numpy()
