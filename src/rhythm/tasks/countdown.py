"""Countdown (Pan et al., 2025, TinyZero): reach a target from given numbers, each used exactly once, with + - * /.

A problem's split follows from a hash of the problem itself, so training and test problems are disjoint whatever the
seeds, sizes and difficulties: a policy pretrained on training problems has seen no test problem of anyone.
"""

from __future__ import annotations

import operator
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from hashlib import sha256
from typing import Any, Literal

from datasets import Dataset

from rhythm.tasks.answers import last_match
from rhythm.tasks.base import Problem, Task
from rhythm.tasks.form import check_sizes, check_template, compiled

MAX_EXPRESSION_LENGTH = 256  # characters; a right answer to ten numbers of three digits needs under 100
TEST_SHARE = 8  # one problem in eight is a test problem

_TOKEN = re.compile(r"\s*(0|[1-9][0-9]{0,8}|[-+*/()])")
_GROUP = re.compile(r"\((?:\\.|\[(?:\\.|[^\]])*\]|[^()\\\[])*\)")  # of a pattern, without another one in it
_ESCAPED = re.compile(r"\\(\W)")

_NUMBER = re.compile(r"[0-9]+")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


class Countdown(Task):
    """Countdown problems of one difficulty.

    Args:
        count: numbers in a problem; the paper's setting is 4.
        number_range: smallest and largest number, inclusive.
        target_range: smallest and largest target, inclusive.
        largest: no intermediate result of the solution that made the problem exceeds this. Other solutions may.
        train_size: training problems, all distinct.
        test_size: held-out problems, all distinct and never among the training problems.
        seed: seed of the problems, not of the run: every run meets the same held-out problems.
        template: the prompt, with {numbers} (separated by a space) and {target}.
        answer_pattern: a regular expression whose one group is the expression; its last match in a completion counts.
    """

    def __init__(
        self,
        *,
        count: int = 4,
        number_range: Sequence[int] = (1, 100),
        target_range: Sequence[int] = (10, 100),
        largest: int = 10_000,
        train_size: int = 20_000,
        test_size: int = 512,
        seed: int = 0,
        template: str = "Using the numbers {numbers}, make an equation that equals {target}. Use each number exactly "
        "once, and only + - * / and parentheses. Show your work, then write the expression in <answer> </answer>.",
        answer_pattern: str = r"<answer>([^<]*)</answer>",
    ):
        if count < 2:
            raise ValueError(f"task.count={count}: a problem needs at least 2 numbers")
        for name, ends in {"number_range": number_range, "target_range": target_range}.items():
            if len(ends) != 2 or not all(isinstance(end, int) for end in ends) or not 1 <= ends[0] <= ends[1]:
                raise ValueError(f"task.{name}={list(ends)}: give whole numbers [low, high] with 1 <= low <= high")
        check_sizes(train_size=train_size, test_size=test_size)
        check_template(template, numbers="2 3 4", target=14)
        self.count = count
        self.number_range = tuple(number_range)
        self.target_range = tuple(target_range)
        self.largest = largest
        self.train_size = train_size
        self.test_size = test_size
        self.seed = seed
        self.template = template
        self.answer_pattern = compiled(answer_pattern)

    def origins(self) -> tuple[str, str]:
        return f"{self.train_size:,} generated, of {self.count} numbers", f"{self.test_size:,} by a hash of the problem"

    def train_problems(self) -> Dataset:
        return Dataset.from_list(self.problems("train", self.train_size))

    def test_problems(self) -> Dataset:
        return Dataset.from_list(self.problems("test", self.test_size))

    def prompt(self, problem: Problem) -> str:
        return self.template.format(numbers=" ".join(map(str, problem["numbers"])), target=problem["target"])

    def extract(self, completion: str) -> str | None:
        answer = last_match(self.answer_pattern, completion)
        if answer is None:
            return None
        try:
            evaluate(answer)
        except ValueError:
            return None
        return answer

    def reward(self, problem: Problem, completion: str) -> float:
        expression = self.extract(completion)
        return 0.0 if expression is None else self.score(expression, problem["numbers"], problem["target"])

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        """None where the answer's pattern is more than plain text around its group: how to write one is not known."""
        problem = {"numbers": [2, 3, 4], "target": 14}
        rewards = {"2 + 3 * 4": 1.0, "2 * (3 + 4)": 1.0, "(2 + 3) * 4": 0.0, "2 * 3 + 4 + 4": 0.0, "2 * 7": 0.0}
        form = _ESCAPED.sub(r"\1", _GROUP.sub("{}", self.answer_pattern.pattern, count=1).strip("^$"))
        before, _, after = form.partition("{}")
        known = [(problem, before + answer + after, reward) for answer, reward in rewards.items()]
        read = [self.answer_pattern.findall(completion) for _, completion, _ in known]
        return known if read == [[answer] for answer in rewards] else []

    def content_words(self, text: str) -> set[str]:
        """The numbers: what is reached and from what. The words around them are phrases to choose from."""
        return set(_NUMBER.findall(text))

    @staticmethod
    def score(text: str, numbers: Sequence[int], target: int) -> float:
        """1.0 where the bare expression `text` uses every number exactly once and equals the target, else 0.0.

        Text is parsed, never evaluated: integer literals, + - * / and parentheses exist; signs, powers and `=` do not.
        Division is exact. Any string is safe and takes well under a millisecond.
        """
        try:
            value, used = evaluate(text)
        except ValueError:
            return 0.0
        return float(value == target and Counter(used) == Counter(numbers))

    def problems(self, split: Literal["train", "test"], size: int) -> list[dict[str, Any]]:
        """`size` distinct problems of a split; ValueError where the difficulty does not hold so many."""
        draw = random.Random(f"{self.seed}/{split}")
        found: dict[tuple, dict[str, Any]] = {}
        misses = 0
        while len(found) < size:
            numbers = [draw.randint(*self.number_range) for _ in range(self.count)]
            target = _random_target(numbers, self.largest, draw)
            key = (tuple(sorted(numbers)), target)
            if key in found or not self.target_range[0] <= target <= self.target_range[1] or _split(key) != split:
                misses += 1
                if misses > 1000 + 200 * size:
                    raise ValueError(
                        f"task.{split}_size={size}: only {len(found)} distinct problems were found; "
                        f"lower it, or widen task.number_range or task.target_range"
                    )
                continue
            found[key] = {"numbers": numbers, "target": target}
        return list(found.values())


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers in it, left to right.

    Raises:
        ValueError: on anything that is not integers, + - * / and balanced parentheses, or that divides by zero.
    """
    values: list[Fraction] = []
    operators: list[str] = []
    used: list[int] = []

    def reduce_while(precedence: int) -> None:
        while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= precedence:
            right, left = values.pop(), values.pop()
            try:
                values.append(_OPERATORS[operators.pop()](left, right))
            except ZeroDivisionError as error:
                raise ValueError("division by zero") from error

    operand_expected = True
    for token in _tokens(text):
        if operand_expected:
            if token == "(":
                operators.append(token)
            elif token.isdigit():
                used.append(int(token))
                values.append(Fraction(used[-1]))
                operand_expected = False
            else:
                raise ValueError(f"{token!r} where a number or '(' must stand")
        elif token == ")":
            reduce_while(0)
            if not operators:
                raise ValueError("')' without '('")
            operators.pop()
        elif token in _OPERATORS:
            reduce_while(_PRECEDENCE[token])
            operators.append(token)
            operand_expected = True
        else:
            raise ValueError(f"{token!r} where an operator or ')' must stand")
    if operand_expected:
        raise ValueError("the expression ends where a number must stand")
    reduce_while(0)
    if operators:
        raise ValueError("'(' without ')'")
    return values[0], used


def steps(values: Sequence[int], largest: int) -> Iterator[tuple[int, int, str, int]]:
    """All ways to combine two of the values: (i, j, operator, result), results whole, not negative, at most `largest`.

    `i` is the left operand; sums and products are listed once, differences and quotients with the larger one first.
    """
    for i in range(len(values)):
        for j in range(len(values)):
            a, b = values[i], values[j]
            if i == j or a < b or (a == b and i > j):
                continue
            if a + b <= largest:
                yield i, j, "+", a + b
            yield i, j, "-", a - b
            if a * b <= largest:
                yield i, j, "*", a * b
            if b > 0 and a % b == 0:
                yield i, j, "/", a // b


def _random_target(numbers: Sequence[int], largest: int, draw: random.Random) -> int:
    """The value that random steps end at: a solution exists by construction."""
    values = list(numbers)
    while len(values) > 1:
        i, j, _, result = draw.choice(list(steps(values, largest)))
        values = [value for k, value in enumerate(values) if k not in (i, j)] + [result]
    return values[0]


def _split(key: tuple) -> Literal["train", "test"]:
    digest = int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big")
    return "test" if digest % TEST_SHARE == 0 else "train"


def _tokens(text: str) -> Iterator[str]:
    text = text.strip()
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise ValueError(f"longer than {MAX_EXPRESSION_LENGTH} characters")
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position]!r} is no part of an expression")
        yield match[1]
        position = match.end()
