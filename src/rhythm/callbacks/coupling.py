"""Whether the paper's rhythm is there: the lifts of its Table 2, as the policy learns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from rhythm.analysis.coupling import table_2
from rhythm.analysis.reading import read
from rhythm.attention.heads import resolve_layers
from rhythm.attention.probe import num_layers
from rhythm.callbacks.attention_signals import provider
from rhythm.callbacks.observer import RolloutObserver
from rhythm.metrics import Mean
from rhythm.types import Rollout

if TYPE_CHECKING:
    from rhythm.module import GRPOModule


class Coupling(RolloutObserver):
    """Logs the lifts of Table 2 of arXiv:2510.13554 on some responses of the latest rollout, under the updated policy.

    Attention is read in the layers and by the settings of the AttentionSignals callback, over local, global and
    receiver heads, told by these responses, whatever its `groups`. A lift is NaN where no response is long
    enough to tell; each process looks at its own, and the mean of theirs is logged.

    Args:
        every: iterations between two looks, at least 1; the last iteration is always looked at.
        responses: how many, at least 1, evenly spaced over the rollout; all where it has fewer.
    """

    def __init__(self, *, every: int = 20, responses: int = 32):
        for name, value in (("every", every), ("responses", responses)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.every = every
        self.responses = responses

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        provider(pl_module, "callbacks.coupling")

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        if module.iteration % self.every and module.iteration != module.iterations:
            return
        rows = torch.linspace(0, len(rollout.completions) - 1, min(self.responses, len(rollout.completions))).long()
        some, reader = rollout.take(rows.to(module.device)), provider(module, "callbacks.coupling")
        layers = {"chosen": resolve_layers(reader.layers, num_layers(module.policy.model))}
        settings = {"head_fraction": reader.head_fraction, "temperature": module.temperature}
        reading = module.fitting(
            lambda size: read(module.policy.model, some, layers, reader.settings, micro_batch_size=size, **settings)
        )
        lifts = table_2(reading.entropy, **vars(reading.signals["chosen"]), mask=some.completion_mask)
        told = {name: Mean(lift.lift, float(not math.isnan(lift.lift))) for name, lift in lifts.items()}
        module.record({f"signals/lift_{name}": mean for name, mean in told.items()})
