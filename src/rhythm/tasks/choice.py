r"""Questions with an answer in words or among lettered options, given in \boxed{}: Nemotron-CrossThink-QA.

Akter et al., 2025, arXiv:2504.13941: options stand in the question, the answer is the letter of one; other questions
are open, with an answer of at most ten words that must be met exactly, up to case and spaces.
"""

from __future__ import annotations

from rhythm.tasks.answers import is_option, lettered, options, plain_text, reference_answer
from rhythm.tasks.base import Problem
from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import Row


class Choice(DatasetTask):
    r"""Questions whose `answer` is a letter, or a few words. The other columns are those that the template names.

    Right is the same letter, with the same words behind it or none. Words that only one of the two has, or that differ,
    must be those that the prompt lists behind the letter: `\boxed{B. Paris}` is right for `B` where an option reads
    "B. Paris, on the Seine", and \boxed{E} is wrong for `E. coli` where no options are listed. For a bare letter words
    do not count where no list is recognised.
    """

    reads = ("answer",)

    def read(self, row: Row) -> Row | None:
        answer = reference_answer(str(row["answer"])) if row["answer"] is not None else None
        return None if answer is None else {**row, "answer": answer}

    def reward(self, problem: Problem, completion: str) -> float:
        answer = self.extract(completion)
        return 0.0 if answer is None else float(self._is_right(problem, answer))

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """None with a user's answer_pattern: then nobody knows how to write an answer."""
        rewards = {"\\boxed{(B)}": 1.0, "\\boxed{A}, no: \\boxed{b}": 1.0, "\\boxed{A, B}": 0.0, "B": 0.0}
        return [({"answer": "B"}, *known) for known in rewards.items()] if self.answer_pattern is None else []

    def _is_right(self, problem: Problem, answer: str) -> bool:
        if plain_text(answer) == plain_text(problem["answer"]):
            return True
        given, right = lettered(answer), lettered(problem["answer"])
        if given is None or right is None or given[0] != right[0]:
            return False
        if given == right:
            return True
        lists = options(self.prompt(problem))
        if not lists:  # of a bare letter there are some; where their form is not known here, the letter decides
            return not right[1]
        return any(is_option(listed, *given) and is_option(listed, *right) for listed in lists)
