r"""Mathematics with an answer in \boxed{}: GSM8K, MATH, DAPO-Math-17K, AIME, AMC, OlympiadBench, Minerva.

Asked as Qwen2.5-Math is evaluated (github.com/QwenLM/Qwen2.5-Math, prompt type qwen-boxed) and as Section 4 of
arXiv:2510.13554 asks. Answers are compared by math-verify in a child process with a deadline; where two are the same
characters or two numbers, no child is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

from rhythm.tasks.answers import MAX_ANSWER_LENGTH, compare, reference_answer, without_percent
from rhythm.tasks.base import Problem
from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import ProblemSet, Row
from rhythm.tasks.reward import RewardFunction


class Math(DatasetTask):
    r"""Problems whose answer is a number, an expression, a set, an interval or a tuple.

    The columns are `answer` and what the template names. An `answer` may be a worked solution, which ends in
    \boxed{...} or in GSM8K's `#### 72`; of several answers all must be given. Two numbers must be equal in every digit,
    a number and an expression in five digits and to the sixth decimal; 20% is 20; R is another symbol than r.

    Args:
        train, test, template, answer_pattern: see DatasetTask.
        seconds: an answer that takes math-verify longer is wrong.

    Raises:
        ValueError: math-verify is not installed.
    """

    reads = ("answer",)

    def __init__(
        self,
        *,
        train: ProblemSet,
        test: ProblemSet,
        template: str = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        answer_pattern: str | None = None,
        seconds: float = 3.0,
    ):
        super().__init__(train=train, test=test, template=template, answer_pattern=answer_pattern)
        if find_spec("math_verify") is None:
            raise ValueError("this task compares answers by math-verify: pip install -e '.[math]'")
        self._equal = RewardFunction("rhythm.tasks.math_child.equal", seconds=seconds)

    def read(self, row: Row) -> Row | None:
        given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        answers = [None if answer is None else reference_answer(str(answer)) for answer in given]
        return {**row, "answer": ", ".join(answers)} if answers and None not in answers else None

    def reward(self, problem: Problem, completion: str) -> float:
        return self.scores([problem], [completion])[0]

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """None with a user's answer_pattern: then nobody knows how to write an answer."""
        rewards = {"\\boxed{0.5}": 1.0, "\\boxed{2/4}": 1.0, "\\boxed{0.5}, no: \\boxed{2}": 0.0, "\\frac{1}{2}": 0.0}
        problem = {"answer": "\\frac{1}{2}"}
        return [(problem, *known) for known in rewards.items()] if self.answer_pattern is None else []

    def scores(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """1.0 where a completion's answer equals its problem's, else 0.0; the same two answers are compared once.

        NaN where so many answers before ran out of time that it was not tried.
        """
        answers = (self.extract(completion) for completion in completions)
        pairs = [(problem["answer"], answer) for problem, answer in zip(problems, answers, strict=True)]
        pairs = [(without_percent(right), answer and without_percent(answer)) for right, answer in pairs]
        verdicts = {pair: _plain(*pair) for pair in pairs}
        unclear = [pair for pair, verdict in verdicts.items() if verdict is None]
        found = self._equal.tried([{"answer": answer} for answer, _ in unclear], [answer for _, answer in unclear])
        verdicts |= {pair: value == 1.0 for pair, value in zip(unclear, found, strict=False)}  # NaN: it ran out of time
        return [math.nan if verdicts[pair] is None else float(verdicts[pair]) for pair in pairs]


def _plain(reference: str, answer: str | None) -> bool | None:
    """Whether an answer is right where that takes no algebra, else None."""
    if answer is None or len(answer) > MAX_ANSWER_LENGTH:
        return False
    return compare(reference, answer)
