"""The control for where the credit goes."""

from torch import Tensor

from rhythm.credit.base import SelectiveCredit, amplify, row_noise, top_tokens
from rhythm.types import AttentionSignals


class RandomCredit(SelectiveCredit):
    """Amplify tokens drawn uniformly from each response, the "random" baseline of arXiv:2510.13554.

    Args:
        top_fraction: q in (0, 1]; ⌈q·n⌉ of a response's n tokens are drawn.
        amplification: γ_amp ≥ 0, the weight of a drawn token.
    """

    seeded = True

    def __init__(self, *, top_fraction: float = 0.4, amplification: float = 1.5):
        super().__init__(top_fraction=top_fraction, amplification=amplification)

    def weights(self, signals: AttentionSignals, mask: Tensor, *, seed: int, rows: list[int]) -> Tensor:
        drawn = top_tokens(row_noise(mask, seed, rows), mask, self.top_fraction)
        return amplify(drawn, self.amplification)
