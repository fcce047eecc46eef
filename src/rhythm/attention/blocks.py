"""Blocks of query rows: their attention, and what a block adds to distance, WAAD, FAI and the rest.

t and s are slices of query positions and of keys; i is a slice of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rhythm.attention.definitions import Horizon, tile, within

BLOCK_ROWS = 64  # query positions handled at once, at least
BLOCK_ELEMENTS_CPU = 2**19  # of a block of attention, so that it stays in the cache: half the time of whole layers
BLOCK_ELEMENTS = 2**26  # the same on an accelerator, where launches count and caches do not


def blocks(rows: Tensor, heads: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and of query positions that cover all marked rows, [B, S], in blocks of a bounded size."""
    batch, length = rows.shape
    position = torch.arange(length, device=rows.device)
    first = torch.where(rows, position, length).amin(-1).tolist()
    stop = torch.where(rows, position + 1, 0).amax(-1).tolist()
    count, size = block_size(heads, length, columns, on_cpu=rows.device.type == "cpu")
    for low in range(0, batch, count):
        i = slice(low, min(low + count, batch))
        last = max(stop[i])
        for start in range(min(first[i]), last, size):
            yield i, slice(start, min(start + size, last))


def block_size(heads: int, length: int, columns: int, *, on_cpu: bool) -> tuple[int, int]:
    """How many sequences and query positions of them a block holds: on an accelerator, first as many positions."""
    elements = BLOCK_ELEMENTS_CPU if on_cpu else BLOCK_ELEMENTS
    size = min(length, BLOCK_ROWS if on_cpu else max(BLOCK_ROWS, elements // (heads * columns)))
    return max(1, elements // (heads * size * columns)), size


def attend(query: Tensor, key: Tensor, t: slice, mask: Tensor | None, dropped: Tensor | None) -> Tensor:
    """Attention [b, H, t, s] of a block's scaled queries [b, H, t, D] to the keys [b, H_kv, D, s] up to its end.

    mask: [b, 1, t, s] bool or additive; None is causal. dropped: [b], a key of each sequence that nobody sees, or None.
    """
    batch, heads, count, width = query.shape
    columns = key.shape[-1]
    shared = query.reshape(batch, key.shape[1], -1, width)  # the heads that share a key stand below each other
    scores = (shared @ key).view(batch, heads, count, columns)
    lowest = torch.finfo(scores.dtype).min  # finite: a row that sees nothing must not turn into NaN
    if mask is None:
        mask = tile(t, slice(0, columns), query.device) >= 0
    if mask.dtype == torch.bool:
        bias = scores.new_zeros(()).where(mask, lowest)
    else:
        bias = mask.to(scores.dtype).clamp(min=lowest)
    scores.add_(bias)
    if dropped is not None:
        is_dropped = torch.arange(columns, device=query.device) == dropped[:, None]
        scores.masked_fill_(is_dropped[:, None, None], lowest)
    return scores.softmax(-1)


def attend_band(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    i: slice,
    t: slice,
    columns: slice,
    heads: Sequence[int] | None,
    scale: float,
) -> Tensor:
    """Attention [b, h, t, s] of some rows and heads to a band of keys."""
    chosen = range(query.shape[1]) if heads is None else heads
    group = query.shape[1] // key.shape[1]
    rows = torch.stack([query[i, h, t] for h in chosen], 1)
    keys = torch.stack([key[i, h // group, columns] for h in chosen], 1)
    scores = (rows * scale) @ keys.transpose(-1, -2)
    scores -= torch.stack([logsumexp[i, h, t] for h in chosen], 1)[..., None]
    return scores.exp_().masked_fill_(tile(t, columns, query.device) < 0, 0.0)


def attend_first(query: Tensor, key: Tensor, logsumexp: Tensor, scale: float) -> Tensor:
    """Attention [B, H, S] of every row to the first key."""
    group = query.shape[1] // key.shape[1]
    first = key[:, :, :1].repeat_interleave(group, 1).transpose(-1, -2)  # [B, H, D, 1]
    return ((query @ first)[..., 0] * scale - logsumexp).exp()


def block_distance(attention: Tensor, t: slice) -> Tensor:
    """Mean distance [b, H, t] of a block's rows, as (t − c) + Σ_s A[t,s]·(c − s).

    c is where the block starts, so that a near head's distance is no difference of large positions.
    """
    to_start = t.start - torch.arange(t.stop, device=attention.device, dtype=attention.dtype)
    return attention @ to_start - to_start[t]


def column_of(attention: Tensor, column: Tensor) -> Tensor:
    """One column of each sequence, [b, H, t], of [b, H, t, s] and [b]; zero where a block does not reach it."""
    inside = column < attention.shape[-1]
    index = column.clamp(max=attention.shape[-1] - 1)[:, None, None, None].expand(*attention.shape[:3], 1)
    return attention.gather(-1, index)[..., 0] * inside[:, None, None]


def block_waad(attention: Tensor, t: slice, columns: slice, window: int) -> Tensor:
    """WAAD [b, h, t] of a block: distances in the band of the window, and W for the columns before it.

    The shorter W − Σ_{d<W} (W−d)·A[t,t−d] would cancel digits where W is large and WAAD small.
    """
    start = max(columns.start, t.start - window + 1)
    gaps = tile(t, slice(start, t.stop), attention.device).clamp(min=0, max=window)
    band, before = attention[..., start - columns.start :], attention[..., : start - columns.start]
    return (band * gaps.to(attention.dtype)).sum(-1) + window * before.sum(-1)


def block_fai(attention: Tensor, rows: Tensor, t: slice, columns: slice, horizon: Horizon) -> tuple[slice, Tensor]:
    """Columns with some row of the block in their horizon, and the attention that the response rows [b, t] pay them."""
    low, high = horizon
    stop = max(0, t.stop - low)
    chosen = slice(0 if high is None else min(stop, max(0, t.start - high)), stop)
    inside = within(tile(t, chosen, attention.device), horizon).to(attention.dtype)
    counted = inside * rows[..., None].to(attention.dtype)
    attended = attention[..., chosen.start - columns.start : chosen.stop - columns.start]
    return chosen, (attended * counted[:, None]).sum(-2)


def block_received(attention: Tensor, rows: Tensor, t: slice, gap: int) -> Tensor:
    """What the response rows of a block pay each column [b, H, s], scaled by how many columns each row may choose."""
    counted = within(tile(t, slice(0, t.stop), attention.device), (gap, None))
    counted = counted & rows[:, t, None] & rows[:, None, : t.stop]
    weight = (counted * counted.sum(-1, keepdim=True)).to(attention.dtype)
    return (attention * weight[:, None]).sum(-2)


def pick(attention: Tensor, heads: Sequence[int] | None) -> Tensor:
    """Some heads of [b, H, t, s]. Stacked from views, since indexing with a list copies four times slower."""
    return attention if heads is None else torch.stack([attention[:, h] for h in heads], 1)
