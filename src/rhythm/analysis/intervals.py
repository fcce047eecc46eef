"""How sure a number is: resampling of responses or problems, never of tokens, which depend on each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from rhythm.evaluation.metrics import bootstrap_interval
from rhythm.seeding import derive_seed

RESAMPLES = 2000
LEVEL = 0.95
Interval = tuple[float, float]


def bootstrap(
    sums: ArrayLike, statistic: Callable[[NDArray], NDArray], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval, 95%, of a statistic of sums over units that are drawn anew with replacement.

    Args:
        sums: [N, K], what each of N responses or problems contributes.
        statistic: from totals [R, K] of R resamples to [R] values; NaN where one is undefined, which is left out.
    Returns:
        NaN twice where there is one unit or less, or the statistic is never defined.
    """
    sums = np.asarray(sums, dtype=float)
    if len(sums) < 2:
        return float("nan"), float("nan")
    draw = np.random.default_rng(derive_seed(seed, "bootstrap"))
    often = draw.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)  # [R, N]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(often @ sums)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval, 95%, of the mean of [N] values; NaN are left out; NaN twice of fewer than two."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    return bootstrap_interval(values, LEVEL, resamples, seed)


def share_interval(count: int, n: int) -> Interval:
    """Wilson's interval of a share, 95%: of n independent units `count` have it."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def permutation_p(observed: float, null: ArrayLike) -> float:
    """Two-sided p-value of an observed value among draws under the null, the observed one counted as a draw."""
    null = np.asarray(null, dtype=float)
    if np.isnan(observed) or not len(null):
        return float("nan")
    above, below = (null >= observed).sum(), (null <= observed).sum()
    return float(min(1.0, 2 * (1 + min(above, below)) / (1 + len(null))))
