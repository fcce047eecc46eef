"""pass@k with its interval: pure functions, and a torchmetrics class over them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from rhythm.seeding import derive_seed

ROUNDING = 1e-12  # values closer than this are equal


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    """The unbiased estimate 1 − C(n−c, k) / C(n, k) of Chen et al. (arXiv:2107.03374), for each problem.

    Args:
        correct: [P, n] bool or 0/1, n samples of each problem.
        k: 1 ≤ k ≤ n.
    Returns:
        [P] float64, between 0 and 1.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples of a problem, not {n}")
    wrong = n - correct.double().sum(1, keepdim=True)
    drawn = torch.arange(k, dtype=torch.float64, device=correct.device)
    return 1 - ((wrong - drawn).clamp(min=0) / (n - drawn)).prod(1)


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [n], for many; where all are equal it is that value."""
    draw = np.random.default_rng(derive_seed(seed, "bootstrap"))
    values = np.asarray(values, float)
    means = values[draw.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of `values` [n]; NaN twice where n < 2 or all are equal, which tells no spread.

    For a few seeds, among which resampling finds too little spread: with three of them, 95% are 75%.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) < ROUNDING:
        return float("nan"), float("nan")
    reach = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - reach), float(values.mean() + reach)


class PassAtK(Metric):
    """pass@k over problems, each with n ≥ k samples. `interval` is over problems too."""

    higher_is_better = True
    full_state_update = False

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, correct: Tensor) -> None:
        """correct: [P, n] bool or 0/1."""
        self.values.append(pass_at_k(correct, self.k))

    def compute(self) -> Tensor:
        return dim_zero_cat(self.values).mean()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of the mean over problems, by bootstrap.

        Where every problem has 0, or every one 1, resampling sees no spread; then it is Clopper and Pearson's of the
        share of problems that have it: of 30 problems that nothing solved, 0 to 0.116.
        """
        values = dim_zero_cat(self.values).cpu()
        if (values == values[0]).all() and values[0] in (0, 1):
            exact = stats.binomtest(int(values.sum()), len(values)).proportion_ci(level, method="exact")
            return float(exact.low), float(exact.high)
        return bootstrap_interval(values, level)
