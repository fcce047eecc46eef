"""Credit that anchors share with the tokens that introduce them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rhythm.credit.base import Select, SelectiveCredit, top_tokens
from rhythm.types import AttentionSignals


class CoupledCredit(SelectiveCredit):
    """Amplify anchors, and pass part of a locally dominated anchor's bonus back: γ_t of Eqs. 18–19 in arXiv:2510.13554.

    An anchor is locally dominated where it looks only nearby itself while a preplan token stands right before it.
    The paper states neither thresholds nor α; ours are the row's median WAAD, the (1 − q) quantile of its drops, and ½.

    Args:
        top_fraction: q in (0, 1]; ⌈q·n⌉ of a response's n tokens with a defined FAI are anchors.
        amplification: γ_amp, the weight of an anchor that keeps its bonus; at least α/(1 + α), so that no weight is
            negative where bonuses meet.
        select: "bottom" makes the lowest FAI the anchors.
        back_allocation: α in [0, 1], the share of a dominated anchor's bonus that goes to its introduction.
        lookback: k ≥ 1, how many tokens before an anchor may introduce it.
        waad_quantile: a dominated anchor's WAAD is at most this quantile of its response's (τ_waad).
        drop_quantile: its introduction's drop is at least this quantile of its response's (τ_Δ); None is 1 − q.
    """

    requires = frozenset({"fai", "waad", "waad_drop"})
    selects_by = frozenset({"fai"})

    def __init__(
        self,
        *,
        top_fraction: float = 0.4,
        amplification: float = 1.5,
        select: Select = "top",
        back_allocation: float = 0.5,
        lookback: int = 3,
        waad_quantile: float = 0.5,
        drop_quantile: float | None = None,
    ):
        super().__init__(top_fraction=top_fraction, amplification=amplification, select=select)
        self.back_allocation = _unit("back_allocation", back_allocation)
        self.waad_quantile = _unit("waad_quantile", waad_quantile)
        self.drop_quantile = _unit("drop_quantile", 1 - top_fraction if drop_quantile is None else drop_quantile)
        if lookback < 1:
            raise ValueError(f"lookback={lookback}: must be at least 1")
        if (1 - amplification) * (1 + back_allocation) > 1:
            raise ValueError(f"amplification={amplification}: must be at least α/(1 + α) in coupled credit")
        self.lookback = lookback

    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        anchors = top_tokens(signals.fai, mask, self.top_fraction, self.select)
        drop, column = largest_before(signals.waad_drop, mask, self.lookback)
        looks_near = signals.waad <= row_quantile(signals.waad, mask, self.waad_quantile)
        introduced = drop >= row_quantile(signals.waad_drop, mask, self.drop_quantile)
        dominated = anchors & looks_near & introduced  # D of Eq. 18

        row, token = dominated.nonzero(as_tuple=True)
        introductions = torch.zeros_like(mask)  # I(D)
        introductions[row, column[row, token]] = True

        bonus, alpha = self.amplification - 1, self.back_allocation
        kept = (anchors & ~dominated).float() + (1 - alpha) * dominated.float()
        return 1 + bonus * (kept + alpha * introductions.float())


def row_quantile(values: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """Return [N, 1] float64, each row's linearly interpolated quantile over its defined tokens; NaN if there are none.

    That of `torch.nanquantile`, but for ranks that rounding has moved off a token: there it is that token's value.
    """
    ordered = values.double().masked_fill(~mask, math.nan).sort(dim=1).values  # NaN last
    rank = quantile * ((~ordered.isnan()).sum(dim=1, keepdim=True) - 1).clamp(min=0).double()
    # 0.28 * 25 is 7.000000000000001 in floats, a rank beyond the token that the threshold must include.
    rank = torch.where((rank - rank.round()).abs() < 1e-9, rank.round(), rank)
    below, above = (ordered.gather(1, place.long()) for place in (rank.floor(), rank.ceil()))
    return below.lerp(above, rank.frac())


def largest_before(values: Tensor, mask: Tensor, lookback: int) -> tuple[Tensor, Tensor]:
    """Find the largest defined value among the `lookback` tokens before each token, ties to the earlier one.

    Args:
        values: [N, T], NaN where undefined.
        mask: [N, T] bool.
        lookback: k ≥ 1.
    Returns:
        Two of [N, T]: the value in float64, −inf where there is none, and its column, meaningless where there is none.
    """
    candidates = values.double().masked_fill(~mask | values.isnan(), -math.inf)
    padded = F.pad(candidates, (lookback, 0), value=-math.inf)
    largest, offset = padded[:, :-1].unfold(1, lookback, 1).max(dim=2)  # over columns t−k .. t−1
    return largest, torch.arange(values.shape[1], device=values.device) - lookback + offset


def _unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must be between 0 and 1")
    return value
