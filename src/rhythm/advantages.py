"""From rewards to the advantage of each token."""

from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["std", "mean", "leave_one_out"]
Sign = Literal["both", "positive", "negative"]


def group_advantages(rewards: Tensor, group_size: int, kind: Kind = "std") -> Tensor:
    """Compare each reward with those of the same prompt, Eq. 6 of arXiv:2510.13554 (GRPO, arXiv:2402.03300).

    Groups whose rewards are all equal get exact zeros, whatever their floating-point mean.

    Args:
        rewards: [N], the G completions of a prompt adjacent.
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
    equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    centred = groups.float() - groups.float().mean(dim=1, keepdim=True)
    others = max(group_size - 1, 1)
    if kind == "std":
        centred = centred / ((centred.square().sum(dim=1, keepdim=True) / others).sqrt() + 1e-4)
    elif kind == "leave_one_out":
        centred = centred * (group_size / others)
    return centred.masked_fill(equal, 0.0).flatten()


def shape_advantages(advantages: Tensor, credit: Tensor, sign: Sign = "both") -> Tensor:
    """Spread each response's advantage over its tokens, Ã_t = γ_t·A of Eq. 13 in arXiv:2510.13554.

    Args:
        advantages: [N].
        credit: [N, T], γ_t.
        sign: which advantages credit scales; "positive" means nonnegative, as in the paper's first version.
    Returns:
        [N, T]; rows of the other sign hold their plain advantage.
    """
    if credit.ndim != 2 or advantages.shape != credit.shape[:1]:
        raise ValueError(f"advantages {tuple(advantages.shape)} are not the [N] of credit {tuple(credit.shape)}")
    if sign not in get_args(Sign):
        raise ValueError(f"sign must be one of {get_args(Sign)}, not {sign!r}")
    advantages = advantages[:, None]
    if sign == "both":
        return advantages * credit
    scaled = advantages >= 0 if sign == "positive" else advantages < 0
    return advantages * torch.where(scaled, credit, 1.0)
