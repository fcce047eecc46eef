"""What a map of attention says about heads and tokens: Eq. 7, 9, 10 and 14 of arXiv:2510.13554.

The dense functions take whole maps and state the definitions. `head_statistics` computes the same from queries and keys
without ever holding the map of a layer: all three statistics are linear in A, so they are reduced block by block, per
head, and averaged over a head group afterwards. t is the query's position, s ≤ t the key's, R the response rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Horizon = tuple[int, int | None]  # H_lo, H_hi in tokens; None runs to the end of the response

BLOCK_ROWS = 64  # query positions handled at once
BLOCK_ELEMENTS_CPU = 2**19  # of a block of attention, so that it stays in the cache: half the time of whole layers
BLOCK_ELEMENTS = 2**26  # the same on an accelerator, where launches count and caches do not


class HeadStatistics(NamedTuple):
    """The statistics of one layer over the response rows of one batch; h counts the heads that were asked for."""

    distance: Tensor  # [H] float64, Σ over rows of Σ_s A[t,s]·(t−s); divide by `rows` for Eq. 7
    rows: Tensor  # [] int64, response rows summed over
    waad: Tensor  # [B, h, S], NaN outside the response
    fai: Tensor  # [B, h, S], NaN outside the response and where T(s) is empty


def check_settings(window: int, horizon: Horizon) -> None:
    """Refuse a window or a horizon that defines nothing."""
    low, high = horizon
    if window < 1:
        raise ValueError(f"window={window}: the window of WAAD is at least 1 token")
    if low < 0 or (high is not None and high < low):
        raise ValueError(f"horizon={tuple(horizon)}: FAI takes (low, high) with 0 <= low <= high, or (low, None)")


def head_distance(attention: Tensor, rows: slice | Tensor) -> Tensor:
    """Mean attention distance, Eq. 7: the mean over t ∈ R of Σ_{s≤t} A[t,s]·(t−s).

    Args:
        attention: [..., S, S] causal rows that sum to 1.
        rows: the response positions R, a slice or a bool mask [..., S].
    Returns:
        [...] float64, in tokens; NaN where R is empty.
    """
    gaps = _gaps(_square(attention), attention.device)
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
    gaps = _gaps(_square(attention), attention.device)
    return (attention * gaps.clamp(min=0, max=window)).sum(-1)


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
    gaps = _gaps(_square(attention), attention.device)
    rows = _row_mask(rows, attention)
    total = (attention * (_within(gaps, horizon) & rows[..., None])).sum(-2)
    return total / _horizon_rows(rows, horizon)  # 0/0 is NaN


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


@torch.no_grad()
def head_statistics(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    window: int,
    horizon: Horizon,
    scaling: float | None = None,
    mask: Tensor | None = None,
    local: Sequence[int] | None = None,
    global_: Sequence[int] | None = None,
) -> HeadStatistics:
    """Head distance (Eq. 7), WAAD (Eq. 9) and FAI (Eq. 10) of each head, from its queries and keys.

    Softmax is taken in float32 or better. A row that may attend to nothing counts as no response row.

    Args:
        query: [B, H, S, D], after positions are rotated in.
        key: [B, H_kv, S, D]; query head h reads key head h // (H / H_kv).
        rows: [B, S] bool, True on response positions.
        window, horizon: as in `waad` and `fai`.
        scaling: factor on the scores; None is 1/√D.
        mask: [B or 1, 1, S, S], bool (True attends) or additive, with a sliding window where there is one; None is
            causal.
        local, global_: the heads to compute WAAD and FAI for; None is all. Distances are of all heads.
    """
    batch, heads, length, width = query.shape
    assert key.shape == (batch, key.shape[1], length, width), (query.shape, key.shape)
    assert rows.shape == (batch, length), (rows.shape, query.shape)

    dtype = torch.promote_types(query.dtype, torch.float32)
    query = query.to(dtype) * (width**-0.5 if scaling is None else scaling)
    key = key.to(dtype).transpose(-1, -2)
    if mask is not None:
        mask = mask.expand(batch, 1, length, length)
        rows = rows & _open(mask).any(-1)[:, 0]
    distance = query.new_zeros(batch, heads, length)
    near = query.new_zeros(batch, heads if local is None else len(local), length)
    far = query.new_zeros(batch, heads if global_ is None else len(global_), length)

    with torch.autocast(query.device.type, enabled=False):
        for i, t in _blocks(rows, heads):
            seen = None if mask is None else mask[i, :, t, : t.stop]
            attention = _attend(query[i, :, t], key[i, ..., : t.stop], t, seen)
            distance[i, :, t] = _block_distance(attention, t)
            if near.shape[1]:
                near[i, :, t] = _block_waad(_pick(attention, local), t, window)
            if far.shape[1]:
                columns, attended = _block_fai(_pick(attention, global_), rows[i, t], t, horizon)
                far[i, :, columns] += attended

    inside = rows[:, None]
    total = distance.where(inside, 0.0).sum((0, 2), dtype=torch.float64)
    far /= _horizon_rows(rows, horizon)[:, None]
    return HeadStatistics(total, rows.sum(), near.where(inside, torch.nan), far.where(inside, torch.nan))


def _blocks(rows: Tensor, heads: int) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and of query positions that cover all response rows, [B, S], in blocks of a bounded size."""
    batch, length = rows.shape
    position = torch.arange(length, device=rows.device)
    first = torch.where(rows, position, length).amin(-1).tolist()
    stop = torch.where(rows, position + 1, 0).amax(-1).tolist()
    elements = BLOCK_ELEMENTS_CPU if rows.device.type == "cpu" else BLOCK_ELEMENTS
    count = max(1, elements // (heads * min(BLOCK_ROWS, length) * length))
    for low in range(0, batch, count):
        i = slice(low, min(low + count, batch))
        last = max(stop[i])
        for start in range(min(first[i]), last, BLOCK_ROWS):
            yield i, slice(start, min(start + BLOCK_ROWS, last))


def _attend(query: Tensor, key: Tensor, t: slice, mask: Tensor | None) -> Tensor:
    """Attention [b, H, t, s] of a block's scaled queries [b, H, t, D] to the keys [b, H_kv, D, s] up to its end.

    mask: [b, 1, t, s] bool or additive; None is causal.
    """
    batch, heads, count, width = query.shape
    columns = key.shape[-1]
    shared = query.reshape(batch, key.shape[1], -1, width)  # the heads that share a key stand below each other
    scores = (shared @ key).view(batch, heads, count, columns)
    lowest = torch.finfo(scores.dtype).min  # finite: a row that sees nothing must not turn into NaN
    if mask is None:
        mask = _tile(t, slice(0, columns), query.device) >= 0
    if mask.dtype == torch.bool:
        bias = scores.new_zeros(()).where(mask, lowest)
    else:
        bias = mask.to(scores.dtype).clamp(min=lowest)
    return scores.add_(bias).softmax(-1)


def _block_distance(attention: Tensor, t: slice) -> Tensor:
    """Mean distance [b, H, t] of a block's rows, as (t − c) + Σ_s A[t,s]·(c − s).

    c is where the block starts, so that a near head's distance is no difference of large positions.
    """
    to_start = t.start - torch.arange(t.stop, device=attention.device, dtype=attention.dtype)
    return attention @ to_start - to_start[t]


def _block_waad(attention: Tensor, t: slice, window: int) -> Tensor:
    """WAAD [b, h, t] of a block: distances in the band of the window, and W for all that lies before it.

    The shorter W − Σ_{d<W} (W−d)·A[t,t−d] would cancel digits where W is large and WAAD small.
    """
    start = max(0, t.start - window + 1)
    distance = _tile(t, slice(start, t.stop), attention.device).clamp(min=0, max=window)
    return (attention[..., start:] * distance.to(attention.dtype)).sum(-1) + window * attention[..., :start].sum(-1)


def _block_fai(attention: Tensor, rows: Tensor, t: slice, horizon: Horizon) -> tuple[slice, Tensor]:
    """Columns with some row of the block in their horizon, and the attention that its response rows [b, t] pay them."""
    low, high = horizon
    stop = max(0, t.stop - low)
    columns = slice(0 if high is None else min(stop, max(0, t.start - high)), stop)
    within = _within(_tile(t, columns, attention.device), horizon).to(attention.dtype)
    counted = within * rows[..., None].to(attention.dtype)
    return columns, (attention[..., columns] * counted[:, None]).sum(-2)


def _open(mask: Tensor) -> Tensor:
    """True where a bool or additive attention mask lets a row see a column."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def _pick(attention: Tensor, heads: Sequence[int] | None) -> Tensor:
    """Some heads of [b, H, t, s]. Stacked from views, since indexing with a list copies four times slower."""
    return attention if heads is None else torch.stack([attention[:, h] for h in heads], 1)


def _tile(t: slice, s: slice, device: torch.device) -> Tensor:
    """Distances t − s, [t, s]."""
    return torch.arange(t.start, t.stop, device=device)[:, None] - torch.arange(s.start, s.stop, device=device)


def _gaps(length: int, device: torch.device) -> Tensor:
    return _tile(slice(0, length), slice(0, length), device)


def _within(gaps: Tensor, horizon: Horizon) -> Tensor:
    low, high = horizon
    return gaps >= low if high is None else (gaps >= low) & (gaps <= high)


def _horizon_rows(rows: Tensor, horizon: Horizon) -> Tensor:
    """Size of T(s) for every column: [..., S] int64 from response rows [..., S]."""
    length = rows.shape[-1]
    low, high = horizon
    before = F.pad(rows.cumsum(-1), (1, 0))  # rows before a position, [..., S + 1]
    position = torch.arange(length, device=rows.device)
    stop = (position + (length if high is None else high) + 1).clamp(max=length)
    return before[..., stop] - before[..., (position + low).clamp(max=length)]


def _square(attention: Tensor) -> int:
    assert attention.shape[-1] == attention.shape[-2], attention.shape
    return attention.shape[-1]


def _row_mask(rows: slice | Tensor, attention: Tensor) -> Tensor:
    """Response rows as a bool mask [..., S]."""
    length = attention.shape[-1]
    if isinstance(rows, slice):
        mask = torch.zeros(length, dtype=torch.bool, device=attention.device)
        mask[rows] = True
        return mask
    assert rows.shape[-1] == length, (rows.shape, attention.shape)
    return rows
