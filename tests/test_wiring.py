"""Every setting reaches the place where it acts."""

import functools
import math

import pytest
import torch
from lightning.pytorch import Callback
from transformers import get_scheduler

from rhythm import attention_signals
from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.checkpoints import Checkpoints
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit import CreditStrategy
from rhythm.runs import read_checkpoint
from tests.training import moved, run


@pytest.mark.parametrize("kind", ["std", "mean", "leave_one_out"])
def test_the_kind_of_advantage(kind):
    _, watcher = run(advantage=kind, lr=0.0)
    rewards, found = watcher.rollout.rewards.view(-1, 4), watcher.rollout.advantages.view(-1, 4)
    centred = rewards - rewards.mean(1, keepdim=True)
    expected = {
        "std": centred / (rewards.std(1, keepdim=True) + 1e-4),
        "mean": centred,
        "leave_one_out": torch.stack(
            [rewards[:, i] - rewards[:, [j for j in range(4) if j != i]].mean(1) for i in range(4)], 1
        ),
    }
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected[kind])


def test_the_temperature_of_scoring_is_that_of_updates():
    """At another one the first ratio would not be 1, and the loss no sum of advantages."""
    _, watcher = run(temperature=0.6, lr=0.0)
    assert watcher.metrics["updates/taken"] == 1
    assert abs(watcher.metrics["loss"]) < 1e-5
    assert watcher.metrics["clip_ratio/low_mean"] == watcher.metrics["clip_ratio/high_mean"] == 0


def test_gradients_are_clipped_to_their_norm():
    module, watcher = run(max_grad_norm=1e-3)
    assert watcher.metrics["grad_norm"] > 2e-3  # told as it was
    steps = torch.cat([step.flatten() for step in moved(module, watcher).values()])
    assert float(steps.norm()) == pytest.approx(1e-3, rel=1e-3)


class Seeds(CreditStrategy):
    """Notes the seeds it is given."""

    seeded = True

    def __init__(self):
        self.seen = []

    def weights(self, signals, mask, *, seed, rows):
        self.seen.append(seed)
        return torch.ones(mask.shape)


def test_every_iteration_and_every_run_draws_its_own_credit():
    seen = []
    for seed in (0, 1):
        credit = Seeds()
        run(credit=credit, iterations=2, seed=seed, max_completion_tokens=5)
        seen += credit.seen
    assert len(set(seen)) == 4


class Rates(RolloutObserver):
    def __init__(self):
        self.rates = []

    def learned(self, module, rollout):
        self.rates.append(module.metrics["learning_rate"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant_with_warmup", [(0.25 + 0.5) / 2, (0.75 + 1) / 2, 1]),
        ("linear", [(0.25 + 0.5) / 2, (0.75 + 1) / 2, (2 / 3 + 1 / 3) / 2]),
    ],
)
def test_the_schedule_moves_with_every_update_and_wastes_none(name, expected):
    rates = Rates()
    schedule = functools.partial(get_scheduler, name=name, num_warmup_steps=4)
    settings = {"iterations": 3, "updates_per_iteration": 2, "max_completion_tokens": 20}
    run(scheduler=schedule, lr=0.1, callbacks=[rates], **settings)
    assert rates.rates == pytest.approx([0.1 * rate for rate in expected])


class Reread(RolloutObserver):
    """Reads each rollout again through the library's face, under given settings."""

    def __init__(self, **settings):
        self.settings = settings

    def scored(self, module, rollout):
        columns = torch.arange(rollout.input_ids.shape[1])
        response = rollout.attention_mask & (columns >= rollout.prompt_lengths[:, None])
        again = attention_signals(
            module.policy.model, rollout.input_ids, rollout.attention_mask, response, **self.settings
        )
        for name in ("waad", "waad_drop", "fai"):
            ours, theirs = getattr(rollout.signals, name)[rollout.completion_mask], getattr(again, name)[response]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert rollout.signals.heads == again.heads
        return {"agreed": 1.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": [0, 5], "window": 3, "horizon": (2, 20), "head_fraction": 0.2},
        {"row": "predictor", "sink": "drop", "min_rows": 5},
        {"groups": "receiver", "layers": "all", "receiver_gap": 12},
        {"groups": "all", "horizon": (5, None)},
    ],
    ids=str,
)
def test_every_setting_of_the_signals(settings):
    _, watcher = run(callbacks=[AttentionSignals(**settings), Reread(**settings)], lr=0.0)
    assert watcher.metrics["agreed"] == 1.0


class Scores(Callback):
    """Held-out evaluations with given outcomes, the first before training."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def on_train_epoch_start(self, trainer, module):
        self.note(module)

    def on_train_batch_end(self, trainer, module, *args):
        self.note(module)

    def note(self, module):
        module.metrics["eval/pass@1"] = self.outcomes[module.iteration]
        module.evaluated_at = module.iteration


@pytest.mark.parametrize(
    ("outcomes", "best"), [((0.3, 0.2, 0.5, 0.4), 2), ((0.3, 0.4, 0.4, 0.1), 1), ((0.3, 0.1, 0.2, 0.3), None)]
)
def test_the_best_checkpoint_is_that_of_the_best_evaluation(outcomes, best, tmp_path):
    callbacks = [Scores(*outcomes), Checkpoints(str(tmp_path), every=1)]
    run(callbacks=callbacks, iterations=3, max_completion_tokens=5, lr=0.0)
    path = tmp_path / "best.ckpt"
    assert (read_checkpoint(path)["iteration"] if path.exists() else None) == best
    assert read_checkpoint(tmp_path / "last.ckpt")["iteration"] == 3
    assert math.isclose(callbacks[1].best, max(outcomes))
