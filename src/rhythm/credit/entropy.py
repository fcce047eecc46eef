"""The baseline that needs no attention."""

from torch import Tensor

from rhythm.credit.base import SelectiveCredit, amplify, top_tokens
from rhythm.types import AttentionSignals


class EntropyCredit(SelectiveCredit):
    """Amplify the tokens that the policy was least sure of, the "entropy" baseline of arXiv:2510.13554."""

    requires = frozenset({"entropy"})

    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        forks = top_tokens(signals.entropy, mask, self.top_fraction, self.select)
        return amplify(forks, self.amplification)
