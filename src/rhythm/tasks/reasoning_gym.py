"""Any generated task of reasoning-gym (Stojanovski et al., 2025, arXiv:2505.24760) by its name.

Some of its scorers hand the answer to `eval` or to sympy's parser, which is `eval` as well: an answer could run
anything. Such tasks are refused by name; Countdown is among them and has a safe verifier of ours.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from datasets import Dataset

from rhythm.tasks.answers import last_match
from rhythm.tasks.base import Problem, Task
from rhythm.tasks.form import check_sizes, check_template, compiled
from rhythm.tasks.reward import RewardFunction

_EVALUATED = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(\s*(?:answer|\w*\.?\w*answer)\b")


class ReasoningGym(Task):
    """Problems made by reasoning-gym, with its prompt and its own scorer, which runs in a child process.

    Args:
        name: of the task there, such as `leg_counting`; `reasoning_gym.factory.DATASETS` lists them.
        train_size: training problems that are made; those that are held-out problems too are left out.
        test_size: held-out problems, made from other seeds.
        seed: of the problems, not of the run.
        settings: the task's own difficulty, such as {min_animals: 3}.
        template: the prompt, with {question}; the answer form is that of reasoning-gym's own system prompts.
        answer_pattern: a regular expression whose one group is the answer; its last match in a completion counts.
        seconds: an answer that takes the scorer longer scores 0.

    Raises:
        ValueError: reasoning-gym is not installed, has no such task, or its scorer would execute the answer.
    """

    def __init__(
        self,
        *,
        name: str,
        train_size: int = 10_000,
        test_size: int = 256,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        template: str = "{question}\nThink step by step, then give the final answer between <answer> and </answer>.",
        answer_pattern: str = r"(?s)<answer>((?:(?!</?answer>).)*)</answer>",
        seconds: float = 5.0,
    ):
        check_scorer(name)
        check_sizes(train_size=train_size, test_size=test_size)
        check_template(template, question="2 + 3?")
        self.name = name
        self.sizes = {"train": train_size, "test": test_size}
        self.seed = seed
        self.settings = json.dumps(dict(settings or {}))
        self.template = template
        self.answer_pattern = compiled(answer_pattern)
        self._score = RewardFunction("rhythm.tasks.gym_child.score", seconds=seconds)

    def origins(self) -> tuple[str, str]:
        return f"{self.sizes['train']:,} of reasoning-gym's {self.name}", f"{self.sizes['test']:,} of other seeds"

    def train_problems(self) -> Dataset:
        held_out = {problem["question"] for problem in self._problems("test")}
        return Dataset.from_list([row for row in self._problems("train") if row["question"] not in held_out])

    def test_problems(self) -> Dataset:
        return Dataset.from_list(self._problems("test"))

    def prompt(self, problem: Problem) -> str:
        return self.template.format(**problem)

    def extract(self, completion: str) -> str | None:
        return last_match(self.answer_pattern, completion)

    def reward(self, problem: Problem, completion: str) -> float:
        return self.scores([problem], [completion])[0]

    def scores(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """The scorer's verdict on each completion's answer; 0.0 where there is none or the scorer fails on it.

        NaN where so many answers before ran out of time that it was not tried.
        """
        answers = [self.extract(completion) for completion in completions]
        given = [i for i, answer in enumerate(answers) if answer is not None]
        found = self._score.tried([problems[i] for i in given], [answers[i] for i in given])
        rewards = [0.0 if answer is None else math.nan for answer in answers]
        for i, value in zip(given, found, strict=False):
            rewards[i] = 0.0 if math.isnan(value) else value
        return rewards

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """The generator's own answer to a problem, and none; nothing where it has none, or where a pattern hides it."""
        from rhythm.tasks.gym_child import entry_of

        problem = self._problems("test")[0]
        answer = entry_of(problem)["answer"]
        right = f"<answer>{answer}</answer>"
        return [(problem, right, 1.0), (problem, "", 0.0)] if answer and self.extract(right) == answer else []

    def _problems(self, split: str) -> list[dict[str, Any]]:
        """Distinct problems of a split, each with what it takes to make it again."""
        from rhythm.tasks.gym_child import questions  # reasoning-gym loads all its tasks

        first = 0 if split == "test" else self.sizes["test"]  # problem i of seed s is problem 0 of seed s + i
        recipe = {"name": self.name, "size": self.sizes[split], "seed": self.seed + first, "settings": self.settings}
        try:
            asked = questions(**recipe)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"task.settings={self.settings}: {self.name} of reasoning-gym: {error}") from error
        found: dict[str, dict[str, Any]] = {}
        for index, question in enumerate(asked):
            found.setdefault(question, {"question": question, **recipe, "index": index})
        return list(found.values())


def check_scorer(name: str) -> None:
    """Raises ValueError where there is no such task, or where its scorer evaluates the answer as an expression."""
    if find_spec("reasoning_gym") is None:
        raise ValueError("this task is made by reasoning-gym: pip install -e '.[gym]'")
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ValueError(f"task.name={name}: reasoning-gym has {', '.join(sorted(DATASETS)[:8])}, ...; not this one")
    if name == "countdown":
        raise ValueError("task.name=countdown: reasoning-gym's scorer executes the answer; use task=countdown")
    if _EVALUATED.search(inspect.getsource(DATASETS[name][0].score_answer)):
        raise ValueError(f"task.name={name}: reasoning-gym's scorer executes the answer as an expression; refused")
