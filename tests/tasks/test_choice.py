import pytest

from rhythm.tasks.answers import choice_letter, plain_text
from rhythm.tasks.choice import Choice
from rhythm.tasks.problem_set import ProblemSet
from tests.tasks.files import problem_set

UNREAD = ProblemSet(path="nobody/nothing")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("b: Paris", "B"),
        ("\\text{B}", "B"),
        ("$\\mathrm{(B)}$", "B"),
        ("AB", None),
        ("A, B", None),
        ("A or B", None),
        ("A and every other one", None),
        ("B2", None),
        ("Paris", None),
        ("U.S.", None),
        ("Β", None),  # a Greek capital Beta
        ("В", None),  # a Cyrillic Ve
        ("Ｂ", None),
        ("", None),
        ("2", None),
    ],
)
def test_the_letter_of_a_choice(text, letter):
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    ("reference", "answer", "reward"),
    [
        ("B", "(b)", 1.0),
        ("B", "B) Paris", 1.0),
        ("(B) Paris", "B", 1.0),
        ("B", "A", 0.0),
        ("B", "A, B", 0.0),
        ("B", "Paris", 0.0),
        ("Paris", " paris.", 1.0),
        ("Paris", "\\text{Paris}", 1.0),
        ("the Treaty of Rome", "The  treaty of Rome", 1.0),
        ("Paris", "Paris or London", 0.0),
        ("U.S.", "U.K.", 0.0),
    ],
)
def test_a_choice_is_met_by_letter_and_words_by_words(reference, answer, reward):
    task = Choice(train=UNREAD, test=UNREAD, template="{problem}")
    assert task.reward({"answer": reference}, f"thinking \\boxed{{C}} ... so \\boxed{{{answer}}}") == reward
    assert task.reward({"answer": reference}, answer) == 0.0  # no box


def test_words_without_what_does_not_count():
    assert plain_text(" $\\text{The  Answer}.$ ") == "the answer"
    assert plain_text("The\nAnswer.") == "the answer"


def test_questions_without_an_answer_are_left_out(tmp_path):
    rows = [{"problem": "1?", "answer": "A"}, {"problem": "2?", "answer": None}, {"problem": "3?", "answer": " "}]
    source = problem_set(tmp_path / "rows.jsonl", rows)
    task = Choice(train=source, test=source, template="{problem}")
    assert task.test_problems().to_list() == [{"problem": "1?", "answer": "A"}]
