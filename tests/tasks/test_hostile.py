"""The verifier against answers that attack it: right score, at once, and nothing happens."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhythm.tasks.answers import MAX_COMPLETION_LENGTH
from rhythm.tasks.countdown import Countdown
from tests.tasks.hostile import ACTIONS, CORPUS

SECONDS = 0.010
TASKS = {
    "<answer>{}</answer>": Countdown(count=2),
    "so my answer is {}": Countdown(count=2, answer_pattern="my answer is ([-+*/() 0-9]+)"),
}
_watched: list[str] | None = None  # events that the interpreter reported while it was a list


def _hook(event: str, arguments: tuple) -> None:
    if _watched is not None:
        _watched.append(event)


sys.addaudithook(_hook)  # for as long as the process lives: there is no way to remove one


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Inside, nothing is opened, imported, compiled, executed, started or connected to, and no variable is set."""
    global _watched
    environment, _watched = dict(os.environ), []
    try:
        yield
        events = _watched
    finally:
        _watched = None
    assert events == []
    assert dict(os.environ) == environment


def quickest(call, *arguments, attempts=5):
    """The result, and the least seconds of up to some attempts: a busy machine makes any one of them slow."""
    least = float("inf")
    for _ in range(attempts):
        started = time.process_time()
        result = call(*arguments)
        least = min(least, time.process_time() - started)
        if least < SECONDS:
            break
    return result, least


def test_the_corpus_is_large_and_its_cases_differ():
    cases = {(text, tuple(numbers), target) for cases in CORPUS.values() for text, numbers, target, _ in cases}
    assert len(cases) == sum(map(len, CORPUS.values())) >= 400
    assert min(map(len, CORPUS.values())) >= 20
    assert sum(score for cases in CORPUS.values() for *_, score in cases) >= 10


@pytest.mark.parametrize("category", CORPUS)
def test_hostile_answers_get_the_right_score_at_once_and_do_nothing(category):
    for text, numbers, target, expected in CORPUS[category]:
        with nothing_happens():
            score, seconds = quickest(Countdown.score, text, numbers, target)
        assert score == expected, ascii(text)[:200]
        assert seconds < SECONDS, ascii(text)[:200]


@pytest.mark.parametrize("form", TASKS)
@pytest.mark.parametrize("category", CORPUS)
def test_hostile_answers_in_a_completion_get_the_right_score_too(category, form):
    task = TASKS[form]
    for text, numbers, target, expected in CORPUS[category]:
        completion, problem = form.format(text), {"numbers": numbers, "target": target}
        with nothing_happens():
            score, seconds = quickest(task.reward, problem, completion)
        assert seconds < SECONDS, ascii(text)[:200]
        # What a pattern reads out of a completion is the whole text, or less of it where the pattern allows only some
        # characters: then the answer is what it read, which may be right.
        read = task.answer_pattern.findall(completion[-MAX_COMPLETION_LENGTH:])
        assert score == (Countdown.score(read[-1], numbers, target) if read else 0.0), ascii(text)[:200]
        if read and read[-1] == text:
            assert score == expected, ascii(text)[:200]


def test_only_the_end_of_an_endless_completion_is_read():
    task, problem = TASKS["<answer>{}</answer>"], {"numbers": [1, 2], "target": 3}
    answer = "<answer>1+2</answer>"
    assert task.reward(problem, "so " * 400_000 + answer) == 1.0
    assert task.reward(problem, answer + " " * (MAX_COMPLETION_LENGTH - len(answer))) == 1.0
    assert task.reward(problem, answer + " " * MAX_COMPLETION_LENGTH) == 0.0


# Pieces that mean something to a parser, an evaluator or a pattern, in any order.
CHARACTERS = "0123456789+-*/()=.,_eExj \n\t<>|&^~%!²٣−×，\x00\u200b\ud800"
WORDS = ("**", "//", "<answer>", "</answer>", "1e9", "0x1", "nan", "inf", "my answer is ")
PIECES = st.sampled_from([*CHARACTERS, *WORDS, *ACTIONS])


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(max_size=300)), st.integers(1, 2000))
def test_any_text_is_scored_at_once_and_does_nothing(text, repeats):
    for form, task in TASKS.items():
        for completion in (text, form.format(text), form.format(text * repeats)[:1_000_000]):
            with nothing_happens():
                score, seconds = quickest(task.reward, {"numbers": (1, 2), "target": 3}, completion)
            assert score in (0.0, 1.0)
            assert seconds < SECONDS
