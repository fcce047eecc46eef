"""From the statistics of heads to the signals of tokens, in a training run or for a batch in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rhythm.attention.definitions import RECEIVER_GAP, Horizon, Row, SignalSettings, Sink, waad_drop
from rhythm.attention.heads import SUMMED, Groups, HeadSums, Layers, check_groups, resolve_layers
from rhythm.attention.implementation import decoder
from rhythm.attention.probe import LayerInput, attention_probe, num_layers
from rhythm.attention.statistics import HeadStatistics, band_statistics, head_statistics
from rhythm.stopwatch import Stopwatch
from rhythm.types import AttentionSignals, Head, HeadGroups

BAND_FROM = 1024  # tokens; in shorter sequences the band is most of the map, and blocks of whole rows are faster
BAND_WINDOW = 16  # tokens; with a longer window WAAD would lose digits, see `band_statistics`


@dataclass(frozen=True)
class CollectedSignals:
    """What a `SignalCollector` read in all of its forward passes."""

    heads: HeadGroups  # the groups that WAAD and FAI are means over
    sums: HeadSums  # over the response rows of all passes and processes
    batches: list[tuple[Tensor, Tensor]]  # for each pass WAAD and FAI, [n, S]; NaN outside the response or undefined


class SignalCollector:
    """Reads WAAD and FAI from forward passes that are made anyway, one micro-batch after the other.

    With `heads` given, values are averaged over the groups as they come and [n, S] is kept. Without, the values of all
    heads of the chosen layers are kept until `finish`, which groups them by what all passes together say.
    `seconds` is the time spent on reading so far.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: SignalSettings,
        *,
        layers: Layers = "middle",
        groups: Groups = "distance",
        head_fraction: float = 0.3,
        heads: HeadGroups | None = None,
    ) -> None:
        check_groups(groups, head_fraction)
        self.model = model
        self.settings = settings
        self.layers = resolve_layers(layers, num_layers(model))
        self.groups: Groups = groups
        self.head_fraction = head_fraction
        self.heads = heads
        self._clock = Stopwatch(next(model.parameters()).device)
        if heads is not None:
            _check_heads(heads, self.layers)
        self._sums = HeadSums()
        self._per_head: list[dict[int, HeadStatistics]] = []  # one for each pass, where groups are not known yet
        self._averaged: list[tuple[Tensor, Tensor]] = []  # one for each pass, where they are

    @contextmanager
    def reading(self, completion_mask: Tensor) -> Iterator[None]:
        """Around one forward pass of the model, whose input is a response where `completion_mask`, [n, S], is True."""
        _check_mask(completion_mask)
        statistics: dict[int, HeadStatistics] = {}

        def listen(layer: LayerInput) -> None:
            with self._clock("signals"):
                statistics[layer.layer] = self._statistics(layer, completion_mask)

        with attention_probe(self.model, self.layers, listen, sums_from=BAND_FROM if self._banded else None):
            yield
        with self._clock("signals"):
            self._add(statistics)

    def finish(self, pool: Callable[[Tensor], Tensor] = lambda total: total) -> CollectedSignals:
        """Group the heads, unless they were given, and average each pass over the groups.

        Args:
            pool: sums a tensor over processes, which then agree on the groups.
        """
        if not self._sums.distance:
            raise ValueError("no forward pass was read: wrap the model's forward pass in `collector.reading(mask)`")
        with self._clock("signals"):
            sums = self._sums.pooled(pool)
            heads, batches = self.heads, self._averaged
            if heads is None:
                heads = sums.groups(self.groups, self.head_fraction)
                batches = [
                    (
                        torch.stack([passed[layer].waad[:, head] for layer, head in heads.local]).mean(0),
                        torch.stack([passed[layer].fai[:, head] for layer, head in heads.global_]).mean(0),
                    )
                    for passed in self._per_head
                ]
        return CollectedSignals(heads, sums, batches)

    @property
    def seconds(self) -> float:
        return self._clock.seconds["signals"]

    @property
    def _banded(self) -> bool:
        """Whether the band of keys near each row is all that these settings need, once row sums are known."""
        settings = self.settings
        narrow = settings.horizon[1] is not None and settings.window <= BAND_WINDOW
        return narrow and settings.sink == "keep" and self.groups != "receiver"

    def _statistics(self, layer: LayerInput, completion_mask: Tensor) -> HeadStatistics:
        batch, heads, length, _ = layer.query.shape
        if completion_mask.shape != (batch, length):
            shape = tuple(completion_mask.shape)
            raise ValueError(f"completion_mask is {shape}, but the model was given {(batch, length)}")
        response = completion_mask.to(layer.query.device)
        chosen = {
            "scaling": layer.scaling,
            "local": None if self.heads is None else _in_layer(self.heads.local, layer.layer, heads),
            "global_": None if self.heads is None else _in_layer(self.heads.global_, layer.layer, heads),
        }
        if layer.sums is not None:
            return band_statistics(layer.query, layer.key, response, self.settings, layer.sums, **chosen)
        receivers = self.groups == "receiver"
        return head_statistics(
            layer.query, layer.key, response, self.settings, mask=layer.mask, receivers=receivers, **chosen
        )

    def _add(self, statistics: dict[int, HeadStatistics]) -> None:
        self._sums += head_sums(statistics)
        if self.heads is None:
            self._per_head.append(statistics)
        else:
            waad = torch.cat([values.waad for values in statistics.values()], 1).mean(1)
            fai = torch.cat([values.fai for values in statistics.values()], 1).mean(1)
            self._averaged.append((waad, fai))


def head_sums(statistics: dict[int, HeadStatistics]) -> HeadSums:
    """What the heads of these layers are grouped by, from the statistics of one pass."""
    layers = sorted(statistics.items())
    return HeadSums(
        int(layers[0][1].rows), *({layer: getattr(of, name).double() for layer, of in layers} for name in SUMMED)
    )


def attention_signals(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    layers: Layers = "middle",
    window: int = 10,
    horizon: Horizon = (10, 100),
    head_fraction: float = 0.3,
    heads: HeadGroups | None = None,
    *,
    groups: Groups = "distance",
    row: Row = "token",
    sink: Sink = "keep",
    min_rows: int = 1,
    receiver_gap: int = RECEIVER_GAP,
) -> AttentionSignals:
    """WAAD, its drop, and FAI of every response token, in one forward pass without gradients and without LM head.

    For any causal model that transformers' attention interface reaches, with or without LoRA or another adapter that
    lives in the layers. The model is left as it was.

    Args:
        model: the causal model.
        input_ids: [B, S], padded on either side.
        attention_mask: [B, S], nonzero on tokens.
        completion_mask: [B, S], nonzero on the tokens of the responses.
        layers: "middle", "all", "top", "bottom" or a list of 0-based layers.
        window: W of WAAD, Eq. 9 of arXiv:2510.13554, in tokens.
        horizon: (H_lo, H_hi) of FAI, Eq. 10, in tokens; H_hi None runs to the end of the response.
        head_fraction: share of the heads of these layers in the local and in the global group, Eq. 8.
        heads: fixed groups, instead of grouping by what this batch says.
        groups: "distance" (Eq. 8), "all" or "receiver"; see `HeadSums.groups`.
        row, sink, min_rows, receiver_gap: what the paper leaves open; see `SignalSettings`.
    Returns:
        AttentionSignals with [B, S] fields, NaN where undefined; `entropy` stays None.
    Raises:
        ValueError: the model's attention cannot be read, or the arguments do not fit it or each other.

    Example, on the policy that comes with the package:
        >>> import torch
        >>> from rhythm import Policy, attention_signals
        >>> policy = Policy("embedded:tiny_countdown")
        >>> prompt = "numbers : 3 6 12 target : 9 ."
        >>> response = "i have 3 6 12 and i want to reach 9 , so let me think step by step ."
        >>> batch = policy.tokenizer(f"{prompt} {response}", return_tensors="pt")
        >>> completion_mask = torch.arange(batch.input_ids.shape[1])[None] >= len(prompt.split())
        >>> signals = attention_signals(
        ...     policy.model, batch.input_ids, batch.attention_mask, completion_mask, horizon=(2, 20)
        ... )
        >>> tuple(signals.fai.shape), signals.heads.global_[-1]  # the layer and head that looks farthest
        ((1, 29), (4, 6))
        >>> anchors = signals.fai[0].nan_to_num().topk(3).indices
        >>> [policy.tokenizer.decode(token) for token in batch.input_ids[0, anchors]]
        ['step', 'by', 'i']
    """
    tokens, mask = attention_mask.bool(), completion_mask.bool()
    _check_mask(mask)
    if not input_ids.shape == tokens.shape == mask.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (input_ids, tokens, mask))
        raise ValueError(f"input_ids, attention_mask and completion_mask have different shapes: {shapes}")
    if (mask & ~tokens).any():
        raise ValueError("completion_mask marks tokens that attention_mask leaves out")
    settings = SignalSettings(window, horizon, row, sink, min_rows, receiver_gap)
    collector = SignalCollector(model, settings, layers=layers, groups=groups, head_fraction=head_fraction, heads=heads)
    positions = (tokens.long().cumsum(-1) - 1).clamp(min=0)
    with evaluating(model), torch.no_grad(), collector.reading(mask):
        decoder(model)(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    collected = collector.finish()
    ((waad, fai),) = collected.batches
    return AttentionSignals(
        waad=waad,
        waad_drop=waad_drop(waad, mask.to(waad.device)),
        fai=fai,
        heads=collected.heads,
        distance=collected.sums.mean_distance(),
    )


def check_readable(model: nn.Module, layers: Layers) -> None:
    """Raise ValueError, in one line, where the attention of these layers cannot be read; one pass over two tokens."""
    chosen = resolve_layers(layers, num_layers(model))
    tokens = torch.ones(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    with evaluating(model), torch.no_grad(), attention_probe(model, chosen, lambda layer: None):
        decoder(model)(input_ids=tokens, use_cache=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; each module's own mode afterwards, since in a PEFT model they differ."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _check_mask(completion_mask: Tensor) -> None:
    if completion_mask.ndim != 2 or completion_mask.dtype != torch.bool:
        raise ValueError(
            f"completion_mask is {completion_mask.dtype} of shape {tuple(completion_mask.shape)}; give bool [n, S]"
        )


def _check_heads(heads: HeadGroups, layers: list[int]) -> None:
    if not heads.local or not heads.global_:
        raise ValueError("heads: both groups need a head")
    outside = sorted({layer for layer, _ in heads.local + heads.global_} - set(layers))
    if outside:
        raise ValueError(f"heads name layers {outside}, but layers={layers} are read")


def _in_layer(group: list[Head], layer: int, heads: int) -> list[int]:
    chosen = [head for at, head in group if at == layer]
    if chosen and not 0 <= min(chosen) <= max(chosen) < heads:
        raise ValueError(f"heads name {chosen} of layer {layer}, which has heads 0 to {heads - 1}")
    return chosen
