"""Who writes the completions."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from rhythm.policy import Policy
from rhythm.types import Prompts, Rollout


class Sampler(ABC):
    """Writes completions of the policy as it is now."""

    @abstractmethod
    def prepare(self, policy: Policy) -> None:
        """Before each sampling, on the first rank alone while the others wait."""

    @abstractmethod
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
        """`group_size` completions of each prompt from the full softmax at `temperature`; see `rollout.sample`."""

    @abstractmethod
    def importance_weights(self, rollout: Rollout) -> Tensor | None:
        """The weight of each token in the policy loss, [N, T], once the rollout is scored; None is 1 everywhere."""
