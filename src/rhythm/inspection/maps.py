"""The mean maps of the local and the global heads, Ā^loc and Ā^glob: of a few short responses, to be drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rhythm.attention.implementation import decoder
from rhythm.attention.probe import LayerInput, attention_probe
from rhythm.attention.signals import evaluating
from rhythm.types import HeadGroups


@torch.no_grad()
def mean_maps(
    model: nn.Module, input_ids: Tensor, prompt_length: int, heads: HeadGroups, *, most: int = 200
) -> tuple[Tensor, Tensor]:
    """Ā^loc and Ā^glob of Eq. 8 of arXiv:2510.13554, from one forward pass over one sequence, every sink kept.

    Args:
        input_ids: [S], a prompt and its response, without padding.
        prompt_length: how many tokens of it are the prompt.
        heads: the groups.
        most: response tokens that are read, from its first; what stands behind them is not passed to the model.
    Returns:
        Two of [n, n], n ≤ most: the attention of row t to column s among the response's tokens. A row sums to less than
        1 where it looks at the prompt.
    """
    ids = input_ids[None, : prompt_length + most]
    response = slice(prompt_length, ids.shape[1])
    count = ids.shape[1] - prompt_length
    groups = (heads.local, heads.global_)
    totals = [torch.zeros(count, count, device=ids.device) for _ in groups]

    def listen(layer: LayerInput) -> None:
        for total, group in zip(totals, groups, strict=True):
            total += _summed(layer, [head for at, head in group if at == layer.layer], response)

    layers = sorted({layer for group in groups for layer, _ in group})
    with evaluating(model), attention_probe(model, layers, listen):
        decoder(model)(input_ids=ids, use_cache=False)
    near, far = (total / len(group) for total, group in zip(totals, groups, strict=True))
    return near, far


def _summed(layer: LayerInput, heads: list[int], response: slice) -> Tensor:
    """[n, n], the sum of some heads' maps among the response's tokens."""
    query, key = layer.query[0].float(), layer.key[0].float()
    shared = query.shape[0] // key.shape[0]
    scale = query.shape[-1] ** -0.5 if layer.scaling is None else layer.scaling
    total = query.new_zeros(response.stop - response.start, response.stop - response.start)
    for head in heads:
        scores = query[head, response] @ key[head // shared].T * scale
        total += (scores + _bias(layer, response)).softmax(-1)[:, response]
    return total


def _bias(layer: LayerInput, rows: slice) -> Tensor:
    """[n, S] to add to the scores: −inf where a row may not look."""
    length, device = layer.query.shape[2], layer.query.device
    if layer.mask is None:
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()[rows]
    else:
        seen = layer.mask[0, 0, rows, :length]
    return torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else seen
