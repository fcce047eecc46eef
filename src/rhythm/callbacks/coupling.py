"""Whether the paper's rhythm is there: the lifts of its Table 2, as the policy learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from rhythm.analysis.coupling import Lift, at_or_just_after, entropy_at_waad_peaks, overlap, peaks
from rhythm.callbacks.attention_signals import provider
from rhythm.callbacks.observer import RolloutObserver
from rhythm.types import Rollout

if TYPE_CHECKING:
    from rhythm.module import GRPOModule


class Coupling(RolloutObserver):
    """Logs the lifts of Table 2 of arXiv:2510.13554 on some responses of the latest rollout, under the updated policy.

    Attention is read as the AttentionSignals callback is set to, with heads grouped by these responses.

    Args:
        every: iterations between two looks; the last iteration is always looked at.
        responses: how many, evenly spaced over the rollout.
    """

    def __init__(self, *, every: int = 20, responses: int = 32):
        self.every = every
        self.responses = responses

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        provider(pl_module, "callbacks.coupling")

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        if module.iteration % self.every and module.iteration != module.iterations:
            return
        rows = torch.linspace(0, len(rollout.completions) - 1, min(self.responses, len(rollout.completions))).long()
        lifts = table_2(module, rollout.take(rows.to(module.device)))
        module.record({f"signals/lift_{name}": lift.lift for name, lift in lifts.items()})


def table_2(module: GRPOModule, rollout: Rollout) -> dict[str, Lift]:
    """The three statistics of a rollout, by the module's policy."""
    _, entropy = module.score(rollout)
    reader, response = provider(module, "Table 2"), rollout.completion_mask
    signals = reader.read(module, rollout, groups="distance", heads=None)
    receiver = reader.read(module, rollout, groups="receiver", heads=None)
    waad, far, received = (peaks(values, response) for values in (signals.waad, signals.fai, receiver.fai))
    defined = response & ~signals.fai.isnan()
    return {
        "entropy_at_waad_peaks": entropy_at_waad_peaks(entropy, waad, response),
        "receiver_peaks_global": overlap(received, far, defined),
        "fai_after_waad": at_or_just_after(far, waad, defined),
    }
