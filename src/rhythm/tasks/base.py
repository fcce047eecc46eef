"""What a task owes the trainer: problems, prompts, and a verifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from rhythm.tasks.words import content_words
from rhythm.types import Rollout

Problem = Mapping[str, Any]


class Task(ABC):
    """Problems with a verifier. A subclass holds prompt text, answer form and scoring of one task, in one file."""

    @abstractmethod
    def train_problems(self) -> Dataset:
        """The rows that prompts are drawn from; the columns are the task's own."""

    @abstractmethod
    def test_problems(self) -> Dataset:
        """Held-out rows, disjoint from the training rows and the same for every run."""

    @abstractmethod
    def prompt(self, problem: Problem) -> str:
        """The text that the policy continues."""

    @abstractmethod
    def extract(self, completion: str) -> str | None:
        """The answer that a completion ends with, as text, or None where there is none that parses."""

    @abstractmethod
    def reward(self, problem: Problem, completion: str) -> float:
        """The score of one completion, 1.0 where the answer is right. Never raises on a completion's text."""

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """Problems, completions to them and the rewards that those must get, right ones and wrong ones.

        Every start of a run tries them: a few, each in the task's answer form, quick to score. None by default.
        """
        return []

    def origins(self) -> tuple[str, str]:
        """Where the training and the held-out problems come from, in words: the model card names both."""
        return "its own", "its own"

    def held_out(self, count: int) -> list[Problem]:
        """`count` held-out problems evenly spaced over all, or all where there are fewer: a task may sort them."""
        problems = self.test_problems().to_list()
        count = min(count, len(problems))
        return [problems[i * len(problems) // count] for i in range(count)]

    def content_words(self, text: str) -> set[str]:
        """What a piece of a completion speaks of; two pieces are compared by it. By default words and numbers."""
        return content_words(text)

    def rewards(self, rollout: Rollout) -> Tensor:
        """Scores a batch: [N], float32; NaN where there is no score, and the sample is left out of the update."""
        return torch.tensor(self.scores(rollout.problems, rollout.completions), dtype=torch.float32)

    def right(self, rollout: Rollout) -> Tensor:
        """The completions that held-out evaluation counts as right: [N] bool. By default those with a reward of 1."""
        return self.rewards(rollout) == 1

    def scores(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """The reward of each completion; a task whose verifier is quicker on many overrides this."""
        pairs = zip(problems, completions, strict=True)
        return [self.reward(problem, completion) for problem, completion in pairs]
