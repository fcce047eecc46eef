"""Local-chunk credit."""

from torch import Tensor

from rhythm.credit.base import SelectiveCredit, amplify, top_tokens
from rhythm.types import AttentionSignals


class PreplanCredit(SelectiveCredit):
    """Amplify the tokens at which a chunk of text ends and the next is planned: γ_t of Eq. 15 in arXiv:2510.13554."""

    requires = frozenset({"waad_drop"})

    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        preplans = top_tokens(signals.waad_drop, mask, self.top_fraction, self.select)
        return amplify(preplans, self.amplification)
