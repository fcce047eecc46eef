"""What attention says about responses under several choices of layers at once, in two passes whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rhythm.attention.definitions import SignalSettings, waad_drop
from rhythm.attention.heads import HeadSums, receiver_heads
from rhythm.attention.implementation import decoder
from rhythm.attention.probe import LayerInput, attention_probe
from rhythm.attention.signals import head_sums
from rhythm.attention.statistics import head_statistics
from rhythm.scoring import MicroBatch, micro_batches, score, to_completion
from rhythm.types import Head, HeadGroups, Rollout


@dataclass(frozen=True)
class Selection:
    """The heads of some layers, in groups that were made among them alone."""

    heads: HeadGroups
    receivers: list[Head]  # receiver heads; none where no response was long enough to tell

    @property
    def layers(self) -> set[int]:
        return {layer for layer, _ in self.heads.local + self.heads.global_ + self.receivers}


@dataclass(frozen=True)
class Signals:
    """[N, T] each, NaN where undefined."""

    waad: Tensor  # tokens, over the local heads
    fai: Tensor  # attention, over the global heads
    receiver_fai: Tensor  # attention, over the receiver heads; NaN where there are none

    def waad_drop(self, mask: Tensor) -> Tensor:
        """[N, T], of WAAD; Eq. 14 of arXiv:2510.13554."""
        return waad_drop(self.waad, mask)


@dataclass(frozen=True)
class Reading:
    """What a policy's attention says about N responses."""

    entropy: Tensor  # [N, T] nats, NaN outside the responses
    halves: tuple[HeadSums, HeadSums]  # over every other response: how alike they are says how sure the groups are
    selections: dict[str, Selection]
    signals: dict[str, Signals]  # of each selection

    @property
    def sums(self) -> HeadSums:
        return pooled(self.halves)


def read(
    model: nn.Module,
    rollout: Rollout,
    layers: dict[str, list[int]],
    settings: SignalSettings,
    *,
    head_fraction: float = 0.3,
    receiver_fraction: float = 0.3,
    temperature: float = 1.0,
    micro_batch_size: int = 16,
) -> Reading:
    """Groups the heads of each choice of layers by what all responses say, then reads the signals of every choice.

    Args:
        layers: name -> 0-based layers.
        head_fraction: share of the heads in the local and in the global group; receiver_fraction: of receiver heads.
        temperature: that entropies are told at; of sampling.
    Raises:
        ValueError: the model's attention cannot be read.
    """
    rows = torch.arange(len(rollout.completions), device=rollout.input_ids.device)
    every = sorted({layer for chosen in layers.values() for layer in chosen})
    halves = tuple(_sums(model, rollout, rows[i::2], every, settings, micro_batch_size) for i in (0, 1))
    fractions = (head_fraction, receiver_fraction)
    selections = {name: select(pooled(halves), chosen, *fractions) for name, chosen in layers.items()}
    signals = {
        name: Signals(*(torch.full(rollout.completion_mask.shape, torch.nan, device=rows.device) for _ in range(3)))
        for name in selections
    }

    @contextmanager
    def around(batch: MicroBatch) -> Iterator[None]:
        found = {name: torch.zeros(3, *batch.input_ids.shape, device=rows.device) for name in selections}
        chosen = sorted(set().union(*(selection.layers for selection in selections.values())))
        with attention_probe(model, chosen, lambda layer: _listen(layer, batch, selections, settings, found)):
            yield
        for name, values in found.items():
            _keep(signals[name], values, batch)

    _, entropy = score(model, rollout, micro_batch_size=micro_batch_size, temperature=temperature, around=around)
    return Reading(entropy, halves, selections, signals)


def pooled(parts: Iterable[HeadSums]) -> HeadSums:
    return sum((part for part in parts if part.rows), HeadSums())


def select(sums: HeadSums, layers: list[int], head_fraction: float, receiver_fraction: float) -> Selection:
    """Local, global and receiver heads among those of some layers."""
    tables = (
        {layer: of[layer] for layer in layers} for of in (sums.distance, sums.sink, sums.kurtosis, sums.responses)
    )
    among = HeadSums(sums.rows, *tables)
    told = all(counts.all() for counts in among.responses.values())
    receivers = receiver_heads(among.mean_kurtosis(), receiver_fraction) if told else []
    return Selection(among.groups("distance", head_fraction), receivers)


@torch.no_grad()
def _sums(
    model: nn.Module, rollout: Rollout, rows: Tensor, layers: list[int], settings: SignalSettings, size: int
) -> HeadSums:
    total = HeadSums()
    for batch in micro_batches(rollout, rows, size) if len(rows) else ():  # of one response the second half is empty
        found = {}

        def listen(layer: LayerInput, batch: MicroBatch = batch, found: dict = found) -> None:
            found[layer.layer] = _statistics(layer, batch, settings, [], [], receivers=True)

        with attention_probe(model, layers, listen):
            decoder(model)(input_ids=batch.input_ids, use_cache=False)
        total += head_sums(found)
    return total


def _listen(
    layer: LayerInput,
    batch: MicroBatch,
    selections: dict[str, Selection],
    settings: SignalSettings,
    found: dict[str, Tensor],
) -> None:
    """Adds this layer's part to the means over head groups, [3, n, s] of each selection."""
    groups = {
        name: [
            [head for at, head in group if at == layer.layer]
            for group in (selection.heads.local, selection.heads.global_, selection.receivers)
        ]
        for name, selection in selections.items()
    }
    near = sorted({head for local, _, _ in groups.values() for head in local})
    far = sorted({head for _, *both in groups.values() for group in both for head in group})
    statistics = _statistics(layer, batch, settings, near, far)
    for name, members in groups.items():
        selection = selections[name]
        sizes = (len(selection.heads.local), len(selection.heads.global_), len(selection.receivers))
        tables = ((statistics.waad, near), (statistics.fai, far), (statistics.fai, far))
        for i, (heads, size, (values, order)) in enumerate(zip(members, sizes, tables, strict=True)):
            if not size:
                found[name][i] = torch.nan
            elif heads:
                found[name][i] += values[:, [order.index(head) for head in heads]].sum(1) / size


def _statistics(layer: LayerInput, batch: MicroBatch, settings: SignalSettings, local, global_, receivers=False):
    return head_statistics(
        layer.query,
        layer.key,
        batch.completion_columns,
        settings,
        scaling=layer.scaling,
        mask=layer.mask,
        local=local,
        global_=global_,
        receivers=receivers,
    )


def _keep(signals: Signals, values: Tensor, batch: MicroBatch) -> None:
    """Moves [3, n, s] of a micro-batch to where its completions stand, [N, T]."""
    length = batch.completion_mask.shape[1]
    for target, of_columns in zip(vars(signals).values(), values, strict=True):
        target[batch.rows, :length] = to_completion(of_columns, batch).where(batch.completion_mask, torch.nan)
