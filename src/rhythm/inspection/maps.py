"""The mean maps of the local and the global heads, Ā^loc and Ā^glob: of a few short responses, to be drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhythm.attention.definitions import SignalSettings
from rhythm.attention.implementation import decoder
from rhythm.attention.probe import LayerInput, attention_probe
from rhythm.attention.signals import evaluating
from rhythm.types import HeadGroups


@torch.no_grad()
def mean_maps(
    model: nn.Module,
    input_ids: Tensor,
    prompt_length: int,
    heads: HeadGroups,
    settings: SignalSettings,
    *,
    most: int = 200,
) -> tuple[Tensor, Tensor]:
    """Ā^loc and Ā^glob of Eq. 8 of arXiv:2510.13554 as WAAD and FAI read them, from one forward pass over one sequence.

    Args:
        input_ids: [S], a prompt and its response, without padding.
        prompt_length: how many tokens of it are the prompt.
        heads: the groups.
        settings: of the signals. With the row "predictor" Ā^loc has for token t the row of t − 1; with the sink dropped
            the rest of every row sums to 1 again.
        most: response tokens that are read, from its first; what stands behind them is not passed to the model.
    Returns:
        Two of [n, n], n ≤ most: the attention of row t to column s among the response's tokens. A row sums to less than
        1 where it looks at the prompt, and is NaN where the sink was all that it could look at.
    """
    ids = input_ids[None, : prompt_length + most]
    response = slice(prompt_length, ids.shape[1])
    before = settings.row == "predictor"
    readings = ((heads.local, slice(response.start - before, response.stop - before)), (heads.global_, response))
    count = ids.shape[1] - prompt_length
    totals = [torch.zeros(count, count, device=ids.device) for _ in readings]

    def listen(layer: LayerInput) -> None:
        for total, (group, rows) in zip(totals, readings, strict=True):
            here = [head for at, head in group if at == layer.layer]
            total += _summed(layer, here, rows, response, dropped=settings.sink == "drop")

    layers = sorted({layer for layer, _ in heads.local + heads.global_})
    with evaluating(model), attention_probe(model, layers, listen):
        decoder(model)(input_ids=ids, use_cache=False)
    near, far = (total / len(group) for total, (group, _) in zip(totals, readings, strict=True))
    return near, far


def _summed(layer: LayerInput, heads: list[int], rows: slice, response: slice, *, dropped: bool) -> Tensor:
    """[n, n], the sum of some heads' maps from n rows to the response's tokens, without the first key where dropped."""
    query, key = layer.query[0].float(), layer.key[0].float()
    shared = query.shape[0] // key.shape[0]
    scale = query.shape[-1] ** -0.5 if layer.scaling is None else layer.scaling
    bias = _bias(layer, rows)
    if dropped:
        bias = F.pad(bias[:, 1:], (1, 0), value=-torch.inf)
    total = query.new_zeros(response.stop - response.start, response.stop - response.start)
    for head in heads:
        scores = query[head, rows] @ key[head // shared].T * scale
        total += (scores + bias).softmax(-1)[:, response]
    return total


def _bias(layer: LayerInput, rows: slice) -> Tensor:
    """[n, S] to add to the scores: −inf where a row may not look."""
    length, device = layer.query.shape[2], layer.query.device
    if layer.mask is None:
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()[rows]
    else:
        seen = layer.mask[0, 0, rows, :length]
    return torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else seen
