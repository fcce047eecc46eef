import math

import pytest
import torch
from torch import nan

from rhythm.credit import AnchorCredit, UniformCredit
from rhythm.losses import importance_weights
from rhythm.metrics import Mean, credit_metrics, importance_metrics, punctuation, rollout_metrics
from rhythm.objective import Objective
from rhythm.stopping import Stopping
from rhythm.types import AttentionSignals, Rollout
from tests.policies import WORDS, word_tokenizer

TOKENIZER = word_tokenizer(WORDS)
COMPLETIONS = [". so +", "<eos> . .", "( 7 .", "then <eos> ."]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": -0.1}, "clip_low=-0.1: must be at least 0"),
        ({"clip_high": -1}, "clip_high=-1: must be at least 0"),
        ({"beta": -0.5}, "beta=-0.5: must be at least 0"),
        ({"dual_clip": 1.0}, "dual_clip=1.0: must be above 1, or null"),
        ({"aggregation": "mean"}, "aggregation=mean: use one of sequence_mean, token_mean, constant"),
        ({"kl_estimator": "k4"}, "kl_estimator=k4: use one of k1, k2, k3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Objective(**settings)


def row(*values):
    return torch.tensor([values])


def test_settings_reach_the_losses():
    logps, old_logps = row(math.log(1.5), math.log(0.5), math.log(5.0)), torch.zeros(1, 3)
    advantages, mask, ref_logps = row(1.0, -1.0, -1.0), torch.ones(1, 3).bool(), logps - row(0.0, 0.0, 2.0)
    objective = Objective(clip_low=0.1, clip_high=0.3, dual_clip=3.0, beta=0.5, kl_estimator="k2")
    losses = objective.losses(logps, old_logps, advantages, mask, ref_logps)
    assert losses[0].tolist() == pytest.approx([-1.3, 0.9, 3.0 + 0.5 * 2.0], rel=1e-6)
    below, above = objective.clipped(logps, old_logps, advantages, mask)
    assert (below.tolist(), above.tolist()) == ([[False, True, False]], [[True, False, True]])


def test_without_beta_no_reference_is_read():
    losses = Objective().losses(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2).bool(), None)
    assert losses.tolist() == [[-1.0, -1.0]]


def test_aggregation_reaches_the_weights():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    third = pytest.approx(1 / 6)
    assert Objective().weights(mask).tolist() == [[third] * 3, [0.5, 0.0, 0.0]]
    assert Objective(aggregation="token_mean").weights(mask).tolist() == [[0.25] * 3, [0.25, 0.0, 0.0]]
    constant = Objective(aggregation="constant", max_tokens=4).weights(mask)
    assert constant.tolist() == [[0.125] * 3, [0.125, 0.0, 0.0]]


def hand_made():
    """Two groups of two; everything outside the mask is there to be left out."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]]).bool()
    rollout = Rollout(
        problems=[{}] * 4,
        completions=[""] * 4,
        input_ids=torch.zeros(4, 5),
        attention_mask=torch.ones(4, 5).bool(),
        prompt_lengths=torch.tensor([2, 2, 2, 2]),
        completion_ids=torch.tensor([[WORDS.index(word) for word in text.split()] for text in COMPLETIONS]),
        completion_mask=mask,
        truncated=torch.tensor([True, False, False, False]),
    )
    rollout.rewards = torch.tensor([1.0, 0.0, 0.5, 0.5])
    rollout.signals = AttentionSignals(
        entropy=torch.tensor([[1.0, 2.0, 3.0], [4.0, nan, nan], [0.0, 0.0, nan], [1.0, 1.0, nan]]),
        fai=torch.tensor([[0.1, nan, nan], [nan, 0.3, 0.3], [0.2, 0.2, nan], [0.1, nan, nan]]),
    )
    rollout.credit = torch.tensor([[1.5, 1.0, 1.0], [1.0, 9.0, 9.0], [1.5, 2.0, 9.0], [1.0, 1.0, 9.0]])
    return rollout


def values(metrics):
    return {name: metric.value if isinstance(metric, Mean) else metric for name, metric in metrics.items()}


def test_the_numbers_of_a_rollout():
    assert values(rollout_metrics(hand_made(), 2)) == pytest.approx(
        {
            "reward": 0.5,
            "reward_std": math.sqrt(0.5) / 2,  # of one group √½, of the other 0
            "frac_reward_zero_std": 0.5,
            "reward/failed": 0.0,
            "entropy": 12 / 8,
            "completions/mean_length": 2.0,
            "completions/max_length": 3.0,
            "completions/clipped_ratio": 0.25,
        }
    )


def test_the_distance_between_a_sampler_and_the_scorer():
    rollout = hand_made()
    rollout.sampler_logps, rollout.old_logps = torch.full((4, 3), 99.0), torch.zeros(4, 3)
    mask = rollout.completion_mask
    rollout.sampler_logps[mask] = torch.tensor([-1.0, -1.0, -2.0, -1.0, -1.0, -1.0, -3.0, -1.0])
    rollout.old_logps[mask] = torch.tensor([-1.0, -1.5, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    differences = {
        "sampling/sampling_logp_difference/mean": (0.5 + 1 + 2) / 8,
        "sampling/sampling_logp_difference/max": 2.0,
        "sampling/kl": (math.exp(-0.5) - 0.5 + math.e - 2 + math.exp(2) - 3) / 8,  # Σ exp(d) − 1 − d
    }
    assert values(importance_metrics(rollout)) == pytest.approx(differences)
    rollout.importance_weights = importance_weights(rollout.old_logps, rollout.sampler_logps, mask, cap=2.0)
    weights = {
        "sampling/importance_sampling_ratio/mean": (5 + math.exp(-0.5) + 2 + 2) / 8,
        "sampling/importance_sampling_ratio/truncated": 2 / 8,  # e and e² are above 2
    }
    assert values(importance_metrics(rollout)) == pytest.approx(differences | weights)
    assert set(rollout_metrics(rollout, 2)) == {*rollout_metrics(hand_made(), 2), *differences, *weights}


def test_samples_whose_reward_failed_are_counted_and_in_no_other_number():
    rollout = hand_made()
    rollout.rewards = torch.tensor([1.0, 0.0, 0.5, nan])
    metrics = values(rollout_metrics(rollout, 2))
    expected = {"reward": 0.5, "reward_std": math.sqrt(0.5) / 2, "frac_reward_zero_std": 0.5, "reward/failed": 0.25}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_groups_of_one_have_no_spread():
    metrics = rollout_metrics(hand_made(), 1)
    assert (metrics["reward_std"], metrics["frac_reward_zero_std"]) == (0.0, 1.0)


def test_the_numbers_of_credit():
    anchor = AnchorCredit(top_fraction=0.4, amplification=1.5)
    mask = hand_made().completion_mask
    metrics = values(credit_metrics(hand_made(), anchor, mask, Stopping(TOKENIZER)))
    tenths = {f"credit/amplified_tenth_{i:02}": 0.0 for i in range(1, 11)}
    # A response of 3 has its tokens in the 1st, 4th and 7th tenth, one of 2 in the 1st and 6th.
    tenths |= {"credit/amplified_tenth_01": 2 / 4, "credit/amplified_tenth_06": 1 / 2}
    assert metrics == pytest.approx(
        {
            "credit/mean": (1.5 + 1 + 1 + 1 + 1.5 + 2 + 1 + 1) / 8,
            "credit/entropy_weighted": (1.5 + 2 + 3 + 4 + 0 + 0 + 1 + 1) / 12,
            "credit/uninformed": 1 / 4,  # the second response has no token with FAI
            "credit/amplified": 3 / 8,
            "credit/amplified_punctuation": 2 / 3,
            "credit/amplified_end": 0 / 2,
            **tenths,
        }
    )
    assert credit_metrics(hand_made(), UniformCredit(), mask, Stopping(TOKENIZER))["credit/uninformed"] == 0.0
    mask[2] = False  # nothing there is eligible
    assert credit_metrics(hand_made(), anchor, mask, Stopping(TOKENIZER))["credit/uninformed"] == 2 / 4


def test_punctuation_has_no_letter_and_no_digit():
    words = [".", "so", "7", "(", "<eos>", "<pad>", "-"]
    ids = torch.tensor([[WORDS.index(word) for word in words]])
    assert punctuation(ids, TOKENIZER).tolist() == [[True, False, False, True, False, False, True]]
