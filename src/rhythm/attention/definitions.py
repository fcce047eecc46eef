"""What a map of attention says about heads and tokens: Eqs. 7, 9, 10 and 14 of arXiv:2510.13554, on whole maps.

These functions state the definitions; `statistics` computes the same from queries and keys without a map. t is the
query's position, s ≤ t the key's, R the response rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Horizon = tuple[int, int | None]  # H_lo, H_hi in tokens; None runs to the end of the response
Row = Literal["token", "predictor"]
Sink = Literal["keep", "drop"]

RECEIVER_GAP = 4  # tokens; nearer rows are no sign that a token is returned to


@dataclass(frozen=True)
class SignalSettings:
    """What the paper leaves open about its signals, and our defaults.

    Args:
        window: W of WAAD, Eq. 9, in tokens.
        horizon: (H_lo, H_hi) of FAI, Eq. 10, in tokens; H_hi None runs to the end of the response.
        row: whose attention row Eqs. 7 and 9 read for token t. "token" is row t, as they are written; "predictor" is
            row t − 1, which produced the token, with distances from t − 1. FAI is the same under both.
        sink: "drop" leaves the first unpadded key out of every row, and the rest of the row sums to 1 again.
        min_rows: FAI is undefined where T(s) has fewer rows.
        receiver_gap: rows nearer than so many tokens are no sign that a token is returned to; see `received`.
    """

    window: int = 10
    horizon: Horizon = (10, 100)
    row: Row = "token"
    sink: Sink = "keep"
    min_rows: int = 1
    receiver_gap: int = RECEIVER_GAP

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", tuple(self.horizon))
        for name in ("window", "min_rows", "receiver_gap"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name}={getattr(self, name)}: takes a whole number")
        if len(self.horizon) != 2 or not all(isinstance(end, Integral | None) for end in self.horizon):
            raise ValueError(f"horizon={self.horizon}: FAI takes whole numbers of tokens, (low, high) or (low, None)")
        low, high = self.horizon
        if self.window < 1:
            raise ValueError(f"window={self.window}: the window of WAAD is at least 1 token")
        if low is None or low < 0 or (high is not None and high < low):
            raise ValueError(f"horizon={self.horizon}: FAI takes (low, high) with 0 <= low <= high, or (low, None)")
        if self.min_rows < 1:
            raise ValueError(f"min_rows={self.min_rows}: a mean takes at least 1 row")
        if self.receiver_gap < 0:
            raise ValueError(f"receiver_gap={self.receiver_gap}: a distance in tokens is at least 0")
        for name, value, options in (("row", self.row, get_args(Row)), ("sink", self.sink, get_args(Sink))):
            if value not in options:
                raise ValueError(f"{name}={value!r}: use one of {', '.join(options)}")


def head_distance(attention: Tensor, rows: slice | Tensor) -> Tensor:
    """Mean attention distance, Eq. 7: the mean over t ∈ R of Σ_{s≤t} A[t,s]·(t−s).

    Args:
        attention: [..., S, S] causal rows that sum to 1.
        rows: the response positions R, a slice or a bool mask [..., S].
    Returns:
        [...] float64, in tokens; NaN where R is empty.
    """
    gaps = _gaps(attention)
    rows = _row_mask(rows, attention)
    distance = (attention.double() * gaps.clamp(min=0)).sum(-1)
    return torch.where(rows, distance, 0.0).sum(-1) / rows.sum(-1)


def waad(attention: Tensor, window: int) -> Tensor:
    """Windowed average attention distance, Eq. 9.

    WAAD_t = Σ_{s≤t} A[t,s]·min(t−s, W).

    Args:
        attention: [..., S, S] causal rows that sum to 1.
        window: W ≥ 1, in tokens.
    Returns:
        [..., S], in tokens, between 0 and W, for every row; the caller masks what is no response.
    """
    return (attention * _gaps(attention).clamp(min=0, max=window)).sum(-1)


def fai(attention: Tensor, rows: slice | Tensor, horizon: Horizon) -> Tensor:
    """Future attention influence, Eq. 10: the mean of A[t,s] over T(s) = {t ∈ R : s+H_lo ≤ t ≤ s+H_hi}.

    Near the end of the response T(s) is cut short, and the mean is over the rows that exist.

    Args:
        attention: [..., S, S] causal rows that sum to 1.
        rows: the response positions R, a slice or a bool mask [..., S].
        horizon: (H_lo, H_hi) in tokens; H_hi None runs to the end of the response.
    Returns:
        [..., S] for every column, NaN where T(s) is empty; the caller masks what is no response.
    """
    rows = _row_mask(rows, attention)
    total = (attention * (within(_gaps(attention), horizon) & rows[..., None])).sum(-2)
    return total / horizon_rows(rows, horizon)  # 0/0 is NaN


def waad_drop(waad: Tensor, mask: Tensor) -> Tensor:
    """Change of WAAD from a token to the next, Eq. 14: Δ_t = |WAAD_t − WAAD_{t+1}|.

    Args:
        waad: [..., S], in tokens.
        mask: [..., S] bool, True on response tokens.
    Returns:
        [..., S], NaN outside the mask and at a response's last token, which has no next one.
    """
    assert waad.shape == mask.shape, (waad.shape, mask.shape)
    drop = torch.full_like(waad, torch.nan)
    both = mask[..., :-1] & mask[..., 1:]
    drop[..., :-1] = torch.where(both, (waad[..., :-1] - waad[..., 1:]).abs(), torch.nan)
    return drop


def received(attention: Tensor, rows: slice | Tensor, gap: int = RECEIVER_GAP) -> Tensor:
    """How much each response token is looked back at: its column's mean, rows scaled by how many keys they choose from.

    Rows far into a response spread over more keys; scaled, an even row counts 1 at every depth. After Bogdan et al.
    2025, arXiv:2506.19143, who do this sentence by sentence.

    Args:
        attention: [..., S, S] causal rows that sum to 1.
        rows: the response positions R, a slice or a bool mask [..., S].
        gap: rows nearer than this many tokens do not count.
    Returns:
        [..., S], NaN outside R and where no row of R is far enough.
    """
    rows = _row_mask(rows, attention)
    counted = within(_gaps(attention), (gap, None)) & rows[..., None] & rows[..., None, :]
    depth = counted.sum(-1, keepdim=True)
    return (attention * counted * depth).sum(-2) / counted.sum(-2)


def excess_kurtosis(values: Tensor) -> Tensor:
    """m₄/m₂² − 3 over the defined values of the last dimension, float64; NaN where fewer than 4 are, or all equal."""
    values = values.double()
    defined = ~values.isnan()
    count = defined.sum(-1, keepdim=True)
    centred = torch.where(defined, values - values.nanmean(-1, keepdim=True), 0.0)
    second, fourth = (centred.pow(power).sum(-1, keepdim=True) / count for power in (2, 4))
    return torch.where((count >= 4) & (second > 0), fourth / second.square() - 3, torch.nan)[..., 0]


def within(gaps: Tensor, horizon: Horizon) -> Tensor:
    """True where a gap t − s lies in the horizon."""
    low, high = horizon
    return gaps >= low if high is None else (gaps >= low) & (gaps <= high)


def horizon_rows(rows: Tensor, horizon: Horizon) -> Tensor:
    """Size of T(s) for every column: [..., S] int64 from response rows [..., S]."""
    length = rows.shape[-1]
    low, high = horizon
    before = F.pad(rows.cumsum(-1), (1, 0))  # rows before a position, [..., S + 1]
    position = torch.arange(length, device=rows.device)
    stop = (position + (length if high is None else high) + 1).clamp(max=length)
    return before[..., stop] - before[..., (position + low).clamp(max=length)]


def tile(t: slice, s: slice, device: torch.device) -> Tensor:
    """Gaps t − s between the positions of two slices, [t, s]."""
    return torch.arange(t.start, t.stop, device=device)[:, None] - torch.arange(s.start, s.stop, device=device)


def _gaps(attention: Tensor) -> Tensor:
    assert attention.shape[-1] == attention.shape[-2], attention.shape
    everything = slice(0, attention.shape[-1])
    return tile(everything, everything, attention.device)


def _row_mask(rows: slice | Tensor, attention: Tensor) -> Tensor:
    """Response rows as a bool mask [..., S]."""
    length = attention.shape[-1]
    if isinstance(rows, slice):
        mask = torch.zeros(length, dtype=torch.bool, device=attention.device)
        mask[rows] = True
        return mask
    assert rows.shape[-1] == length, (rows.shape, attention.shape)
    return rows
