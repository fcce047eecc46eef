"""Controls that separate where the credit goes from how much of it there is."""

import torch
from torch import Tensor

from rhythm.credit.base import CreditStrategy, row_noise
from rhythm.types import AttentionSignals


class ShuffledCredit(CreditStrategy):
    """Permute another strategy's weights within each response: the same amounts, at random places.

    Args:
        of: the strategy whose weights are permuted.
        segments: equal parts of a response that are permuted each for itself; with 10 the amounts stay in their tenth
            of the response, so that what is lost is the token and not where in the response it stands.
    """

    seeded = True

    def __init__(self, *, of: CreditStrategy, segments: int = 1):
        if segments < 1:
            raise ValueError(f"segments={segments}: must be at least 1")
        self.of = of
        self.segments = segments
        self.requires, self.selects_by = of.requires, of.selects_by

    def weights(self, signals: AttentionSignals, mask: Tensor, *, seed: int, rows: list[int]) -> Tensor:
        weights = self.of(signals, mask, seed=seed, rows=rows)
        segment = (mask.cumsum(dim=1) - 1) * self.segments // mask.sum(dim=1, keepdim=True).clamp(min=1)
        noise = row_noise(mask, seed, rows, stream=1)  # in [0, 1), so that segments do not mix
        order = (segment + noise).argsort(dim=1)  # columns of a row's tokens first: NaN sorts last
        first = torch.arange(mask.shape[1], device=mask.device) < mask.sum(dim=1, keepdim=True)
        shuffled = torch.ones_like(weights)
        shuffled[mask] = weights.gather(1, order)[first]
        return shuffled


class MeanMatchedCredit(CreditStrategy):
    """Give every token of a response the mean of another strategy's weights there: the same amount, nowhere special.

    Args:
        of: the strategy whose mean is matched.
    """

    seeded = True

    def __init__(self, *, of: CreditStrategy):
        self.of = of
        self.requires, self.selects_by = of.requires, of.selects_by

    def weights(self, signals: AttentionSignals, mask: Tensor, *, seed: int, rows: list[int]) -> Tensor:
        weights = self.of(signals, mask, seed=seed, rows=rows).double()  # so that the sum does not depend on padding
        mean = (weights * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        return mean.expand_as(weights)
