"""Is one policy better than another? Comparisons of runs that start from the same seeds, or met the same problems.

Scores stand in pairs: `ours` and `theirs` are arrays [pairs] whose entries belong together, those of a seed or of a
problem. Seeds tell how sure it is that other runs would do so too, problems how sure that these runs would do so on
other problems. Probability of improvement and interquartile mean are those of Agarwal et al. 2021, arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from rhythm.evaluation.metrics import ROUNDING, bootstrap_interval, student_interval
from rhythm.seeding import derive_seed

RESAMPLES = 10_000
ENOUGH = 6  # runs of an arm from which resampling them tells an interval: of two 95% are 50 to 70%, of six 90%
UNKNOWN = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Comparison:
    """Ours against theirs."""

    difference: float  # of the means, ours − theirs
    low: float  # 95% interval of it, by bootstrap over pairs or by Student's t; NaN where all pairs differ alike
    high: float
    p: float  # two-sided, of no difference at all, by flipping the signs of pairs or by Student's paired t
    spread: float  # standard deviation of the pairs' differences
    pairs: int
    unit: str = "pairs"  # what they are of

    @property
    def distinguishable(self) -> bool:
        return self.p < 0.05

    @property
    def level(self) -> str:
        """What p is, or is below, or that it is unknown."""
        if np.isnan(self.p):
            return "unknown"
        return "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"

    @property
    def basis(self) -> str:
        """How many pairs there are, and whether they say nothing about the spread."""
        alike = " that all differ alike" if self.difference else " that are all equal"
        return f"{self.pairs} {self.unit}{alike if self.spread < ROUNDING else ''}"

    def __str__(self) -> str:
        bounds = brackets((self.low, self.high), "+.4f")
        told = f"{self.difference:+.4f} {bounds}, p {self.level}, {self.basis}"
        return told if self.distinguishable else f"{told}: not distinguishable"


def brackets(bounds: tuple[float, float], form: str, unknown: str = "[unknown]") -> str:
    """An interval as text, or `unknown` where it is NaN."""
    return unknown if np.isnan(bounds).any() else "[{}, {}]".format(*(format(bound, form) for bound in bounds))


def compare(
    ours: ArrayLike, theirs: ArrayLike, *, student: bool = False, unit: str = "pairs", seed: int = 0
) -> Comparison:
    """The difference of paired scores, and how sure it is.

    Args:
        student: interval and p are Student's: for a few seeds, of which a bootstrap is too sure, and whose signs cannot
            give a p below 2/2ⁿ.
        unit: what the pairs are of.
    Raises:
        ValueError: the shapes differ, or there are fewer than two pairs.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.ndim != 1 or ours.shape != theirs.shape:
        raise ValueError(f"scores of {ours.shape} and {theirs.shape} are no pairs: compare the same problems and seeds")
    if len(ours) < 2:
        raise ValueError("one pair says nothing about the spread: compare at least two problems or seeds")
    differences = ours - theirs
    low, high = student_interval(differences) if student else bootstrap_interval(differences, seed=seed)
    if _constant(differences):
        low, high = UNKNOWN  # that no spread was seen is not that there is none: it may be a coincidence
    p = student_p(differences) if student else sign_flip_p(differences, seed=seed)
    return Comparison(float(differences.mean()), low, high, p, float(differences.std(ddof=1)), len(differences), unit)


def student_p(differences: NDArray) -> float:
    """Two-sided p of the paired t test on differences [n]: 1 where all are 0, NaN where all are alike otherwise."""
    if not differences.any():
        return 1.0
    return float("nan") if _constant(differences) else float(stats.ttest_1samp(differences, 0.0).pvalue)


def sign_flip_p(differences: NDArray, seed: int = 0) -> float:
    """Two-sided p of differences [n] that would be as likely with either sign; exact up to 13 of them."""
    if not differences.any():
        return 1.0
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(derive_seed(seed, "permutation")),
    )
    return float(test.pvalue)


def probability_of_improvement(ours: NDArray, theirs: NDArray) -> NDArray:
    """P(X > Y) + P(X = Y)/2 for X and Y drawn from ours [..., n] and theirs [..., m], each for itself: [...]."""
    gaps = ours[..., :, None] - theirs[..., None, :]
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean((-2, -1))


def improvement_interval(ours: ArrayLike, theirs: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of P(ours > theirs), by resampling the runs of each arm, [n] and [m], for itself.

    NaN twice where n or m is below ENOUGH, and where every draw says the same, as of arms that lie wholly apart. Of six
    runs it holds the truth in about 90% of cases, of ten in 93%.
    """
    draw = np.random.default_rng(derive_seed(seed, "bootstrap"))
    arms = (np.asarray(ours, float), np.asarray(theirs, float))
    if min(map(len, arms)) < ENOUGH:
        return UNKNOWN
    resampled = (arm[draw.integers(len(arm), size=(RESAMPLES, len(arm)))] for arm in arms)
    return _percentiles(probability_of_improvement(*resampled))


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of [n] without a quarter of them, rounded down, at each end."""
    return float(stats.trim_mean(np.asarray(values, float), 0.25))


def interquartile_interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the interquartile mean of [n], by bootstrap.

    NaN twice where n is below ENOUGH, and where all values are equal. Of six values it holds the truth in about 90% of
    cases, of ten in 93%.
    """
    draw = np.random.default_rng(derive_seed(seed, "bootstrap"))
    values = np.asarray(values, float)
    if len(values) < ENOUGH:
        return UNKNOWN
    resampled = values[draw.integers(len(values), size=(RESAMPLES, len(values)))]
    return _percentiles(stats.trim_mean(resampled, 0.25, axis=1))


def holm(p: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted by Holm's step-down procedure; NaN stays and counts."""
    order = np.argsort(p)  # NaN last
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """A family of comparisons with p adjusted by Holm's procedure; their intervals stay those of each alone."""
    adjusted = holm([each.p for each in comparisons])
    return [replace(each, p=p) for each, p in zip(comparisons, adjusted, strict=True)]


def smallest_difference(spread: float, pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a two-sided paired t test finds with this power; NaN where no spread was seen.

    Args:
        spread: standard deviation of the pairs' differences.
    """
    if spread < ROUNDING:
        return float("nan")
    freedom = pairs - 1
    critical = stats.t.ppf(1 - level / 2, freedom)

    def missing(noncentrality: float) -> float:
        wrong_side = np.nan_to_num(stats.nct.cdf(-critical, freedom, noncentrality))  # NaN where it is as good as 0
        return stats.nct.sf(critical, freedom, noncentrality) + wrong_side - power

    most = 30.0
    while missing(most) < 0:  # with few pairs or a low level it takes far more
        most *= 2
    return float(optimize.brentq(missing, 0.0, most) * spread / np.sqrt(pairs))


def _percentiles(drawn: NDArray) -> tuple[float, float]:
    """The middle 95% of [draws]; NaN twice where all are equal."""
    if _constant(drawn):
        return UNKNOWN
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _constant(differences: NDArray) -> bool:
    return bool(np.ptp(differences) < ROUNDING)
