"""From rewards to the advantage of each token."""

from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["std", "mean", "leave_one_out"]
Sign = Literal["both", "positive", "negative"]


def group_advantages(rewards: Tensor, group_size: int, kind: Kind = "std") -> Tensor:
    """Compare each reward with those of the same prompt, Eq. 6 of arXiv:2510.13554 (GRPO, arXiv:2402.03300).

    Groups whose rewards are all equal get exact zeros, whatever their floating-point mean. A reward that is not finite
    says nothing about its sample: the group is what is left without it, and the sample's own advantage is zero.

    Args:
        rewards: [N], the G completions of a prompt adjacent; NaN where the reward function failed.
        group_size: G ≥ 1, a divisor of N.
        kind: "std" is (r − mean) / (s + 1e-4) with the sample standard deviation s; "mean" is r − mean
            (arXiv:2503.20783); "leave_one_out" is r − the mean of the others (arXiv:2402.14740).
    Returns:
        [N] float32.
    """
    if rewards.ndim != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} do not make groups of {group_size}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, not {kind!r}")
    groups = rewards.view(-1, group_size)
    centred, std, count = group_spread(groups)
    if kind == "std":
        centred = centred / (std + 1e-4)
    elif kind == "leave_one_out":
        centred = centred * (count / (count - 1).clamp(min=1))
    return centred.masked_fill(equal_rewards(groups)[:, None], 0.0).flatten()


def group_spread(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of each group without its mean, over its finite rewards.

    Args:
        groups: [B, G] rewards.
    Returns:
        r − mean [B, G], zero where a reward is not finite; the sample standard deviation [B, 1], zero where fewer than
        two are finite; how many are, [B, 1], at least 1.
    """
    known = groups.isfinite()
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    mean = groups.float().masked_fill(~known, 0.0).sum(dim=1, keepdim=True) / count
    centred = (groups.float() - mean).masked_fill(~known, 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred, std, count


def equal_rewards(groups: Tensor) -> Tensor:
    """Whether a group's finite rewards are all the same, compared exactly: [B, G] to [B] bool."""
    values, known = groups.double(), groups.isfinite()
    highest, lowest = values.masked_fill(~known, -torch.inf).amax(1), values.masked_fill(~known, torch.inf).amin(1)
    return highest <= lowest  # also where none is finite


def shape_advantages(
    advantages: Tensor, credit: Tensor, sign: Sign = "both", importance: Tensor | None = None
) -> Tensor:
    """Spread each response's advantage over its tokens, Ã_t = γ_t·A of Eq. 13 in arXiv:2510.13554.

    Args:
        advantages: [N].
        credit: [N, T], γ_t.
        sign: which advantages credit scales; "positive" means nonnegative, as in the paper's first version.
        importance: [N, T] ≥ 0, weights of the policy loss, whatever the sign: the clipped surrogate of w·Ã is w times
            that of Ã. None is 1 everywhere.
    Returns:
        [N, T]; rows of the other sign hold their plain advantage.
    """
    if credit.ndim != 2 or advantages.shape != credit.shape[:1]:
        raise ValueError(f"advantages {tuple(advantages.shape)} are not the [N] of credit {tuple(credit.shape)}")
    if sign not in get_args(Sign):
        raise ValueError(f"sign must be one of {get_args(Sign)}, not {sign!r}")
    advantages = advantages[:, None]
    if sign != "both":
        scaled = advantages >= 0 if sign == "positive" else advantages < 0
        credit = torch.where(scaled, credit, 1.0)
    return advantages * credit if importance is None else advantages * credit * importance
