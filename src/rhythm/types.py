"""What travels between the stages of an iteration.

B prompts, G completions each, N = B·G rows, P prompt tokens, T completion tokens, S = prompt + completion tokens.
A field that a later stage fills is None until then, and its comment says who fills it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Head = tuple[int, int]  # (layer, head), both 0-based


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as the data module yields it: one iteration's worth."""

    input_ids: Tensor  # [B, P], padded on the left
    attention_mask: Tensor  # [B, P], True on prompt tokens
    problems: list[dict[str, Any]]  # B rows of the task's dataset


@dataclass
class Rollout:
    """Sampled completions and what is learned about them, in the order in which the fields are filled.

    Rows of one prompt are adjacent: row i answers prompt i // G. In `input_ids` each row is its prompt at the left
    edge, its completion right behind it, and padding on the right, so that causal attention never sees padding.
    """

    problems: list[dict[str, Any]]  # N rows of the task's dataset, one for each completion
    completions: list[str]  # N texts, special tokens left out
    input_ids: Tensor  # [N, S]
    attention_mask: Tensor  # [N, S], True on prompt and completion tokens
    prompt_lengths: Tensor  # [N], so token t of row i stands in column prompt_lengths[i] + t
    completion_ids: Tensor  # [N, T]
    completion_mask: Tensor  # [N, T], True on sampled tokens, EOS included
    truncated: Tensor  # [N], True where the token limit came before EOS

    sampler_logps: Tensor | None = None  # [N, T], by a sampler that is not the policy itself; zero outside the mask
    rewards: Tensor | None = None  # [N], by the task's verifier; NaN where it failed: such rows teach nothing
    advantages: Tensor | None = None  # [N], by the advantage estimator
    old_logps: Tensor | None = None  # [N, T], by the scoring pass, at the sampling temperature
    ref_logps: Tensor | None = None  # [N, T], the same under the reference; only where beta > 0
    signals: AttentionSignals | None = None  # [N, T]; `entropy` by the scoring pass, the rest by a callback
    credit: Tensor | None = None  # [N, T], γ_t by the credit strategy
    importance_weights: Tensor | None = None  # [N, T], by the sampler: weights of the policy loss; None is 1 everywhere
    shaped_advantages: Tensor | None = None  # [N, T], Ã_t by `shape_advantages`, all of the above in one

    def take(self, rows: Tensor) -> Rollout:
        """Some rows of a rollout that was just sampled."""
        numbers = rows.tolist()
        return Rollout(
            problems=[self.problems[i] for i in numbers],
            completions=[self.completions[i] for i in numbers],
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            prompt_lengths=self.prompt_lengths[rows],
            completion_ids=self.completion_ids[rows],
            completion_mask=self.completion_mask[rows],
            truncated=self.truncated[rows],
            sampler_logps=None if self.sampler_logps is None else self.sampler_logps[rows],
        )


@dataclass(frozen=True)
class HeadGroups:
    """Heads that look near and heads that look far, Eq. 8 of arXiv:2510.13554."""

    local: list[Head]  # the lowest share of mean attention distance
    global_: list[Head]  # the highest


@dataclass
class AttentionSignals:
    """What attention and the output distribution say about each token.

    Every tensor has the shape of the completion mask that it was computed for, [N, T] in training and [B, S] from
    `attention_signals`. NaN means undefined: outside the mask, a horizon with no rows, the drop of a last token.
    """

    entropy: Tensor | None = None  # nats, of the distribution that produced the token
    waad: Tensor | None = None  # tokens in [0, window]; windowed average attention distance, Eq. 9
    waad_drop: Tensor | None = None  # tokens; |WAAD_t − WAAD_{t+1}|, Eq. 14
    fai: Tensor | None = None  # attention in [0, 1]; future attention influence, Eq. 10
    heads: HeadGroups | None = None
    distance: dict[int, Tensor] | None = None  # layer -> [H] float64, mean attention distance in tokens, Eq. 7
