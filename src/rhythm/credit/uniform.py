"""Plain GRPO."""

import torch
from torch import Tensor

from rhythm.credit.base import CreditStrategy
from rhythm.types import AttentionSignals


class UniformCredit(CreditStrategy):
    """Every token gets its response's advantage as it is: γ_t = 1."""

    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        return torch.ones(mask.shape, device=mask.device)
