import math

import pytest
import torch

from rhythm.analysis.coupling import table_2
from rhythm.analysis.reading import read
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


class Reread(RolloutObserver):
    """What a look should find, by settings that are written out here; stands before the callback that looks."""

    def __init__(self, reader):
        self.reader = reader

    def learned(self, module, rollout):
        some = rollout.take(torch.tensor([0, 5, 10, 15]))  # four of sixteen, evenly spaced
        reading = read(
            module.policy.model, some, {"chosen": [1, 4]}, self.reader.settings, head_fraction=0.2, temperature=0.8
        )
        signals = reading.signals["chosen"]
        found = table_2(reading.entropy, signals.waad, signals.fai, signals.receiver_fai, some.completion_mask)
        self.lifts = [found[name].lift for name in NAMES]


@pytest.mark.parametrize("groups", ["distance", "receiver"])
def test_lifts_are_those_of_the_runs_own_settings_whatever_its_groups(groups):
    own = {"window": 4, "horizon": (3, 40), "sink": "drop", "receiver_gap": 6}
    reader = AttentionSignals(layers=[1, 4], head_fraction=0.2, groups=groups, **own)
    expected, noted = Reread(reader), Noted()
    run(
        callbacks=[reader, expected, Coupling(every=1, responses=4), noted],
        max_completion_tokens=130,
        temperature=0.8,
        lr=0.01,
    )
    assert all(map(math.isfinite, expected.lifts))
    assert noted.lifts == [pytest.approx(expected.lifts)]


def test_a_rollout_of_one_response_is_looked_at():
    noted = Noted()
    callbacks = [AttentionSignals(), Coupling(every=1), noted]
    module, _ = run(callbacks=callbacks, prompts=1, group_size=1, max_completion_tokens=60)
    assert module.iteration == 1
    assert math.isfinite(noted.lifts[0][0])


@pytest.mark.parametrize("name", ["responses", "every"])
def test_settings_that_cannot_be_looked_by_are_refused_by_their_keys(name):
    with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1$"):
        Coupling(**{name: 0})
