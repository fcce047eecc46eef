import pytest

from rhythm.tasks.answers import lettered, plain_text
from rhythm.tasks.choice import Choice
from rhythm.tasks.problem_set import ProblemSet
from tests.tasks.files import problem_set
from tests.tasks.processor import takes_less_than

UNREAD = ProblemSet(path="nobody/nothing")


QUESTION = "What is the capital of France?\nA. Lyon\nB. Paris, on  the Seine\nC. Nice"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", ("b", "")),
        ("b", ("b", "")),
        ("(B)", ("b", "")),
        ("B.", ("b", "")),
        ("(B).", ("b", "")),
        ("B) Paris", ("b", "paris")),
        ("b: Paris.", ("b", "paris")),
        ("(B) the  City of Light", ("b", "the city of light")),
        ("\\text{B}", ("b", "")),
        ("$\\mathrm{(B)}$", ("b", "")),
        ("\\textbf{(B)}\\ 12", ("b", "12")),
        ("\\text{\\textbf{B}}", ("b", "")),
        ("[B]", ("b", "")),
        ("(B)Paris", ("b", "paris")),
        ("(B) 20\\%, \\$5~or\\,3{,}000", ("b", "20%, 5 or 3,000")),
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
def test_the_letter_of_a_choice_and_the_words_behind_it(text, choice):
    assert lettered(text) == choice


def reward(reference, answer, problem=QUESTION):
    task = Choice(train=UNREAD, test=UNREAD, template="{problem}\nAnswer by letter.")
    row = {"problem": problem, "answer": reference}
    assert task.reward(row, answer) == 0.0  # no box
    return task.reward(row, f"thinking \\boxed{{C}} ... so \\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("B", "(b)", 1.0),
        ("B", "A", 0.0),
        ("B", "A, B", 0.0),
        ("B", "Paris", 0.0),
        ("B", "B) Paris", 1.0),  # what stands behind the letter is the option's text, or how that begins
        ("B", "B. Paris, on the seine.", 1.0),
        ("B", "B. Par", 0.0),
        ("B", "B. Lyon", 0.0),
        ("B", "B. no wait, C", 0.0),
        ("B", "B. " + "Paris " * 100, 0.0),
        ("(B) Paris", "B", 1.0),
        ("(B) Paris", "B. Paris", 1.0),
        ("(B) Paris", "B. Paris, on the Seine", 1.0),
        ("(B) Paris", "B. Lyon", 0.0),
        ("(B) Paris", "C", 0.0),
        ("Paris", " paris.", 1.0),
        ("Paris", "\\text{Paris}", 1.0),
        ("the Treaty of Rome", "The  treaty of Rome", 1.0),
        ("Paris", "Paris or London", 0.0),
        ("U.S.", "U.K.", 0.0),
    ],
)
def test_a_choice_is_met_by_letter_and_words_by_words(reference, answer, expected):
    assert reward(reference, answer) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("E. coli", "E. coli", 1.0),
        ("E. coli", "\\text{e. coli}.", 1.0),
        ("E. coli", "E. faecalis", 0.0),
        ("E. coli", "E", 0.0),
        ("C. difficile", "C. elegans", 0.0),
        ("A. baumannii", "A", 0.0),
        ("B", "b.", 1.0),
        ("B", "B. Paris", 1.0),  # nobody knows what B was
        ("(B) Paris", "B", 0.0),
        ("(B) Paris", "B) Paris", 1.0),
    ],
)
def test_a_letter_without_options_in_the_problem_is_part_of_a_name(reference, answer, expected):
    assert (
        reward(reference, answer, "Which grows faster, E. coli or A. baumannii (C. difficile being slow)?") == expected
    )


def test_an_option_that_begins_with_an_initial_is_one_option():
    question = "Which grows fastest?\nA) S. aureus\nB) E. coli\nC) A. baumannii\nD) none"
    assert reward("E. coli", "E", question) == 0.0
    assert reward("E. coli", "E. coli", question) == 1.0
    assert reward("B) E. coli", "B", question) == 1.0
    assert reward("B", "B. E. coli", question) == 1.0
    assert reward("A", "A. baumannii", question) == 0.0
    for named, answers in {"E. coli": ("E", "E) none"), "A. baumannii": ("A", "A) S. aureus")}.items():
        for answer in answers:  # the letter of the name is an option too, and another one
            assert reward(named, answer, f"{question}\nE) none") == 0.0
    names = "A. S. aureus\nB. E. coli\nC. A. baumannii\nD. B. subtilis"
    assert reward("B", "B. E. coli", names) == reward("D", "D. B. subtilis", names) == 1.0
    assert reward("B", "B. subtilis", names) == 0.0


@pytest.mark.parametrize(
    ("mark", "between"), [("{}. ", "\n"), ("({}) ", "\n"), ("{}) ", "\n"), ("({}) ", " "), ("{}) ", " ")]
)
def test_an_option_may_end_like_a_mark(mark, between):
    texts = ["O(1)", "Vitamin K.", "f(x)", "g(n)", "P(B)"]
    question = between.join(mark.format(letter) + text for letter, text in zip("ABCDE", texts, strict=True))
    for i, letter in enumerate("ABCDE"):
        for j, text in enumerate(texts):
            assert reward(letter, mark.format(letter) + text, question) == float(i == j)


def test_words_do_not_run_on_into_the_next_option():
    question = "(A) Lyon (B) Paris (C) Nice"
    assert reward("A", "A. Lyon", question) == 1.0
    assert reward("A", "A. Lyon (B) Paris (C) Nice", question) == 0.0


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("20%", "20\\%"),
        ("$5", "\\$5"),
        ("R&D", "\\text{R\\&D}"),
        ("$\\frac{1}{2}$", "\\dfrac{1}{2}"),
        ("3,000", "3{,}000"),
        ("10 km", "10\\,\\text{km}"),
        ("Paris", "\\text{Paris}"),
        ("the city of Paris", "\\text{the city}~\\textit{of Paris}"),
    ],
)
def test_escapes_of_latex_do_not_count(option, answer):
    question = f"Which?\nA. none\nB. {option}\nC. all"
    for form in ("B. {}", "\\text{{(B)}} {}", "\\textbf{{(B)}}\\ {}"):
        assert reward("B", form.format(answer), question) == 1.0
        assert reward("C", form.format(answer).replace("B", "C", 1), question) == 0.0
    assert reward(option, answer, "Which?") == 1.0


@pytest.mark.parametrize("marks", ["{}. ", "{}) ", "({}) ", "{}: ", "({}). ", "[{}] ", "**{}.** "])
def test_options_in_any_form(marks):
    for letters in ("ABC", "abc"):
        options = " ".join(marks.format(letter) + name for letter, name in zip(letters, ["x", "y z", "w"], strict=True))
        assert reward("B. y z", "B", f"Which? {options}") == 1.0
        assert reward("B", "(b) y z", f"Which? {options}") == 1.0
        assert reward("B", "(b) w", f"Which? {options}") == 0.0
        assert reward("D. u", "D", f"Which? {options}") == 0.0


def test_options_in_mathematics():
    question = "Which?\n(A) $\\frac{1}{2}$ (B) $2$"
    assert reward("A", "(A) \\frac{1}{2}", question) == 1.0
    assert reward("B", "B. $2$", question) == 1.0
    assert reward("B", "(B) \\frac{1}{2}", question) == 0.0


def test_megabytes_in_a_box_are_read_once():
    with takes_less_than(5):
        for answer in (
            "B. " * 400_000,
            "B) " + "Paris " * 200_000,
            "(" * 1_000_000,
            "\\text" * 150_000,
            "B." + "." * 900_000,
            "**a" * 300_000,
            "\\text{" * 20_000 + "}" * 20_000,
        ):
            assert reward("B", answer) == 0.0


def test_words_without_what_does_not_count():
    assert plain_text(" $\\text{The  Answer}.$ ") == "the answer"
    assert plain_text("The\nAnswer.") == "the answer"
    assert plain_text("**The** answer") == "the answer"
    assert plain_text("2**3") == "2**3"


def test_questions_without_an_answer_are_left_out(tmp_path):
    rows = [{"problem": "1?", "answer": "A"}, {"problem": "2?", "answer": None}, {"problem": "3?", "answer": " "}]
    source = problem_set(tmp_path / "rows.jsonl", rows)
    task = Choice(train=source, test=source, template="{problem}")
    assert task.test_problems().to_list() == [{"problem": "1?", "answer": "A"}]
