"""Do WAAD, FAI and entropy rise together? Table 2 of arXiv:2510.13554."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import find_peaks
from torch import Tensor

from rhythm.analysis.intervals import RESAMPLES, Interval, bootstrap, permutation_p
from rhythm.seeding import derive_seed

PROMINENCE = 0.5  # standard deviations of a response's defined values
Null = Literal["shuffle", "rotate"]


@dataclass(frozen=True)
class Lift:
    """The mean of `values` at some tokens, where the rhythm says that it is high, and a baseline.

    Means are over the tokens of all responses together, as in the paper; intervals resample responses.
    """

    values: Tensor  # [N, T], what is averaged: entropies, or 1 where a token is something
    marks: Tensor  # [N, T] bool, the tokens where it should be high
    eligible: Tensor  # [N, T] bool, the tokens that could have been marked
    over: Tensor | None = None  # [N, T] bool, the tokens of the baseline; None is marks thrown among the eligible ones

    @property
    def observed(self) -> float:
        return float(_observed(self._sums.sum(0)))

    @property
    def expected(self) -> float:
        return float(_expected(self._sums.sum(0)))

    @property
    def lift(self) -> float:
        """0.5 is half as much again as expected; NaN where nothing was expected."""
        return float(_lift(self._sums.sum(0)))

    def interval(self, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
        """Of the lift, 95%, by bootstrap over responses."""
        return bootstrap(self._sums, _lift, resamples=resamples, seed=seed)

    def shuffled(self, *, draws: int = RESAMPLES, null: Null = "shuffle", seed: int = 0) -> NDArray:
        """The observed mean with the marks thrown anew among each response's eligible tokens, their number kept.

        "shuffle" throws every mark by itself, as the paper does. "rotate" turns all marks of a response around
        together, so that they keep their distances.

        Returns:
            [draws] float64.
        """
        if null not in get_args(Null):
            raise ValueError(f"null={null!r}: use one of {', '.join(get_args(Null))}")
        draw = np.random.default_rng(derive_seed(seed, "permutation"))
        total, count = np.zeros(draws), 0
        rows = zip(self.values.double().cpu(), self.marks.cpu(), self.eligible.cpu(), strict=True)
        for values, marks, eligible in rows:
            values, marks = values[eligible].numpy(), marks[eligible].numpy()
            if not marks.any():
                continue
            if null == "shuffle":
                ranks = draw.random((draws, len(marks)), dtype=np.float32)
                thrown = ranks.argpartition(marks.sum() - 1, axis=1)[:, : marks.sum()]
            else:
                thrown = (marks.nonzero()[0] + draw.integers(len(marks), size=(draws, 1))) % len(marks)
            total += values[thrown].sum(1)
            count += marks.sum()
        return total / count if count else np.full(draws, np.nan)

    def summary(self, *, resamples: int = RESAMPLES, null: Null = "shuffle", seed: int = 0) -> dict[str, Any]:
        """What stands in analysis.json."""
        thrown = self.shuffled(draws=resamples, null=null, seed=seed)
        return {
            "observed": self.observed,
            "expected": self.expected,
            "lift": self.lift,
            "interval": self.interval(resamples=resamples, seed=seed),
            "shuffled": {"mean": thrown.mean(), "interval": tuple(np.quantile(thrown, [0.025, 0.975]))},
            "p": permutation_p(self.observed, thrown),
            "marks": int(self._sums[:, 1].sum()),
            "responses": int((self._sums[:, 1] > 0).sum()),
        }

    @cached_property
    def _sums(self) -> NDArray:
        """[N, 4] of each response: values at its marks and their number, values of the baseline and their number."""
        marked, eligible = self.marks & self.eligible, self.eligible
        count = marked.sum(1).double()
        if self.over is None:
            chance = _row_sums(self.values, eligible) / eligible.sum(1).clamp(min=1)
            baseline = [chance * count, count]
        else:
            baseline = [_row_sums(self.values, self.over), self.over.sum(1).double()]
        return torch.stack([_row_sums(self.values, marked), count, *baseline], 1).cpu().numpy()


def table_2(
    entropy: Tensor, waad: Tensor, fai: Tensor, receiver_fai: Tensor, mask: Tensor, prominence: float = PROMINENCE
) -> dict[str, Lift]:
    """The three statistics of Table 2.

    Args:
        entropy, waad, fai, receiver_fai: [N, T]; NaN where undefined. The last is FAI by receiver heads.
        mask: [N, T] bool, True on response tokens.
    """
    near, far, received = (peaks(values, mask, prominence) for values in (waad, fai, receiver_fai))
    return {
        "entropy_at_waad_peaks": entropy_at_waad_peaks(entropy, near, mask, eligible=could_peak(waad, mask)),
        "receiver_peaks_global": overlap(received, far, could_peak(fai, mask)),
        "fai_after_waad": at_or_just_after(far, near, could_peak(fai, mask)),
    }


def peaks(values: Tensor, mask: Tensor, prominence: float = PROMINENCE) -> Tensor:
    """Local maxima of each row that stand out by `prominence` standard deviations of the row's defined values.

    How far a peak stands out is its height above the higher of the valleys that part it from higher ground
    (`scipy.signal.find_peaks`). The paper does not say what it takes for a peak.

    Args:
        values: [N, T]; the defined ones of a row adjacent, NaN elsewhere.
        mask: [N, T] bool.
    Returns:
        [N, T] bool.
    """
    found = torch.zeros_like(mask)
    for row, (series, inside) in enumerate(zip(values.double().cpu(), mask.cpu(), strict=True)):
        defined = (inside & ~series.isnan()).nonzero()[:, 0]
        if len(defined) < 3:
            continue
        height = series[defined].numpy()
        places, _ = find_peaks(height, prominence=max(prominence * height.std(), np.finfo(float).tiny))
        found[row, defined[torch.from_numpy(places)]] = True
    return found


def could_peak(values: Tensor, mask: Tensor) -> Tensor:
    """[N, T] bool: the defined tokens but the first and the last, which are no local maxima whatever they are."""
    defined = mask & ~values.isnan()
    inner = torch.zeros_like(defined)
    inner[:, 1:-1] = defined[:, 1:-1] & defined[:, :-2] & defined[:, 2:]
    return inner


def entropy_at_waad_peaks(entropy: Tensor, waad_peaks: Tensor, mask: Tensor, eligible: Tensor | None = None) -> Lift:
    """Mean entropy of the tokens at WAAD peaks, against that of all response tokens."""
    return Lift(entropy, waad_peaks, mask if eligible is None else eligible, over=mask)


def overlap(first: Tensor, second: Tensor, eligible: Tensor) -> Lift:
    """The share of the first tokens that are among the second, against the share of the second among eligible tokens.

    In Table 2 the first are peaks of receiver-head FAI and the second peaks of global-head FAI.
    """
    return Lift(second.double(), first, eligible, over=eligible)


def at_or_just_after(followers: Tensor, leaders: Tensor, eligible: Tensor, offsets: Sequence[int] = (0, 1)) -> Lift:
    """The share of followers that stand at a leader or one token behind it, against followers thrown anywhere.

    In Table 2 the followers are FAI peaks and the leaders WAAD peaks; thrown anywhere among a response's eligible
    tokens, their number kept, followers meet a leader as often as its eligible tokens do.

    Args:
        eligible: [N, T] bool, tokens that could be followers.
        offsets: how many tokens behind a leader a follower may stand; a negative one stands before it.
    """
    near = torch.zeros_like(leaders)
    for offset in offsets:
        near |= moved(leaders, offset)
    return Lift(near.double(), followers, eligible)


def moved(marks: Tensor, offset: int) -> Tensor:
    """Every mark `offset` tokens later, [N, T] bool; those that leave the row are lost."""
    length = marks.shape[1]
    result = torch.zeros_like(marks)
    result[:, max(offset, 0) : length + min(offset, 0)] = marks[:, max(-offset, 0) : length - max(offset, 0)]
    return result


def _row_sums(values: Tensor, where: Tensor) -> Tensor:
    return values.double().masked_fill(~where, 0.0).sum(1)


def _observed(sums: NDArray) -> NDArray:
    return _ratio(sums[..., 0], sums[..., 1])


def _expected(sums: NDArray) -> NDArray:
    return _ratio(sums[..., 2], sums[..., 3])


def _lift(sums: NDArray) -> NDArray:
    return _ratio(_observed(sums), _expected(sums)) - 1


def _ratio(total: NDArray, count: NDArray) -> NDArray:
    return np.divide(total, count, out=np.full_like(total, np.nan, dtype=float), where=count > 0)
