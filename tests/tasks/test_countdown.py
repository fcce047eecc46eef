import ast
import itertools
import os
import random
import re
import time
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhythm.tasks.countdown import MAX_EXPRESSION_LENGTH, Countdown, evaluate, steps
from tests.tasks.processor import takes_less_than

EASY = {"count": 3, "number_range": (1, 15), "largest": 150}


def key(problem):
    return tuple(sorted(problem["numbers"])), problem["target"]


def values_of(numbers):
    """Every value that the numbers make, each used once: exhaustive, in exact fractions."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for made in (a + b, a - b, a * b, *([a / b] if b else [])):
            found |= values_of([*rest, made])
    return found


def whole_values_of(numbers, largest):
    """The same by steps whose every result is whole, not negative and at most `largest`."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for made in (a + b, a - b, a * b, *([a // b] if b and a % b == 0 else [])):
            if 0 <= made <= largest:
                found |= whole_values_of([*rest, made], largest)
    return found


# ---- problems


@pytest.mark.parametrize(("options", "size"), [(EASY, 60), ({"count": 4}, 12), ({"count": 2}, 40)])
def test_every_problem_has_a_solution(options, size):
    for problem in Countdown(**options).problems("train", size):
        assert problem["target"] in values_of([Fraction(n) for n in problem["numbers"]]), problem


def test_a_solution_stays_within_largest():
    for problem in Countdown(**EASY | {"largest": 24, "target_range": (10, 24)}).problems("train", 60):
        assert problem["target"] in whole_values_of(problem["numbers"], 24), problem


def test_problems_respect_the_ranges_and_use_both_ends():
    problems = Countdown(count=3, number_range=(3, 6), target_range=(10, 14)).problems("train", 25)
    numbers = [n for problem in problems for n in problem["numbers"]]
    targets = [problem["target"] for problem in problems]
    assert {len(problem["numbers"]) for problem in problems} == {3}
    assert (min(numbers), max(numbers), min(targets), max(targets)) == (3, 6, 10, 14)


def test_problems_are_as_many_as_asked_for_and_distinct():
    task = Countdown(**EASY, train_size=700, test_size=90)
    train, test = task.train_problems().to_list(), task.test_problems().to_list()
    assert (len(train), len(test)) == (700, 90)
    assert len({key(problem) for problem in train}) == 700  # as multisets: another order is no other problem
    assert len({key(problem) for problem in test}) == 90


def test_no_training_problem_is_a_test_problem_of_anyone():
    tasks = [
        Countdown(**EASY | {"seed": seed, "number_range": (1, high), "train_size": 400, "test_size": 60})
        for seed, high in itertools.product((0, 1), (12, 15))
    ]
    train = set().union(*({key(problem) for problem in task.train_problems()} for task in tasks))
    test = set().union(*({key(problem) for problem in task.test_problems()} for task in tasks))
    assert len(test) > 120
    assert not train & test


def test_the_seed_makes_the_problems():
    task = Countdown(**EASY, test_size=30)
    test = task.test_problems().to_list()
    assert task.held_out(3) == [test[0], test[10], test[20]]
    assert task.held_out(99) == test
    assert Countdown(**EASY, test_size=30, train_size=5).test_problems().to_list() == test
    assert Countdown(**EASY, test_size=50).test_problems().to_list()[:30] == test
    assert Countdown(**EASY, test_size=30, seed=1).test_problems().to_list() != test


def test_more_problems_than_there_are_is_an_error_that_says_what_to_change():
    task = Countdown(count=2, number_range=(1, 3), target_range=(1, 9), train_size=500)
    with pytest.raises(ValueError, match=r"task.train_size=500: only \d+ distinct problems .* task.number_range"):
        task.train_problems()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "task.count=1"),
        ({"number_range": (0, 5)}, r"task.number_range=\[0, 5\]"),
        ({"number_range": (7, 5)}, r"task.number_range=\[7, 5\]"),
        ({"target_range": (20, 10)}, r"task.target_range=\[20, 10\]"),
        ({"number_range": [1]}, r"^task.number_range=\[1\]: give whole numbers \[low, high\] with 1 <= low <= high$"),
        ({"number_range": [1, 2, 3]}, r"task.number_range=\[1, 2, 3\]"),
        ({"target_range": [1, 9.5]}, r"task.target_range=\[1, 9.5\]"),
        ({"target_range": ["a", "b"]}, r"task.target_range=\['a', 'b'\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Countdown(**options)


def test_steps_are_whole_not_negative_and_at_most_the_largest():
    assert set(steps([3, 6], 10)) == {(1, 0, "+", 9), (1, 0, "-", 3), (1, 0, "/", 2)}  # 18 is too large
    assert set(steps([4, 4], 16)) == {(0, 1, "+", 8), (0, 1, "-", 0), (0, 1, "*", 16), (0, 1, "/", 1)}
    assert set(steps([5, 3], 7)) == {(0, 1, "-", 2)}  # 8 and 15 are too large, 5/3 is not whole
    assert set(steps([2, 0], 9)) == {(0, 1, "+", 2), (0, 1, "-", 2), (0, 1, "*", 0)}


# ---- verifier


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("(1 + 2) * 3", [1, 2, 3], 9),
        ("3*(2+1)", [1, 2, 3], 9),
        ("  ( 1+2 )*3  ", [3, 2, 1], 9),
        ("1 + 2 * 3", [1, 2, 3], 7),
        ("2 * 3 + 1", [1, 2, 3], 7),
        ("10 - 3 - 2", [10, 3, 2], 5),  # from the left
        ("10 - (3 - 2)", [10, 3, 2], 9),
        ("24 / 4 / 2", [24, 4, 2], 3),
        ("24 / 4 * 2", [24, 4, 2], 12),
        ("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24),  # exact: 24.000000000000007 in floating point
        ("1 / 3 * 3 * 5", [1, 3, 3, 5], 5),
        ("2 - 5 + 9", [2, 5, 9], 6),  # below zero on the way
        ("(((((1)))) + ((2)))", [1, 2], 3),
        ("7 + 7", [7, 7], 14),
        ("0 + 5", [0, 5], 5),
        ("999999999 - 999999989", [999999999, 999999989], 10),
        ("5", [5], 5),
        ("(" * 120 + "1+2" + ")" * 120, [1, 2], 3),
    ],
)
def test_right_answers_score_one(text, numbers, target):
    assert Countdown.score(text, numbers=numbers, target=target) == 1.0


ATTACK = "__import__('os').environ.update({'HIT': '1'}) or 1+2+3"
WRONG = [
    ("1 + 2 + 3", [1, 2, 3], 7),  # another value
    ("7 / 2", [7, 2], 3),  # not rounded
    ("1 + 2", [1, 2, 3], 3),  # a number left out
    ("1 + 2 + 3 - 3", [1, 2, 3], 3),  # one used twice
    ("7", [7, 7], 7),
    ("1 + 3", [1, 2], 4),  # one that was not given
    ("12", [1, 2], 12),  # glued together
    ("1 2 + 3", [1, 2, 3], 15),
    ("-1 + 4", [1, 4], 3),  # signs
    ("4 + -1", [4, 1], 3),
    ("+4 - 1", [4, 1], 3),
    ("4 * (-1)", [4, 1], -4),
    ("4 - - 1", [4, 1], 5),
    ("1 + 2 = 3", [1, 2], 3),
    ("3 = 1 + 2", [1, 2], 3),
    ("2 ** 3", [2, 3], 8),
    ("2 ^ 3", [2, 3], 8),
    ("7 // 2", [7, 2], 3),
    ("7 % 4", [7, 4], 3),
    ("01 + 2", [1, 2], 3),  # leading zeros
    ("00 + 3", [0, 3], 3),
    ("0x64+1+2-3", [1, 2, 3], 100),
    ("1e2+1+2-3", [1, 2, 3], 100),
    ("1.0 + 2", [1, 2], 3),
    ("1_0 + 2", [10, 2], 12),
    ("1j * 2", [1, 2], 2),
    ("2(3)", [2, 3], 6),
    ("(2)(3)", [2, 3], 6),
    ("2 × 3", [2, 3], 6),
    ("6 ÷ 3", [6, 3], 2),
    ("6 − 3", [6, 3], 3),  # a minus sign that is no hyphen
    ("٣ + 2", [3, 2], 5),  # digits that int() reads
    ("１ + 2", [1, 2], 3),
    ("² + 1", [2, 1], 3),  # isdigit(), and int() raises
    ("1 / (2 - 2)", [1, 2, 2], 0),
    ("1 / 0", [1, 0], 0),
    ("0 / 0", [0, 0], 0),
    ("(1 + 2", [1, 2], 3),
    ("1 + 2)", [1, 2], 3),
    (")1 + 2(", [1, 2], 3),
    ("() + 3", [3], 3),
    ("1 + 2 +", [1, 2], 3),
    ("* 1 + 2", [1, 2], 3),
    ("", [3], 3),
    ("   ", [3], 3),
    ("\x00", [3], 3),
    ("1 + 2 # 3", [1, 2], 3),
    ("1 + 2, 3", [1, 2], 3),
    ("1 + 2; 3", [1, 2], 3),
    ("[1 + 2][0]", [1, 2], 3),
    ("True + 2", [1, 2], 3),
    ("\ud800", [1], 1),
    (ATTACK, [1, 2, 3], 6),
    ("9**9**9", [9, 9, 9], 9),
    ("9**9**9**9", [9, 9, 9, 9], 9),
    ("9*" * 127 + "9", [9], 9),
    ("999999999*" * 25 + "9", [9], 9),
    ("1000000000 + 1", [1000000000, 1], 1000000001),  # ten digits
    ("(" * 100_000 + "3" + ")" * 100_000, [3], 3),
    ("(" * 250, [3], 3),
    (")" * 250, [3], 3),
    ("1" * 1_000_000, [1], 1),
    (" " * 1_000_000 + "4", [3], 3),
    ("1+" * 500_000 + "1", [1], 1),
    ("1" + " " * MAX_EXPRESSION_LENGTH + "+2", [1, 2], 3),
]


@pytest.mark.parametrize(("text", "numbers", "target"), WRONG, ids=[ascii(case[0])[:30] for case in WRONG])
def test_wrong_and_hostile_answers_score_zero_at_once(text, numbers, target, monkeypatch):
    monkeypatch.delenv("HIT", raising=False)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        assert Countdown.score(text, numbers=numbers, target=target) == 0.0
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.01
    assert "HIT" not in os.environ


@dataclass
class Node:
    sign: str
    left: "Node | int"
    right: "Node | int"


NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 999_999_999))
TREES = st.recursive(NUMBERS, lambda inner: st.builds(Node, st.sampled_from("+-*/"), inner, inner), max_leaves=10)
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def value(tree):
    """The exact value of a tree; ZeroDivisionError where it has none."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree.left), value(tree.right)
    operation = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    return operation[tree.sign](left, right)


def leaves(tree):
    return [tree] if isinstance(tree, int) else leaves(tree.left) + leaves(tree.right)


def written(tree, draw, least=1):
    """A tree as text, parentheses where precedence `least` asks for them and now and then where it does not."""
    space = draw.choice(("", " "))
    if isinstance(tree, int):
        text, bare = str(tree), True
    else:
        own = PRECEDENCE[tree.sign]
        text = f"{written(tree.left, draw, own)}{space}{tree.sign}{space}{written(tree.right, draw, own + 1)}"
        bare = own >= least
    return text if bare and draw.random() < 0.85 else f"({space}{text})"


@settings(max_examples=300, deadline=None)
@given(TREES, st.integers(0, 2**32))
def test_expressions_have_the_value_of_their_tree(tree, seed):
    text = written(tree, random.Random(seed))
    if len(text) > MAX_EXPRESSION_LENGTH:
        return
    try:
        expected = value(tree)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate(text)
        assert Countdown.score(text, leaves(tree), 0) == 0.0
        return
    assert evaluate(text) == (expected, leaves(tree))
    assert Countdown.score(text, sorted(leaves(tree)), expected) == 1.0
    assert Countdown.score(text, leaves(tree), expected + 1) == 0.0
    assert Countdown.score(text, [*leaves(tree), 1], expected) == 0.0


def by_python(text):
    """The value of `text` by Python's own parser, or None where it is not of the four operations on plain integers."""
    signs = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

    def build(node):
        if isinstance(node, ast.BinOp):
            return Node(signs[type(node.op)], build(node.left), build(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**9:
            return node.value
        raise ValueError

    if re.search(r"(?<!\d)0\d", text):  # Python reads 00 as 0
        return None
    try:
        return value(build(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError):
        return None


@settings(max_examples=400, deadline=None)
@given(
    st.recursive(
        st.integers(0, 12), lambda inner: st.builds(Node, st.sampled_from("+-*/"), inner, inner), max_leaves=5
    ),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([*"013+-*/()= ", "//", "**", "", ""])), max_size=2),
    st.integers(0, 2**32),
)
def test_nearly_an_expression_means_what_python_means_by_it(tree, edits, seed):
    text = written(tree, random.Random(seed))
    for place, piece in edits:  # one character is replaced; with "" it is removed
        text = text[:place] + piece + text[place + 1 :]
    try:
        got = evaluate(text)[0]
    except ValueError:
        got = None
    assert got == by_python(text), text


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/().=eE_x \n\t<>answer²٣−×", max_size=40)))
def test_no_text_makes_the_verifier_raise(text):
    task = Countdown(count=2)
    assert Countdown.score(text, [1, 2], 3) in (0.0, 1.0)
    assert task.reward({"numbers": [1, 2], "target": 3}, f"<answer>{text}</answer>") in (0.0, 1.0)
    assert task.reward({"numbers": [1, 2], "target": 3}, text) == 0.0


# ---- prompt, extraction, reward


def test_the_prompt_names_numbers_and_target():
    task = Countdown(count=3, template="numbers : {numbers} target : {target} .")
    assert task.prompt({"numbers": [4, 11, 4], "target": 19}) == "numbers : 4 11 4 target : 19 ."


@pytest.mark.parametrize(
    ("completion", "expression"),
    [
        ("so <answer>1 + 2</answer>", "1 + 2"),
        ("<answer>1 + 2</answer> no, <answer> 2 + 1 </answer>.", "2 + 1"),  # the last one, stripped
        ("<answer>1 + 2</answer> then <answer>oops</answer>", None),  # ... even where it does not parse
        ("<answer>1 + 2</answer> then <answer>3", "1 + 2"),
        ("<answer>1 + 2 = 3</answer>", None),
        ("<answer></answer>", None),
        ("1 + 2", None),
        ("", None),
    ],
)
def test_the_last_answer_counts(completion, expression):
    task = Countdown(count=2)
    assert task.extract(completion) == expression
    assert task.reward({"numbers": [1, 2], "target": 3}, completion) == float(expression is not None)


def test_the_answer_pattern_of_the_embedded_policy():
    task = Countdown(**EASY, answer_pattern="my answer is ([-+*/() 0-9]+)")
    problem = {"numbers": [1, 2, 3], "target": 9}
    assert task.reward(problem, "my answer is 1 + 2 no my answer is ( 1 + 2 ) * 3") == 1.0
    assert task.reward(problem, "my answer is ( 1 + 2 ) * 3 no my answer is 1 + 2") == 0.0
    assert task.reward(problem, "my answer is ( 1 + 2 ) * 3 = 9") == 1.0  # the pattern stops at the sign


@pytest.mark.parametrize("pattern", [r"<answer>([^<]*)</answer>", "my answer is ([-+*/() 0-9]+)"])
@pytest.mark.parametrize("piece", ["<answer>", "<answer>1", "my answer is ", "my answer is 1+", "1+1 "])
def test_long_completions_take_no_time(pattern, piece):
    task = Countdown(answer_pattern=pattern)
    with takes_less_than(2):
        assert task.reward({"numbers": [1, 1], "target": 2}, piece * (200_000 // len(piece))) == 0.0


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        (r"<answer>([^<]*)</answer>", "<answer>{}</answer>"),
        (r"my answer is ([-+*/() 0-9]+)$", "my answer is {}"),
        (r"\\boxed\{([^}]*)\}", "\\boxed{{{}}}"),
        (r"(?:so|then) (.*)", None),
        (r"=([0-9]+)", None),
    ],
)
def test_known_answers_are_written_as_the_pattern_reads_them(pattern, form):
    known = Countdown(answer_pattern=pattern).known_answers()
    if form is None:
        assert known == []
    else:
        right = [completion for _, completion, reward in known if reward == 1.0]
        assert right == [form.format("2 + 3 * 4"), form.format("2 * (3 + 4)")]
        assert sum(reward == 0.0 for *_, reward in known) == 3
