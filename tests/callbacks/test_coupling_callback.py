import math

import torch

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.coupling import Coupling
from rhythm.callbacks.observer import RolloutObserver
from tests.training import run

NAMES = ["entropy_at_waad_peaks", "receiver_peaks_global", "fai_after_waad"]


class Noted(RolloutObserver):
    """The lifts that stand in the metrics after each iteration."""

    def __init__(self):
        self.lifts = []

    def learned(self, module, rollout):
        self.lifts.append([module.metrics.get(f"signals/lift_{name}", math.nan) for name in NAMES])


def test_lifts_are_logged_every_so_often_and_at_the_end():
    noted = Noted()
    callbacks = [AttentionSignals(), Coupling(every=2, responses=8), noted]
    settings = {"iterations": 3, "max_completion_tokens": 130, "lr": 0.01, "updates_per_iteration": 2}
    looked, _ = run(callbacks=callbacks, **settings)
    first, second, third = noted.lifts
    assert all(math.isnan(lift) for lift in first)
    assert all(math.isfinite(lift) and lift >= -1 for lift in second + third)
    assert second != third
    plain, _ = run(callbacks=[AttentionSignals()], **settings)
    for name, tensor in plain.policy.adapter_state().items():  # looking changes nothing
        assert torch.equal(tensor, looked.policy.adapter_state()[name])


def test_where_no_response_is_long_enough_for_a_lift_it_is_nan_and_the_run_goes_on():
    noted = Noted()
    module, _ = run(
        callbacks=[AttentionSignals(), Coupling(every=1, responses=8), noted], iterations=2, max_completion_tokens=5
    )
    assert module.iteration == 2
    for at_peaks, by_receivers, _ in noted.lifts:  # receiver heads are told by rows that are far from what they look at
        assert math.isnan(by_receivers)
        assert math.isfinite(at_peaks)
