"""Sampling by the policy itself, in the process that trains it."""

from __future__ import annotations

import torch

from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.samplers.base import Sampler
from rhythm.types import Prompts, Rollout


class LocalSampler(Sampler):
    """The policy writes, with its adapter folded in where it can be."""

    def prepare(self, policy: Policy) -> None:
        """Nothing: the policy is at hand."""

    def sample(
        self,
        policy: Policy,
        prompts: Prompts,
        *,
        group_size: int,
        max_completion_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Rollout:
        with policy.whole(), policy.folded():
            return sample(
                policy.model,
                policy.tokenizer,
                prompts,
                group_size=group_size,
                max_completion_tokens=max_completion_tokens,
                temperature=temperature,
                stopping=policy.stopping,
                generator=torch.Generator(device=policy.device).manual_seed(seed),
            )

    def importance_weights(self, rollout: Rollout) -> None:
        """None: what was sampled is what is scored."""
