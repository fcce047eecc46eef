"""The responses that an analysis is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rhythm.data import collate_prompts
from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.seeding import generator
from rhythm.tasks.base import Task
from rhythm.types import Prompts, Rollout

Short = Literal["refuse", "leave_out"]


def respond(
    policy: Policy,
    task: Task,
    problems: Sequence[dict[str, Any]],
    *,
    temperature: float,
    max_completion_tokens: int,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Rollout:
    """One response to each problem, with rewards; `batch_size` are written together. Temperature 0 is greedy."""
    parts = []
    for number, start in enumerate(range(0, len(problems), batch_size)):
        prompts = collate_prompts(task, policy.tokenizer, problems[start : start + batch_size], policy.chat)
        here = Prompts(prompts.input_ids.to(policy.device), prompts.attention_mask.to(policy.device), prompts.problems)
        with policy.folded():
            written = sample(
                policy.model,
                policy.tokenizer,
                here,
                group_size=1,
                max_completion_tokens=max_completion_tokens,
                temperature=temperature,
                stopping=policy.stopping,
                generator=generator(seed, "sampling", number, device=policy.device),
            )
        parts.append(written)
        progress(min(1.0, (start + batch_size) / len(problems)))
    rollout = join(parts, policy.tokenizer.pad_token_id)
    rollout.rewards = task.rewards(rollout)
    return rollout


def join(parts: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """Some rollouts as one, whose later fields are None."""

    def stack(name: str, fill: int | bool) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        width = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([F.pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])

    return Rollout(
        problems=[problem for part in parts for problem in part.problems],
        completions=[completion for part in parts for completion in part.completions],
        input_ids=stack("input_ids", pad_token_id),
        attention_mask=stack("attention_mask", False),
        prompt_lengths=torch.cat([part.prompt_lengths for part in parts]),
        completion_ids=stack("completion_ids", pad_token_id),
        completion_mask=stack("completion_mask", False),
        truncated=torch.cat([part.truncated for part in parts]),
    )


def long_enough(rollout: Rollout, window: int, short: Short) -> Rollout:
    """The responses of at least `window` tokens, in whose shorter ones WAAD never sees a whole window.

    Raises:
        ValueError: one is shorter and `short` is "refuse", or fewer than two are left.
    """
    if short not in get_args(Short):
        raise ValueError(f"short={short!r}: use one of {', '.join(get_args(Short))}")
    lengths = rollout.completion_mask.sum(1)
    kept = lengths >= window
    count = int((~kept).sum())
    if count and short == "refuse":
        row = int((~kept).nonzero()[0, 0])
        raise ValueError(
            f"response {row + 1} of {len(kept)} has {int(lengths[row])} tokens, fewer than window={window} (as have "
            f"{count} in all): lower window, raise max_completion_tokens, or set short=leave_out"
        )
    if int(kept.sum()) < 2:
        raise ValueError(
            f"{int(kept.sum())} of {len(kept)} responses have window={window} tokens or more, and intervals take two: "
            "raise responses or max_completion_tokens, or lower window"
        )
    if not count:
        return rollout
    rows = kept.nonzero()[:, 0]
    left = rollout.take(rows)
    left.rewards = rollout.rewards[rows.cpu()]
    return left
