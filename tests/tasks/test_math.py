"""Mathematical answers: right ones in any form, wrong ones that look right, and hostile ones."""

import math
import time

import pytest

from rhythm.tasks import math as math_task
from rhythm.tasks.answers import compare, last_boxed, reference_answer, without_percent
from rhythm.tasks.math import Math
from rhythm.tasks.problem_set import ProblemSet
from rhythm.types import Rollout
from tests.tasks.files import problem_set
from tests.tasks.processor import takes_less_than

nan = math.nan
UNREAD = ProblemSet(path="nobody/nothing")


@pytest.fixture(scope="module")
def task():
    made = Math(train=UNREAD, test=UNREAD, seconds=1.0)
    yield made
    made._equal.close()


def scores(task, *pairs):
    """Of answers in a box, each held against its reference."""
    return task.scores([{"answer": right} for right, _ in pairs], [f"so \\boxed{{{answer}}}" for _, answer in pairs])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{72}", "72"),
        ("\\boxed{1}, then \\boxed{2}.", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x }", "\\left\\{ x"),
        ("\\fbox{3}", "3"),
        ("$\\boxed 2$.", "2"),
        ("\\boxed{ 4 }", "4"),
        ("\\boxed{}", None),
        ("\\boxed{1", None),
        ("\\boxed{1}, \\boxed{2", None),  # the last one counts, and it is cut off
        ("\\boxed", None),
        ("boxed{1}", None),
        ("72", None),
        ("\\boxed{1}" + " " * 100_000, None),  # only the end is read
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 60 + 12 = <<60+12=72>>72.\n#### 72", "72"),  # GSM8K
        ("#### 1,000", "1,000"),
        ("Hence $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),  # MATH
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),  # OlympiadBench
        ("34", "34"),
        ("  ", None),
        ("\\boxed{}", None),
    ],
)
def test_a_reference_is_an_answer_or_ends_in_one(text, answer):
    assert reference_answer(text) == answer


def test_right_answers_in_other_forms(task):
    pairs = [
        ("72", "72"),
        ("72", " 72. "),
        ("72", "072"),
        ("72", "+72.00"),
        ("1,000", "1000"),
        ("1000", "1{,}000"),
        ("\\frac{1}{2}", "\\dfrac12"),
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{1}{2}", "1/2"),
        ("72", "x = 72"),
        ("72", "\\text{72}"),
        ("12", "12\\text{ apples}"),
        ("2^{10}", "1024"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("x+1", "1 + x"),
        ("(1, 2)", "(1,2)"),
        ("\\{1, 2\\}", "\\{2, 1\\}"),
        ("2, 3", "3, 2"),
        ("100, 200", "200, 100"),
        ("[0, 1)", "\\left[0,1\\right)"),
        ("\\text{East}", "East"),
        ("4.5e33", "4.5 \\times 10^{33}"),  # Minerva
        ("4.5e33", "45 \\cdot 10^{32}\\text{ erg}"),
        ("6.6e-34", "x = 6.6 \\times 10^{-34}"),
        ("10^{-30}", "\\frac{1}{10^{30}}"),
        ("h = 6.6 \\times 10^{-34}", "h=66 \\times 10^{-35}"),
        ("2x = 4", "2x=4"),
        ("\\frac{1}{3}", "0.333333"),  # to the sixth decimal
        ("0", "\\sqrt{2}+\\sqrt{3}-\\sqrt{5+2\\sqrt{6}}"),
        ("(10^{-30}, 1)", "(\\frac{1}{10^{30}}, 1)"),
        ("\\frac{R}{r}", "R/r"),
        ("R + r", "r + R"),
        ("\\text{East}", "east"),
        ("\\text{East}", "\\text{EAST}"),
        ("Monday", "monday"),
        ("AB", "\\text{AB}"),
        ("5\\text{ km}", "5"),
        ("5\\text{ KM}", "5 kg"),  # units are not compared
        ("20", "20\\%"),
        ("20", "20%"),
        ("10\\%", "10"),
        ("12.5\\%", "12.5%"),
        ("\\frac{25}{2}\\%", "12.5"),
        ("20 percent", "20"),
        ("20", "20\\text{ percent}"),
        ("10\\%, 20\\%", "20, 10"),
    ]
    assert scores(task, *pairs) == [1.0] * len(pairs)


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("72", "72.00", True),
        ("72", "+72.", True),
        ("72", "72.001", False),
        ("-0.5", "-.50", True),
        ("0.5", "-0.5", False),
        ("0", "-0.00", True),
        ("0", "0e5", True),
        ("1,000,000", "10^6", True),
        ("1000", "1{,}000.0", True),
        ("10\\,000", "10,\\!000", True),
        ("1,00", "100", None),  # two numbers, or a slip
        ("6.6e-34", "66E-35", True),
        ("6.6e-34", "$6.60 \\times 10^{-34}$", True),
        ("6.6e-34", "6.6\\cdot10^-34", True),
        ("6.6e-34", "0.66 × 10^{ -33 }", True),
        ("6.6e-34", "-6.6 * 10^{-34}", False),
        ("6.6e-34", "6.60001 \\times 10^{-34}", False),
        ("1", "10^{0}", True),
        ("-10", "-10^{1}", True),
        ("1e" + "9" * 250, "10^{" + "9" * 250 + "}", True),
        ("1e" + "9" * 250, "1e" + "9" * 249, False),
        ("1", "0." + "0" * 280 + "1", False),
        ("9" * 5000, "9" * 5000 + ".0", True),
        ("1/3", "0.333", None),
        ("72", "７２", None),
        ("72", "10^{x}", None),
        ("East", "east", True),
        ("Yes", "yes", True),
        ("ABC", "abc", None),  # a product
        ("pqrs", "srqp", None),
        ("R", "r", None),
        ("mgh", "Mgh", None),
        ("1 000", "1000", True),
        ("7 2", "72", None),
        ("1 1/2", "11/2", None),
        ("x ^ 2", "x^2", True),
        ("100$,$200", "100200", None),
    ],
)
def test_two_numbers_are_compared_digit_by_digit_and_anything_else_is_not_plain(reference, answer, equal):
    with takes_less_than(1):
        assert compare(reference, answer) is equal


def test_wrong_answers_that_look_right(task):
    wrong = [
        ("72", "7"),
        ("72", "-72"),
        ("72", "72.5"),
        ("72", "72 or 73"),  # all of several answers must be right
        ("72", "1, 72"),
        ("72", "\\{72, 73\\}"),
        ("72", "(72, 72)"),
        ("72", "７２"),
        ("72", "٧٢"),
        ("72", "7²"),
        ("72", "72\\neq 72"),
        ("72", "= 72 ="),  # no LaTeX, and so no answer: nothing fishes for a number in it
        ("72", "_ 72"),
        ("72", "72 \\frac"),
        ("72", "x"),
        ("72", "72 + x"),
        ("72", "\\infty"),
        ("72", "\\text{seventy-two}"),
        ("72", "\\frac{72}{0}"),
        ("(1,2)", "(2,1)"),
        ("[0,1)", "[0,1]"),
        ("2, 3", "2"),
        ("2, 100", "2100"),
        ("2100", "2, 100"),
        ("\\frac{1}{3}", "0.333"),
        ("x+1", "y+1"),
        ("\\text{East}", "West"),
        ("1{,}000", "1"),
        ("6.6e-34", "2.1 \\times 10^{-34}"),
        ("6.6e-34", "\\frac{2.1}{10^{34}}"),
        ("6.6e-34", "h = 2.1 \\times 10^{-34}"),
        ("6.6e-34", "h = H = 2.1 \\times 10^{-34}"),
        ("1.6e-19", "1.7 \\times 10^{-20}\\text{ C}"),
        ("1.6e-19", "10^{-30}"),
        ("1.6e-19", "0.00000001"),
        ("1.7e-27", "0.0"),
        ("10^{-30}", "\\frac{1}{10^{31}}"),
        ("2^{-100}", "2^{-101}"),
        ("(10^{-30}, 1)", "(10^{-20}, 1)"),
        ("\\{10^{-30}, 1\\}", "\\{10^{-20}, 1\\}"),
        ("0.000123", "0.0001234"),
        ("\\frac{R}{r}", "1"),
        ("R-r", "0"),
        ("x", "X"),
        ("AB", "ab"),
        ("R_1", "r_1"),
        ("\\Omega", "\\omega"),
        ("\\Pi", "\\pi"),
        ("mgh", "Mgh"),
        ("7 2", "72"),
        ("1 1/2", "11/2"),
        ("11/2", "1 1/2"),
        ("h = 6.6 \\times 10^{-34}", "h = 2.1 \\times 10^{-34}"),
        ("k = 10^{-30}", "k=10^{-20}"),
        ("20", "2\\%"),
        ("10\\%", "0.1"),  # as Hendrycks' normalisation has it: the sign is left out
        ("53", "5\\%3"),
        ("72", "\\%"),
    ]
    assert scores(task, *wrong) == [0.0] * len(wrong)


def test_hostile_answers_score_zero_within_the_deadline_and_do_nothing(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the child's too: it is started anew after each one that hangs
    scores(task, ("72", "\\frac{1}{7}"))  # its imports are not theirs
    hanging = ["9^{9^{9^{9}}}", "9999999!", "2" + "^2" * 100]
    quick = [
        "__import__('os').system('touch HIT')",
        "\\text{__import__('os').system('touch HIT')}",
        "open('HIT','w')",
        "\\input{/etc/passwd}",
        "1" * 299,
        "1" * 5000,
        "9" * 1_000_000,
        "nan",
        "\\frac{1}{0}",
        "\\sum_{n=1}^{99999999} n",
        "\\sqrt{" * 40 + "2" + "}" * 40,
        "\x00",
        "\ud800",
    ]
    started = time.monotonic()
    assert scores(task, *(("72", answer) for answer in hanging + quick)) == [0.0] * len(hanging + quick)
    assert time.monotonic() - started < 120  # three deadlines of a second and three starts, on a loaded machine
    assert not list(tmp_path.iterdir())
    assert scores(task, ("72", "144/2")) == [1.0]


def test_megabytes_of_boxes_are_read_once():
    texts = [
        "\\boxed{" * 150_000,
        "{" * 1_000_000 + "\\boxed{",
        "\\boxed{1}" * 120_000,
        "\\boxed  x" * 140_000,
        "\\" * 1_000_000,
    ]
    with takes_less_than(5):
        assert [last_boxed(text) for text in texts] == [None, None, "1", "x", None]


def test_megabytes_of_percent_signs_are_read_once():
    texts = ["1" + " " * 1_000_000, "% " * 500_000 + "2", "%" + " " * 1_000_000 + "2", "percent" * 140_000]
    with takes_less_than(5):
        assert [len(without_percent(text)) for text in texts] == [1_000_001, 500_002, 1_000_002, 980_000]


def test_the_same_two_answers_are_compared_once_and_plain_ones_by_no_child(monkeypatch):
    made = Math(train=UNREAD, test=UNREAD)
    asked = []
    monkeypatch.setattr(made._equal, "tried", lambda problems, answers: asked.extend(answers) or [1.0] * len(answers))
    pairs = [("72", "72"), ("72", "71"), ("72", "\\frac{1}{2}"), ("72", "\\frac{1}{2}"), ("\\frac12", "\\frac12")]
    assert scores(made, *pairs) == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert asked == ["\\frac{1}{2}"]


def test_an_answer_that_ran_out_of_time_is_wrong_and_one_that_was_not_tried_has_no_score(monkeypatch):
    made = Math(train=UNREAD, test=UNREAD)
    monkeypatch.setattr(made._equal, "tried", lambda problems, answers: [1.0, nan])
    pairs = [("72", f"72^{{{i}}}") for i in range(3)]
    assert scores(made, *pairs, ("72", "72")) == pytest.approx([1.0, 0.0, nan, 1.0], nan_ok=True)


def test_rows_become_problems_with_bare_answers(tmp_path):
    given = ["#### 72", "so $\\boxed{\\frac{1}{2}}$", ["2", "3"], 34, None, "", [], "\\boxed{}"]
    source = problem_set(tmp_path / "rows.jsonl", [{"problem": f"{i}?", "answer": a} for i, a in enumerate(given)])
    kept = Math(train=source, test=source).test_problems()["answer"]
    assert list(kept) == ["72", "\\frac{1}{2}", "2, 3", "34"]


def test_a_batch_is_scored_in_order(task):
    texts = ["\\boxed{1}", "1", "\\boxed{2/2}", "\\boxed{2}"]
    rollout = Rollout([{"answer": "1"}] * 4, texts, *[None] * 6)
    assert task.rewards(rollout).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert task.reward({"answer": "1"}, "\\boxed{1}") == 1.0


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(math_task, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[math\]'"):
        Math(train=UNREAD, test=UNREAD)
