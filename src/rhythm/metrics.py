"""What an iteration's rollout and credit amount to, under the names that users of TRL know."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rhythm.advantages import equal_rewards, group_spread
from rhythm.credit import CreditStrategy
from rhythm.losses import kl_estimate, masked_mean
from rhythm.stopping import Stopping
from rhythm.types import Rollout


class Mean(NamedTuple):
    """A mean and what it is over, so that several ranks' means become that of everything they are over together."""

    value: float
    weight: float  # the number of values, or the sum of their weights; without any the value says nothing


def token_mean(values: Tensor, mask: Tensor) -> Mean:
    """Of [N, T] over the tokens in the mask; anything, NaN included, may stand outside."""
    return Mean(float(masked_mean(values, mask)), float(mask.sum()))


def rollout_metrics(rollout: Rollout, group_size: int) -> dict[str, float | Mean]:
    """Rewards, entropy and lengths of a rollout that is scored; its KL where the reference has scored it too.

    A reward that is not finite is in `reward/failed`, the share of such samples, and in no other number.
    """
    groups = rollout.rewards.view(-1, group_size)
    failed = ~rollout.rewards.isfinite()
    lengths = rollout.completion_mask.sum(1).float()
    metrics = {
        "reward": Mean(float(rollout.rewards[~failed].mean()), float((~failed).sum())),
        "reward_std": float(group_spread(groups)[1].mean()),
        "frac_reward_zero_std": float(equal_rewards(groups).float().mean()),
        "reward/failed": float(failed.float().mean()),
        "entropy": token_mean(rollout.signals.entropy, rollout.completion_mask),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.float().mean()),
    }
    if rollout.ref_logps is not None:
        divergence = kl_estimate(rollout.old_logps, rollout.ref_logps, rollout.completion_mask, "k3")
        metrics["kl"] = token_mean(divergence, rollout.completion_mask)
    return metrics | (importance_metrics(rollout) if rollout.sampler_logps is not None else {})


def importance_metrics(rollout: Rollout) -> dict[str, float | Mean]:
    """How far the sampler was from the policy as it is scored, and what the correction made of it.

    The KL is the k3 estimate of KL(sampler‖policy) in nats a token; of the weights, the mean and the share that the cap
    cut off.
    """
    mask, log_ratio = rollout.completion_mask, rollout.old_logps - rollout.sampler_logps
    divergence = kl_estimate(rollout.sampler_logps, rollout.old_logps, mask, "k3")
    metrics = {
        "sampling/sampling_logp_difference/mean": token_mean(log_ratio.abs(), mask),
        "sampling/sampling_logp_difference/max": float(log_ratio.abs().masked_fill(~mask, 0.0).max()),
        "sampling/kl": token_mean(divergence, mask),
    }
    if rollout.importance_weights is not None:
        truncated = (log_ratio.exp() > rollout.importance_weights).float()
        metrics["sampling/importance_sampling_ratio/mean"] = token_mean(rollout.importance_weights, mask)
        metrics["sampling/importance_sampling_ratio/truncated"] = token_mean(truncated, mask)
    return metrics


def credit_metrics(
    rollout: Rollout, strategy: CreditStrategy, eligible: Tensor, stopping: Stopping
) -> dict[str, float | Mean]:
    """How much the credit amplifies, and what.

    `credit/entropy_weighted` is Σγ·H / ΣH: the mean weight where tokens had a choice, for a token that was certain
    anyway learns little from a larger weight. `credit/amplified` and its parts are shares of tokens with a weight above
    1: of all, of those in each tenth of their response, of punctuation and of the ends of sequence.
    `credit/uninformed` is the share of responses in which no token that credit may tell apart has a signal.

    Args:
        eligible: [N, T] bool, the tokens that credit may tell apart.
    """
    mask, credit = rollout.completion_mask, rollout.credit
    entropy = rollout.signals.entropy.masked_fill(~mask, 0.0)
    amplified = (credit > 1).float()
    position = torch.arange(mask.shape[1], device=mask.device)
    tenth = position * 10 // mask.sum(1, keepdim=True).clamp(min=1)
    choice = entropy.sum()
    amplified_among = {
        "": mask,
        "_punctuation": mask & punctuation(rollout.completion_ids, stopping.tokenizer),
        "_end": mask & stopping.is_end(rollout.completion_ids),
        **{f"_tenth_{i + 1:02}": mask & (tenth == i) for i in range(10)},
    }
    return {
        "credit/mean": token_mean(credit, mask),
        "credit/entropy_weighted": Mean(float((credit * entropy).sum() / choice.clamp(min=1e-12)), float(choice)),
        "credit/uninformed": float((~strategy.informed(rollout.signals, eligible)).float().mean()),
        **{f"credit/amplified{name}": token_mean(amplified, tokens) for name, tokens in amplified_among.items()},
    }


def punctuation(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """True on tokens whose text has neither a letter nor a digit; special tokens are none. [N, T] to [N, T] bool."""
    present, where = ids.unique(return_inverse=True)
    texts = (tokenizer.decode([token], skip_special_tokens=True).strip() for token in present.tolist())
    marks = torch.tensor([bool(text) and not any(map(str.isalnum, text)) for text in texts], device=ids.device)
    return marks[where]
