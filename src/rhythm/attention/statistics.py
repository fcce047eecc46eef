"""The statistics of heads from queries and keys, block by block: the map of a layer is never held.

Distance, WAAD, FAI and the rest are linear in attention, so they are reduced per head as blocks of rows come and go,
and averaged over a head group afterwards. `head_statistics` works for any mask on any device; `band_statistics` needs
each row's log-sum-exp and then touches only the band of keys that WAAD and FAI look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rhythm.attention.blocks import (
    BLOCK_ROWS,
    attend,
    attend_band,
    attend_first,
    block_distance,
    block_fai,
    block_received,
    block_waad,
    blocks,
    column_of,
    pick,
)
from rhythm.attention.definitions import SignalSettings, excess_kurtosis, horizon_rows


class HeadStatistics(NamedTuple):
    """The statistics of one layer over the responses of one batch; h counts the heads that were asked for."""

    waad: Tensor  # [B, h, S], NaN outside the response
    fai: Tensor  # [B, h, S], NaN outside the response and where T(s) has fewer than min_rows
    rows: Tensor  # [] int64, rows that the first two sums are over
    distance: Tensor  # [H] float64, Σ over rows of Σ_s A[t,s]·(t−s); divide by `rows` for Eq. 7
    sink: Tensor  # [H] float64, Σ over rows of the attention to the first unpadded key
    kurtosis: Tensor  # [H] float64, Σ over responses of the excess kurtosis of `received`; zero where not asked for
    responses: Tensor  # [H] int64, responses that it is defined for


class RowSums(NamedTuple):
    """What a fused attention kernel knows of each row: [B, H, S] each."""

    logsumexp: Tensor  # of the scaled scores, in nats
    distance: Tensor  # Σ_s A[t,s]·(t−s), in tokens


@torch.no_grad()
def head_statistics(
    query: Tensor,
    key: Tensor,
    response: Tensor,
    settings: SignalSettings,
    *,
    scaling: float | None = None,
    mask: Tensor | None = None,
    local: Sequence[int] | None = None,
    global_: Sequence[int] | None = None,
    receivers: bool = False,
) -> HeadStatistics:
    """Head distance (Eq. 7), WAAD (Eq. 9) and FAI (Eq. 10) of each head, from its queries and keys.

    Softmax is taken in float32 or better. A row that may attend to nothing counts as no response row.

    Args:
        query: [B, H, S, D], after positions are rotated in.
        key: [B, H_kv, S, D]; query head h reads key head h // (H / H_kv).
        response: [B, S] bool, True on response positions.
        settings: window, horizon and what the paper leaves open.
        scaling: factor on the scores; None is 1/√D.
        mask: [B or 1, 1, S, S], bool (True attends) or additive, with a sliding window where there is one; None is
            causal.
        local, global_: the heads to compute WAAD and FAI for; None is all. Distances are of all heads.
        receivers: whether to compute what receiver heads are chosen by.
    """
    batch, heads, length, width = query.shape
    assert key.shape == (batch, key.shape[1], length, width), (query.shape, key.shape)
    assert response.shape == (batch, length), (response.shape, query.shape)

    dtype = torch.promote_types(query.dtype, torch.float32)
    query = query.to(dtype) * (width**-0.5 if scaling is None else scaling)
    key = key.to(dtype).transpose(-1, -2)
    if mask is not None:
        mask = mask.expand(batch, 1, length, length)
    seeing, first = _visible(response, mask)
    dropped = first if settings.sink == "drop" else None
    if dropped is not None:
        seeing = seeing & (torch.arange(length, device=query.device) != first[:, None])
    looking = _looking(response, settings) & seeing  # rows that Eqs. 7 and 9 read
    returning = response & seeing  # rows that Eq. 10 reads
    distance, sink, looked_back = (query.new_zeros(batch, heads, length) for _ in range(3))
    near = query.new_zeros(batch, heads if local is None else len(local), length)
    far = query.new_zeros(batch, heads if global_ is None else len(global_), length)

    with torch.autocast(query.device.type, enabled=False):
        for i, t in blocks(looking | returning, heads, length):
            seen = None if mask is None else mask[i, :, t, : t.stop]
            attention = attend(query[i, :, t], key[i, ..., : t.stop], t, seen, None if dropped is None else dropped[i])
            everything = slice(0, t.stop)
            distance[i, :, t] = block_distance(attention, t)
            sink[i, :, t] = column_of(attention, first[i])
            if near.shape[1]:
                near[i, :, t] = block_waad(pick(attention, local), t, everything, settings.window)
            if far.shape[1]:
                columns, attended = block_fai(
                    pick(attention, global_), returning[i, t], t, everything, settings.horizon
                )
                far[i, :, columns] += attended
            if receivers:
                looked_back[i, :, everything] += block_received(attention, returning[i], t, settings.receiver_gap)

    kurtosis = distance.new_full((batch, heads), torch.nan)
    if receivers:
        kurtosis = _received_kurtosis(looked_back, returning, settings.receiver_gap)
    return _statistics(distance, sink, near, far, kurtosis, looking, returning, response, settings)


@torch.no_grad()
def band_statistics(
    query: Tensor,
    key: Tensor,
    response: Tensor,
    settings: SignalSettings,
    sums: RowSums,
    *,
    scaling: float | None = None,
    local: Sequence[int] | None = None,
    global_: Sequence[int] | None = None,
) -> HeadStatistics:
    """The same as `head_statistics` for causal attention without a mask, from rows whose sums are known already.

    With the log-sum-exp at hand WAAD needs the keys of its window and FAI those of its horizon, so the cost grows with
    the length and not with its square. The horizon must be finite and the sink kept. The rounding of the log-sum-exp L
    moves WAAD by up to W·|L|·2⁻²⁴, so keep W small.

    Args:
        sums: each row's log-sum-exp and distance, from the kernel that computed the attention.
    """
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    looking = _looking(response, settings)
    near = query.new_zeros(batch, heads if local is None else len(local), length)
    far = query.new_zeros(batch, heads if global_ is None else len(global_), length)
    reach = settings.horizon[1]
    for i, t in blocks(looking | response, heads, BLOCK_ROWS + reach):
        if near.shape[1]:
            columns = slice(max(0, t.start - settings.window + 1), t.stop)
            attention = attend_band(query, key, sums.logsumexp, i, t, columns, local, scale)
            near[i, :, t] = block_waad(attention, t, columns, settings.window)
            if columns.start:  # what lies before the band
                near[i, :, t] += settings.window * (1 - attention.sum(-1)).clamp(min=0)
        if far.shape[1]:
            columns = slice(max(0, t.start - reach), t.stop)
            attention = attend_band(query, key, sums.logsumexp, i, t, columns, global_, scale)
            columns, attended = block_fai(attention, response[i, t], t, columns, settings.horizon)
            far[i, :, columns] += attended
    sink = attend_first(query, key, sums.logsumexp, scale)
    kurtosis = query.new_full((batch, heads), torch.nan)
    return _statistics(sums.distance, sink, near, far, kurtosis, looking, response, response, settings)


def _statistics(
    distance: Tensor,
    sink: Tensor,
    near: Tensor,
    far: Tensor,
    kurtosis: Tensor,
    looking: Tensor,
    returning: Tensor,
    response: Tensor,
    settings: SignalSettings,
) -> HeadStatistics:
    """Sums over rows, and the signals of tokens where they are defined."""
    rows = looking[:, None]
    total, mass = (values.where(rows, 0.0).sum((0, 2), dtype=torch.float64) for values in (distance, sink))
    near = near.where(rows, torch.nan)
    if settings.row == "predictor":  # token t has the row of t − 1
        near = F.pad(near, (1, 0), value=torch.nan)[..., :-1]
    near = near.where(response[:, None], torch.nan)
    counts = horizon_rows(returning, settings.horizon)
    far = (far / counts[:, None]).where((returning & (counts >= settings.min_rows))[:, None], torch.nan)
    return HeadStatistics(
        distance=total,
        sink=mass,
        rows=looking.sum(),
        waad=near,
        fai=far,
        kurtosis=kurtosis.nan_to_num(0.0).sum(0),
        responses=(~kurtosis.isnan()).sum(0),
    )


def _visible(response: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows may attend to something, [B, S], and each sequence's first unpadded key, [B]."""
    if mask is None:
        return torch.ones_like(response), response.new_zeros(len(response), dtype=torch.long)
    open_ = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min)[:, 0]
    return open_.any(-1), open_.diagonal(dim1=-2, dim2=-1).int().argmax(-1)


def _looking(response: Tensor, settings: SignalSettings) -> Tensor:
    """The rows that Eqs. 7 and 9 read, [B, S]: those of the response's tokens or of the tokens before them."""
    return response if settings.row == "token" else F.pad(response, (0, 1))[:, 1:]


def _received_kurtosis(looked_back: Tensor, rows: Tensor, gap: int) -> Tensor:
    """Excess kurtosis [B, H] of the column means, over the response tokens with some row far enough behind them."""
    counts = horizon_rows(rows, (gap, None))
    means = (looked_back / counts[:, None]).where((rows & (counts > 0))[:, None], torch.nan)
    return excess_kurtosis(means)
