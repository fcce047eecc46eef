"""A template or a pattern that cannot work is told in one line before anything is begun, whatever the task."""

import pytest

from rhythm.tasks.choice import Choice
from rhythm.tasks.countdown import Countdown
from rhythm.tasks.form import columns_named, filled
from rhythm.tasks.problem_set import ProblemSet
from rhythm.tasks.reasoning_gym import ReasoningGym

UNREAD = ProblemSet(path="nobody/nothing")


def countdown(template="{numbers} {target}", **settings):
    return Countdown(template=template, **settings)


def gym(template="{question}", **settings):
    return ReasoningGym(name="leg_counting", template=template, **settings)


def choice(template="{problem}", **settings):
    return Choice(train=UNREAD, test=UNREAD, template=template, **settings)


@pytest.mark.parametrize("make", [countdown, gym, choice])
@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is no regular expression (missing ), unterminated subpattern at position 0)"),
        ("(a{99999999999})", "is no regular expression (the repetition number is too large)"),
        ("Answer: .*", "must have one group, around the answer"),
        ("(Answer): (.*)", "must have one group, around the answer"),
    ],
)
def test_a_pattern_has_one_group(make, pattern, reason):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make(answer_pattern=pattern)
    assert str(caught.value) == f"task.answer_pattern={pattern}: {reason}"


@pytest.mark.parametrize("make", [countdown, gym, choice])
def test_a_brace_that_is_left_open(make):
    with pytest.raises(ValueError, match=r"^task.template: .*; a brace itself is written twice$"):
        make(template="\\boxed{")


@pytest.mark.parametrize(
    ("make", "template", "reason"),
    [
        (
            countdown,
            "{nums} {target}",
            r" cannot be filled \(KeyError\('nums'\)\): the columns are numbers, target; a br",
        ),
        (
            countdown,
            "{} {target}",
            " cannot be filled .*: the columns are numbers, target; a brace itself is written tw",
        ),
        (countdown, "{numbers.first} {target}", " cannot be filled .*AttributeError"),
        (countdown, "{numbers} {target[0]}", " cannot be filled .*TypeError"),
        (countdown, "{numbers:d} {target}", " cannot be filled .*ValueError"),
        (countdown, "Reach {target}", r": must hold \{numbers\}$"),
        (countdown, "Play", r": must hold \{numbers\} and \{target\}$"),
        (gym, "{problem}", r" cannot be filled \(KeyError\('problem'\)\): the columns are question; a brace"),
        (gym, "Think.", r": must hold \{question\}$"),
    ],
)
def test_a_template_holds_what_the_task_has(make, template, reason):
    with pytest.raises(ValueError, match=f"^task.template{reason}"):
        make(template=template)


@pytest.mark.parametrize("make", [countdown, gym])
@pytest.mark.parametrize("name", ["train_size", "test_size"])
def test_there_is_a_problem_at_least(make, name):
    with pytest.raises(ValueError, match=f"^task.{name}=0: must be at least 1$"):
        make(**{name: 0})


def test_a_template_is_filled_with_columns_as_they_are():
    assert columns_named("{a} {{b}} {c:>3} {}") == {"a", "c"}
    assert filled("{a} in \\boxed{{}}", {"a": "{x} {0}"}) == "{x} {0} in \\boxed{}"
