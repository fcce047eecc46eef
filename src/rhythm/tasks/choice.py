r"""Questions with an answer in words or among lettered options, given in \boxed{}: Nemotron-CrossThink-QA.

Akter et al., 2025, arXiv:2504.13941: options stand in the question, the answer is the letter of one; other questions
are open, with an answer of at most ten words that must be met exactly, up to case and spaces.
"""

from __future__ import annotations

from rhythm.tasks.answers import choice_letter, plain_text, reference_answer
from rhythm.tasks.base import Problem
from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import Row


class Choice(DatasetTask):
    """Questions whose `answer` is a letter, or a few words. The other columns are those that the template names."""

    def read(self, row: Row) -> Row | None:
        answer = reference_answer(str(row["answer"])) if row["answer"] is not None else None
        return None if answer is None else {**row, "answer": answer}

    def reward(self, problem: Problem, completion: str) -> float:
        answer = self.extract(completion)
        if answer is None:
            return 0.0
        letter = choice_letter(problem["answer"])
        if letter is not None:
            return float(choice_letter(answer) == letter)
        return float(plain_text(answer) == plain_text(problem["answer"]))

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """None with a user's answer_pattern: then nobody knows how to write an answer."""
        rewards = {"\\boxed{(B)}": 1.0, "\\boxed{A}, no: \\boxed{b}": 1.0, "\\boxed{A, B}": 0.0, "B": 0.0}
        return [({"answer": "B"}, *known) for known in rewards.items()] if self.answer_pattern is None else []
