"""Reads attention off the scoring pass and groups heads by what was seen so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from rhythm import types
from rhythm.analysis.overlap import jaccard
from rhythm.attention.definitions import RECEIVER_GAP, Horizon, Row, SignalSettings, Sink, waad_drop
from rhythm.attention.heads import Groups, HeadSums, Layers, check_groups
from rhythm.attention.signals import SignalCollector, attention_signals, check_readable
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit.base import OF_ATTENTION
from rhythm.metrics import Mean, token_mean
from rhythm.scoring import MicroBatch, to_completion
from rhythm.types import HeadGroups, Rollout

if TYPE_CHECKING:
    from rhythm.module import GRPOModule


class AttentionSignals(RolloutObserver):
    """Fills `waad`, `waad_drop` and `fai` of every rollout, from the scoring pass that the algorithm makes anyway.

    Heads are grouped by what all response rows of earlier iterations say, on all ranks; the first iteration groups on
    its own. The sums are part of the checkpoint.

    Args:
        layers: "middle" (the paper's), "all", "top", "bottom" or a list of 0-based layers.
        window: W of WAAD, Eq. 9 of arXiv:2510.13554.
        horizon: (H_lo, H_hi) of FAI, Eq. 10.
        head_fraction: share of the heads in the local and in the global group, Eq. 8.
        groups: "distance" (Eq. 8), "all" or "receiver"; see `HeadSums.groups`.
        regroup_every: iterations between two groupings; None keeps the groups of the first iteration.
        row, sink, min_rows, receiver_gap: what the paper leaves open; see `SignalSettings`.
    """

    provides = OF_ATTENTION

    def __init__(
        self,
        *,
        layers: Layers = "middle",
        window: int = 10,
        horizon: Horizon = (10, 100),
        head_fraction: float = 0.3,
        groups: Groups = "distance",
        regroup_every: int | None = 1,
        row: Row = "token",
        sink: Sink = "keep",
        min_rows: int = 1,
        receiver_gap: int = RECEIVER_GAP,
    ):
        if regroup_every is not None and regroup_every < 1:
            raise ValueError(f"signals.regroup_every={regroup_every}: must be at least 1, or null for never")
        check_groups(groups, head_fraction)
        self.settings = SignalSettings(window, horizon, row, sink, min_rows, receiver_gap)
        self.layers = layers if isinstance(layers, str) else list(layers)
        self.groups: Groups = groups
        self.head_fraction = head_fraction
        self.regroup_every = regroup_every
        self.sums = HeadSums()  # of all iterations and ranks
        self.heads: HeadGroups | None = None  # the groups of the next iteration; None before the first
        self.calibration: HeadGroups | None = None  # those of the first
        self._collector: SignalCollector | None = None
        self._batches: list[MicroBatch] = []

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        with pl_module.policy.whole():
            check_readable(pl_module.policy.model, self.layers)  # rather than after the first iteration's sampling

    def begin_scoring(self, module: GRPOModule) -> None:
        self._collector = SignalCollector(
            module.policy.model,
            self.settings,
            layers=self.layers,
            groups=self.groups,
            head_fraction=self.head_fraction,
            heads=self.heads,
        )
        self._batches = []

    @contextmanager
    def scoring(self, module: GRPOModule, batch: MicroBatch) -> Iterator[None]:
        with self._collector.reading(batch.completion_columns):
            yield
        self._batches.append(batch)

    def scored(self, module: GRPOModule, rollout: Rollout) -> dict[str, float | Mean]:
        collected = self._collector.finish(pool=lambda total: module.over_ranks(total, "sum"))
        started = perf_counter()
        waad, fai = (torch.full(rollout.completion_mask.shape, torch.nan, device=module.device) for _ in range(2))
        for batch, signals in zip(self._batches, collected.batches, strict=True):
            length = batch.completion_mask.shape[1]
            for target, values in zip((waad, fai), signals, strict=True):
                target[batch.rows, :length] = to_completion(values, batch).where(batch.completion_mask, torch.nan)
        self.sums += collected.sums
        rollout.signals.waad, rollout.signals.fai = waad, fai
        rollout.signals.waad_drop = waad_drop(waad, rollout.completion_mask)
        rollout.signals.heads = collected.heads
        rollout.signals.distance = self.sums.mean_distance()
        self.calibration = self.calibration or collected.heads
        metrics = signal_metrics(rollout) | head_metrics(collected.heads, self.calibration, self.sums, collected.sums)
        self._group(module.iteration, collected.heads)
        seconds = self._collector.seconds + perf_counter() - started
        self._collector = None
        return metrics | {"time/signals": seconds}

    def read(self, module: GRPOModule, rollout: Rollout, **changes: Any) -> types.AttentionSignals:
        """The signals [N, T] of any rollout by these settings and the next iteration's heads, in a pass of its own.

        Leaves no trace in the sums that heads are grouped by.

        Args:
            changes: of the arguments of `attention_signals`.
        """
        columns = torch.arange(rollout.input_ids.shape[1], device=module.device)
        response = rollout.attention_mask & (columns >= rollout.prompt_lengths[:, None])
        settings = vars(self.settings) | {
            "layers": self.layers,
            "head_fraction": self.head_fraction,
            "groups": self.groups,
            "heads": self.heads,
        }
        inputs = (module.policy.model, rollout.input_ids, rollout.attention_mask, response)
        signals = attention_signals(*inputs, **settings | changes)
        for name in OF_ATTENTION:
            values = getattr(signals, name)
            moved = values.new_full(rollout.completion_mask.shape, torch.nan)
            moved[rollout.completion_mask] = values[response]
            setattr(signals, name, moved)
        return signals

    def _group(self, iteration: int, current: HeadGroups) -> None:
        """Chooses the groups of the next iteration."""
        due = self.regroup_every is not None and iteration % self.regroup_every == 0
        self.heads = self.sums.groups(self.groups, self.head_fraction) if due else current

    def state_dict(self) -> dict[str, Any]:
        groups = {"heads": self.heads, "calibration": self.calibration}
        return {"sums": vars(self.sums)} | {name: vars(group) for name, group in groups.items() if group is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = HeadSums(**state_dict["sums"])
        for name in ("heads", "calibration"):
            setattr(self, name, HeadGroups(**state_dict[name]) if name in state_dict else None)


def provider(module: GRPOModule, asker: str) -> AttentionSignals:
    """The callback of a run that reads attention. ValueError where there is none, in the name of who asks."""
    for callback in module.trainer.callbacks:
        if isinstance(callback, AttentionSignals):
            return callback
    raise ValueError(f"{asker} reads attention as callbacks.attention_signals is set to: leave out both or neither")


def signal_metrics(rollout: Rollout) -> dict[str, float | Mean]:
    """Means over defined tokens, and the share of tokens without FAI."""
    signals, mask = rollout.signals, rollout.completion_mask
    defined = mask & ~signals.fai.isnan()
    return {
        "signals/waad": token_mean(signals.waad, mask & ~signals.waad.isnan()),
        "signals/fai": token_mean(signals.fai, defined),
        "signals/fai_undefined": Mean(1.0 - float(defined.sum() / mask.sum()), float(mask.sum())),
    }


def head_metrics(heads: HeadGroups, calibration: HeadGroups, so_far: HeadSums, now: HeadSums) -> dict[str, float]:
    """Of both groups: distance in tokens so far, this iteration's share of attention on the first key, and drift.

    Drift is told as overlap, the Jaccard index of the group with that of the first iteration: 1 is none.
    """
    metrics = {}
    distance = so_far.mean_distance()
    for name, group, first in (
        ("local", heads.local, calibration.local),
        ("global", heads.global_, calibration.global_),
    ):
        metrics[f"signals/{name}_distance"] = sum(float(distance[layer][head]) for layer, head in group) / len(group)
        metrics[f"signals/{name}_sink"] = now.mean_sink(group)
        metrics[f"signals/{name}_overlap"] = jaccard(group, first)
    return metrics
