"""Is one policy better than another? Comparisons of runs that met the same problems, or start from the same seeds.

Scores stand in pairs: `ours` and `theirs` are arrays [pairs] or [strata, pairs] whose entries belong together. Two arms
of a study are pairs of seeds, two runs pairs of problems, and several seeds of two runs a stratum of problems each.
Probability of improvement and interquartile mean are those of Agarwal et al. 2021, arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from rhythm.evaluation.metrics import bootstrap_interval, student_interval
from rhythm.seeding import derive_seed

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Ours against theirs."""

    difference: float  # of the means, ours − theirs
    low: float  # 95% interval of it, by bootstrap over pairs within strata or by Student's t
    high: float
    p: float  # two-sided, of no difference at all, by flipping the signs of pairs or by Student's paired t
    improvement: float  # P(ours > theirs) of a pair drawn at random, ties counted half
    pairs: int
    unit: str = "pairs"  # what they are of

    @property
    def distinguishable(self) -> bool:
        return self.p < 0.05

    def __str__(self) -> str:
        p = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        told = f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {p}, {self.pairs} {self.unit}"
        return told if self.distinguishable else f"{told}: not distinguishable"


def compare(
    ours: ArrayLike, theirs: ArrayLike, *, student: bool = False, unit: str = "pairs", seed: int = 0
) -> Comparison:
    """The difference of paired scores, how sure it is, and how often it goes our way.

    Args:
        student: interval and p are Student's, over all pairs together: for a few seeds, of which a bootstrap is too
            sure, and whose signs cannot give a p below 2/2ⁿ.
        unit: what the pairs are of.
    Raises:
        ValueError: the shapes differ, or there are fewer than two pairs.
    """
    ours, theirs = np.atleast_2d(np.asarray(ours, float)), np.atleast_2d(np.asarray(theirs, float))
    if ours.shape != theirs.shape:
        raise ValueError(f"scores of {ours.shape} and {theirs.shape} are no pairs: compare the same problems and seeds")
    if ours.shape[1] < 2:
        raise ValueError("one pair says nothing about the spread: compare at least two problems or seeds")
    differences = ours - theirs
    low, high = student_interval(differences.ravel()) if student else bootstrap_interval(differences, seed=seed)
    improvement = np.mean([probability_of_improvement(*pair) for pair in zip(ours, theirs, strict=True)])
    p = student_p(differences.ravel()) if student else sign_flip_p(differences.ravel(), seed=seed)
    return Comparison(float(differences.mean()), low, high, p, float(improvement), differences.size, unit)


def student_p(differences: NDArray) -> float:
    """Two-sided p of the paired t test on differences [n]."""
    if np.ptp(differences) == 0:  # no spread: certain, or nothing
        return float(not differences.any())
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


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


def probability_of_improvement(ours: NDArray, theirs: NDArray) -> float:
    """P(X > Y) + P(X = Y)/2 for X and Y drawn from ours [n] and theirs [m]."""
    return float(stats.mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs)))


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of the middle half of [n]."""
    return float(stats.trim_mean(np.asarray(values, float), 0.25))


def holm(p: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted by Holm's step-down procedure."""
    order = np.argsort(p)
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """A family of comparisons with p adjusted by Holm's procedure; their intervals stay those of each alone."""
    adjusted = holm([each.p for each in comparisons])
    return [replace(each, p=p) for each, p in zip(comparisons, adjusted, strict=True)]


def smallest_difference(spread: float, pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a two-sided paired t test finds with this power.

    Args:
        spread: standard deviation of the pairs' differences.
    """
    freedom = pairs - 1
    critical = stats.t.ppf(1 - level / 2, freedom)

    def missing(noncentrality: float) -> float:
        wrong_side = np.nan_to_num(stats.nct.cdf(-critical, freedom, noncentrality))  # NaN where it is as good as 0
        return stats.nct.sf(critical, freedom, noncentrality) + wrong_side - power

    return float(optimize.brentq(missing, 0.0, 30.0) * spread / np.sqrt(pairs))
