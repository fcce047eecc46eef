"""Global-anchor credit."""

from torch import Tensor

from rhythm.credit.base import SelectiveCredit, amplify, top_tokens
from rhythm.types import AttentionSignals


class AnchorCredit(SelectiveCredit):
    """Amplify the tokens that later tokens keep returning to: γ_t of Eq. 17 in arXiv:2510.13554."""

    requires = frozenset({"fai"})

    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        anchors = top_tokens(signals.fai, mask, self.top_fraction, self.select)
        return amplify(anchors, self.amplification)
