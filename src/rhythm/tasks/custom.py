"""A user's own data and reward functions, from the command line or a YAML file."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from rhythm.tasks.base import Problem
from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import ProblemSet
from rhythm.tasks.reward import RewardFunction
from rhythm.types import Rollout


class Custom(DatasetTask):
    """Rows of any dataset, a prompt template over their columns, and rewards by functions of the user's.

    A function is `function(problem, completion) -> float`, with the row's columns in `problem`, or with `batch` one
    for lists of both. It runs in a child process; where it fails, the sample is left out of the update and counted.
    A reward is the weighted sum over the functions. The first of them says what is right: held-out evaluation counts
    the completions for which it returns 1, whatever the others, which may be about form or length, make of the reward.

    Args:
        train, test, template: see DatasetTask.
        rewards: a dotted name or several, importable from where the run is started.
        weights: one for each function; None is 1 for each.
        batch: the functions take lists and return one.
        answer_pattern: see DatasetTask; only `eval/parsed` reads it. None takes every completion for an answer.
        seconds: deadline of one call of a function.
    """

    def __init__(
        self,
        *,
        train: ProblemSet,
        test: ProblemSet,
        template: str,
        rewards: str | Sequence[str],
        weights: float | Sequence[float] | None = None,
        batch: bool = False,
        answer_pattern: str | None = None,
        seconds: float = 10.0,
    ):
        super().__init__(train=train, test=test, template=template, answer_pattern=answer_pattern)
        rewards = [rewards] if isinstance(rewards, str) else rewards
        weights = [1.0] * len(rewards) if weights is None else weights
        weights = [weights] if isinstance(weights, float | int | str) else list(weights)
        if not rewards or len(weights) != len(rewards):
            raise ValueError(f"task.weights={weights}: there are {len(rewards)} functions in task.rewards")
        if not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in weights):
            raise ValueError(f"task.weights={weights}: must be finite numbers")
        self.weights = weights
        self.functions = [RewardFunction(name, batch=batch, seconds=seconds) for name in rewards]

    def extract(self, completion: str) -> str | None:
        return super().extract(completion) if self.answer_pattern is not None else completion.strip() or None

    def reward(self, problem: Problem, completion: str) -> float:
        return self.scores([problem], [completion])[0]

    def right(self, rollout: Rollout) -> Tensor:
        return torch.tensor(self.functions[0](rollout.problems, rollout.completions)) == 1

    def scores(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """The weighted sum of the functions' rewards; NaN for a completion on which one of them failed."""
        found = [function(problems, completions) for function in self.functions]
        return [sum(map(operator.mul, self.weights, values)) for values in zip(*found, strict=True)]
