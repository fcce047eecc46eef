"""The algorithm on a real policy and real problems: what one iteration does and does not change."""

import math

import pytest
import torch

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.credit import AnchorCredit, EntropyCredit
from rhythm.module import GRPOModule
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.scoring import completion_logps, score
from tests.training import (
    EMBEDDED,
    EasyCountdown,
    SteppedCredit,
    assert_same,
    countdown,
    moved,
    naive_gradient,
    naive_updates,
    run,
)


@pytest.mark.parametrize("excluded", [False, True])
def test_the_end_of_sequence_can_be_left_to_itself(excluded):
    """With every token selected, it alone keeps a weight of 1, and where it stands above the others nothing is lost."""
    _, watcher = run(
        credit=EntropyCredit(top_fraction=1.0, amplification=2.0), exclude_eos=excluded, max_completion_tokens=200
    )
    rollout = watcher.rollout
    ended = ~rollout.truncated
    assert ended.any()
    last = rollout.completion_mask.sum(1) - 1
    at_end = rollout.credit[torch.arange(len(last)), last]
    assert (at_end[ended] == (1.0 if excluded else 2.0)).all()
    before = rollout.completion_mask.clone()
    before[torch.arange(len(last)), last] = False
    assert (rollout.credit[before] == 2.0).all()


def test_the_first_update_starts_at_a_ratio_of_one_and_clips_nothing():
    module, watcher = run(lr=0.0)
    rollout = watcher.rollout
    module.policy.train()
    again, _ = score(module.policy.model, rollout, micro_batch_size=5, temperature=1.0)
    ratio = (again - rollout.old_logps)[rollout.completion_mask].exp()
    assert (ratio - 1).abs().max() <= 1e-5
    assert watcher.metrics["clip_ratio/low_mean"] == watcher.metrics["clip_ratio/high_mean"] == 0
    assert watcher.metrics["updates/taken"] == 1
    # Token losses are -A at a ratio of one, and advantages sum to zero in a group.
    assert abs(watcher.metrics["loss"]) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aggregation": "token_mean"},
        {"aggregation": "constant"},
        {"sign": "positive"},
        {"sign": "negative"},
        {"beta": 0.5},
        {"drop_truncated": True},
    ],
    ids=str,
)
def test_an_update_is_the_gradient_of_the_objective_written_down_naively(settings):
    objective = Objective(
        aggregation=settings.get("aggregation", "sequence_mean"), beta=settings.get("beta", 0.0), max_tokens=60
    )
    tokens = 130 if settings.get("drop_truncated") else 60  # by 130 some have ended and some have not
    module, watcher = run(
        credit=SteppedCredit(),
        objective=objective,
        sign=settings.get("sign", "both"),
        mask_truncated=settings.get("drop_truncated", False),
        max_completion_tokens=tokens,
    )
    truncated = watcher.rollout.truncated
    assert truncated.any()
    assert not settings.get("drop_truncated") or not truncated.all()
    assert_same(moved(module, watcher), naive_gradient(watcher.rollout, **settings))


def test_groups_of_equal_rewards_cost_no_backward_pass_and_count_in_the_denominator(monkeypatch):
    class OneEqual(EasyCountdown):
        def rewards(self, rollout):
            rewards = super().rewards(rollout)
            rewards[4:8] = 1.0  # the second of four groups
            return rewards

    passes, scored, plain = [], [], GRPOModule.manual_backward
    monkeypatch.setattr(GRPOModule, "manual_backward", lambda self, loss: (passes.append(1), plain(self, loss)))

    def noted(model, batch, temperature):
        scored.append(batch.rows)
        return completion_logps(model, batch, temperature)

    monkeypatch.setattr("rhythm.module.completion_logps", noted)
    module, watcher = run(task=countdown(OneEqual), credit=SteppedCredit(), micro_batch_size=3)
    learning = (watcher.rollout.advantages != 0).nonzero()[:, 0].tolist()
    assert not set(learning) & {4, 5, 6, 7}
    assert sorted(torch.cat(scored).tolist()) == learning
    assert len(passes) == math.ceil(len(learning) / 3)
    assert_same(moved(module, watcher), naive_gradient(watcher.rollout))  # which divides by all sixteen rows


def test_later_updates_of_an_iteration_are_clipped_against_the_policy_that_sampled():
    """At a rate at which the first update moves the policy: ratios are not one, and some tokens are clipped."""
    module, watcher = run(credit=SteppedCredit(), updates_per_iteration=2, lr=300.0)
    after, clipped = naive_updates(watcher.rollout, updates=2, lr=300.0)
    assert clipped > 10
    assert_same(moved(module, watcher), {name: tensor - watcher.before[name] for name, tensor in after.items()})
    told = watcher.metrics["clip_ratio/low_mean"] + watcher.metrics["clip_ratio/high_mean"]
    assert told == pytest.approx(clipped / int(watcher.rollout.completion_mask.sum()), rel=1e-3)


def test_every_iteration_shares_its_rows_anew(monkeypatch):
    shares, step = [], GRPOModule.step

    def noted(module, rollout, mask, rows):
        shares.append(rows.tolist())
        return step(module, rollout, mask, rows)

    monkeypatch.setattr(GRPOModule, "step", noted)
    run(iterations=2, updates_per_iteration=2)
    first, second = shares[0] + shares[1], shares[2] + shares[3]
    assert sorted(first) == sorted(second) == list(range(len(first)))
    assert first != second


@pytest.mark.parametrize("objective", [Objective(), Objective(aggregation="token_mean", beta=0.1)])
def test_the_micro_batch_size_bounds_memory_and_changes_no_gradient(objective):
    results = [moved(*run(objective=objective, micro_batch_size=size)) for size in (1, 5, 64)]
    for other in results[1:]:  # products of other shapes are summed in another order
        assert_same(other, results[0], tolerance=1e-4)


def test_an_update_moves_the_adapter_and_no_base_weight():
    untouched = {name: p.clone() for name, p in Policy(EMBEDDED, rank=4, alpha=8).model.named_parameters()}
    module, watcher = run(optimizer=torch.optim.AdamW, lr=1e-2, updates_per_iteration=2, iterations=2)
    for name, parameter in module.policy.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_" not in name:
            assert torch.equal(parameter, untouched[name]), name
    assert all(step.abs().max() > 0 for step in moved(module, watcher).values())


def test_credit_of_amplification_one_is_plain_grpo_bit_for_bit():
    plain = moved(*run())
    neutral = moved(*run(credit=AnchorCredit(amplification=1.0), callbacks=[AttentionSignals()]))
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)


def test_anchor_credit_changes_the_gradient_and_leaves_the_rollout_alone():
    plain, plain_watcher = run(max_completion_tokens=100)
    anchored, watcher = run(credit=AnchorCredit(), callbacks=[AttentionSignals()], max_completion_tokens=100)
    assert torch.equal(plain_watcher.rollout.completion_ids, watcher.rollout.completion_ids)
    torch.testing.assert_close(plain_watcher.rollout.old_logps, watcher.rollout.old_logps, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(moved(anchored, watcher), moved(plain, plain_watcher))
    defined = watcher.rollout.completion_mask & ~watcher.rollout.signals.fai.isnan()
    amplified = (watcher.rollout.credit == 1.5).sum(1)
    assert torch.equal(amplified, (defined.sum(1) * 0.4).ceil().long())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"updates_per_iteration": 0}, "updates_per_iteration=0: must be at least 1"),
        (
            {"updates_per_iteration": 17},
            "updates_per_iteration=17: an iteration has 16 completions on each of 1 devices",
        ),
        ({"advantage": "median"}, "algorithm.advantage=median: use one of std, mean, leave_one_out"),
        ({"sign": "up"}, "algorithm.sign=up: use one of both, positive, negative"),
        ({"temperature": 0}, "algorithm.temperature=0: must be above 0"),
        ({"max_grad_norm": -1.0}, "algorithm.max_grad_norm=-1.0: must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_their_keys(settings, line):
    with pytest.raises(ValueError, match=line):
        run(**settings)


def test_updates_that_do_not_divide_the_rows_take_every_row_once(monkeypatch):
    scored = []

    def noted(model, batch, temperature):
        scored.extend(batch.rows.tolist())
        return completion_logps(model, batch, temperature)

    monkeypatch.setattr("rhythm.module.completion_logps", noted)
    _, watcher = run(updates_per_iteration=3, micro_batch_size=64)
    learning = (watcher.rollout.advantages != 0).nonzero()[:, 0].tolist()
    assert len(learning) > 3
    assert sorted(scored) == learning
    assert watcher.metrics["updates/taken"] == 1


def test_a_signal_that_nobody_provides_is_an_error_that_names_the_mend():
    with pytest.raises(
        ValueError, match="anchor credit reads `fai`, which no callback provides; add callbacks=attention"
    ):
        run(credit=AnchorCredit())
