"""Imperfect step-by-step Countdown traces: the text that the embedded policy is pretrained on.

A trace restates the problem, makes up to `max_attempts` attempts of which each is right with probability `skill`, and
ends with an answer: the first right expression, or that of the last attempt. It never gives up early, so going on for
longer is nothing that reinforcement learning could gain from; choosing better steps is. The last attempt is answered
without a verdict, right or wrong: a phrase that only failures use would be punished until nothing sensible is left.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from rhythm.tasks.countdown import steps

OPENINGS = (
    "i have {numbers} and i want to reach {target} , so let me think step by step .",
    "the numbers are {numbers} and the target is {target} , i use each number once .",
    "okay , i need to make {target} from {numbers} with each number used once .",
)
ATTEMPTS = (
    "my {ordinal} idea is to take {step}",
    "for my {ordinal} try i compute {step}",
    "let me make a {ordinal} attempt with {step}",
)
STEPS = ("{sum} = {result} , that leaves {left} .", "{sum} = {result} , so now i have {left} .")
LINKS = ("then", "from there", "and next")
RIGHT = ("that is exactly the target {target} !", "this reaches {target} , just what i need .")
WRONG = (
    "that is not {target} , so i go back to {numbers} .",
    "this does not reach {target} , so let me start again from {numbers} .",
)
SOLVED = ("so my answer is {expression}",)
LAST = ("that was my last try , so my answer is {expression}", "i have no more tries , so my answer is {expression}")
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Term:
    value: int
    text: str

    @property
    def operand(self) -> str:
        return f"( {self.text} )" if " " in self.text else self.text


@cache
def reachable(values: tuple[int, ...], target: int, largest: int) -> bool:
    """Whether steps lead from the (sorted) values to the target."""
    if len(values) == 1:
        return values[0] == target
    return any(reachable(_after(values, i, j, result), target, largest) for i, j, _, result in steps(values, largest))


def trace(
    numbers: list[int], target: int, *, largest: int, skill: float, max_attempts: int, draw: random.Random
) -> str:
    """One response to a problem, as text of single words."""
    words = {"numbers": " ".join(map(str, numbers)), "target": target}
    parts = [draw.choice(OPENINGS).format(**words)]
    for attempt in range(max_attempts):
        right = draw.random() < skill
        text, expression = _attempt(numbers, target, right, largest, draw)
        parts.append(draw.choice(ATTEMPTS).format(ordinal=ORDINALS[attempt], step=text))
        if attempt == max_attempts - 1:
            parts.append(draw.choice(LAST).format(expression=expression))
        elif right:
            parts += [draw.choice(RIGHT).format(**words), draw.choice(SOLVED).format(expression=expression)]
            break
        else:
            parts.append(draw.choice(WRONG).format(**words))
    return " ".join(parts)


def vocabulary(largest: int) -> list[str]:
    """Every word that a prompt or a trace can hold."""
    phrases = (*OPENINGS, *ATTEMPTS, *STEPS, *LINKS, *RIGHT, *WRONG, *SOLVED, *LAST, *ORDINALS)
    words = {word for phrase in phrases for word in phrase.split() if not word.startswith("{")}
    words |= {"numbers", "target", ":", "+", "-", "*", "/", "(", ")", "="}
    return [*map(str, range(largest + 1)), *sorted(words)]


def _attempt(numbers: list[int], target: int, right: bool, largest: int, draw: random.Random) -> tuple[str, str]:
    """The text of an attempt that reaches the target or not, as asked, and its expression."""
    terms = [Term(number, str(number)) for number in numbers]
    parts = []
    while len(terms) > 1:
        i, j, sign, result = _choose(terms, target, right, largest, draw)
        a, b = terms[i], terms[j]
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        terms = [Term(result, f"{a.operand} {sign} {b.operand}"), *rest]
        left = " ".join(str(term.value) for term in terms)
        template = draw.choice(STEPS) if rest else "{sum} = {result} ."
        step = template.format(sum=f"{a.value} {sign} {b.value}", result=result, left=left)
        parts += [draw.choice(LINKS), step] if parts else [step]
    return " ".join(parts), terms[0].text


def _choose(
    terms: list[Term], target: int, right: bool, largest: int, draw: random.Random
) -> tuple[int, int, str, int]:
    values = tuple(term.value for term in terms)
    options = list(steps(values, largest))
    draw.shuffle(options)
    if right:
        return next(o for o in options if reachable(_after(values, o[0], o[1], o[3]), target, largest))
    if len(terms) > 2:
        return options[0]
    return next((o for o in options if o[3] != target), options[0])


def _after(values: tuple[int, ...], i: int, j: int, result: int) -> tuple[int, ...]:
    return tuple(sorted([value for k, value in enumerate(values) if k not in (i, j)] + [result]))
