"""What is left of a dataset's rows, and that nothing held out is trained on."""

import json
import logging

import pytest

from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import ProblemSet
from tests.tasks.files import problem_set


class Echo(DatasetTask):
    """Right is what repeats the answer. Rows whose answer is "?" are no problems."""

    reads = ("answer",)

    def read(self, row):
        return None if row["answer"] == "?" else row

    def reward(self, problem, completion):
        return float(self.extract(completion) == problem["answer"])


def rows(*pairs):
    return [{"problem": problem, "answer": answer} for problem, answer in pairs]


def task(folder, train=(("1+1", "2"),), test=(("2+2", "4"),), template="{problem} =", **settings):
    sets = {
        role: problem_set(folder / f"{role}.jsonl", rows(*pairs)) for role, pairs in (("train", train), ("test", test))
    }
    return Echo(**sets, template=template, **settings)


def test_duplicates_held_out_problems_and_incomplete_rows_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="rhythm")
    train = [
        ("1+1", "2"),
        ("1 +1", "2"),
        ("  1+1\n", "3"),
        ("2+2", "4"),
        ("", "0"),
        (None, "0"),
        ("3+3", "?"),
        ("5+5", "10"),
    ]
    made = task(tmp_path, train=train, test=[("2+2", "4"), ("4+4", "8"), ("4+4", "8")])
    assert made.test_problems().to_list() == rows(("2+2", "4"), ("4+4", "8"))
    assert made.train_problems().to_list() == rows(("1+1", "2"), ("1 +1", "2"), ("5+5", "10"))  # the first of each
    assert [record.getMessage() for record in caplog.records] == [
        f"task.test: 2 problems of 3 rows of {tmp_path}/test.jsonl; left out: 1 twice",
        f"task.train: 3 problems of 8 rows of {tmp_path}/train.jsonl; left out: "
        "3 without a problem or an answer, 1 twice, 1 held out",
    ]


def test_evaluation_reads_no_training_data(tmp_path):
    made = task(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert made.test_problems().to_list() == rows(("2+2", "4"))


def test_nothing_left_says_why(tmp_path):
    made = task(tmp_path, train=[("2+2", "4"), ("3+3", "?")])
    with pytest.raises(
        ValueError, match=r"^task.train: 0 problems of 2 rows of .*train.jsonl; left out: 1 w.*, 1 held out$"
    ):
        made.train_problems()
    with pytest.raises(ValueError, match=r"^task.test: 0 problems of 0 rows of .*test.jsonl; left out: none$"):
        task(tmp_path, test=[]).test_problems()


def test_a_problem_stands_in_the_template_as_it_is(tmp_path):
    made = task(tmp_path, train=[(r"{x} \frac{1}{2} {0}", "1")], template="{problem} in \\boxed{{}}")
    assert made.prompt(made.train_problems()[0]) == r"{x} \frac{1}{2} {0} in \boxed{}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{question}",
            r"test.jsonl, line 1: task.template cannot be filled \(KeyError\('question'\)\): the columns are problem, "
            "answer; a brace itself is written twice",
        ),
        ("{}", r"the columns are problem, answer"),
        ("{problem} \\boxed{", r"^task.template: .*; a brace itself is written twice"),
    ],
)
def test_a_template_that_cannot_be_filled_names_the_columns(tmp_path, template, message):
    with pytest.raises(ValueError, match=message):
        task(tmp_path, template=template).train_problems()


def test_a_row_without_a_column_of_the_template_is_named(tmp_path):
    made = task(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{"question": "3+3", "answer": "6"}\n')
    with pytest.raises(
        ValueError, match=r"^.*train.jsonl, line 2: task.template cannot be filled .*: the columns are q"
    ):
        made.train_problems()


def test_answers_are_read_by_box_or_by_pattern(tmp_path):
    assert task(tmp_path).extract("so \\boxed{3}, no: \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    by_line = task(tmp_path, answer_pattern=r"(?i)answer\s*:\s*([^\n]+)")  # DAPO's form
    assert by_line.extract("Answer: 3\nno\nanswer:  4 \n") == "4"
    assert by_line.extract("\\boxed{3}") is None
    assert by_line.reward({"answer": "4"}, "Answer: 4") == 1.0


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        (["x", 5], "line 2: column answer holds 5"),
        ([5, None, "x", 6, "y"], "line 3: column answer holds 'x'"),
        ([True, 1], "line 2: column answer holds 1"),
        ([["a"], "a"], "line 2: column answer holds 'a'"),
        ([{"of": 1}, {"of": 2}, {"of": "x"}], "line 3: column answer holds {'of': 'x'}"),
    ],
)
def test_a_column_of_two_kinds_names_the_row_that_differs(tmp_path, answers, shown):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"problem": f"{i}?", "answer": answer}) for i, answer in enumerate(answers)]
    file.write_text("\n".join(lines))
    made = Echo(
        train=ProblemSet(files=str(file)),
        test=problem_set(tmp_path / "test.jsonl", rows(("0", "0"))),
        template="{problem}",
    )
    with pytest.raises(ValueError, match=r"^[^\n]*text, or every row's a number$") as caught:
        made.train_problems()
    assert str(caught.value).startswith(f"{file}, {shown}, which does not go with the rows before it (")


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        (["x", "\ud800"], "line 2: column answer holds '\\ud800', which no column"),
        (["\ud800"], "line 1: column answer holds '\\ud800', which no column"),
        ([1, 10**30], "line 2: column answer holds 1" + "0" * 30 + ", which no column"),
        ([10**30, 1], "line 1: column answer holds 1" + "0" * 30 + ", which no column"),
    ],
)
def test_what_no_column_can_hold_is_named_by_its_row(tmp_path, answers, shown):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"problem": f"{i}?", "answer": each}) for i, each in enumerate(answers)))
    made = Echo(
        train=ProblemSet(files=str(file)),
        test=problem_set(tmp_path / "test.jsonl", rows(("0", "0"))),
        template="{problem}",
    )
    with pytest.raises(
        ValueError, match=r"^[^\n]*, which no column can hold \([^\n]*\); mend the row, or leave it out$"
    ) as caught:
        made.train_problems()
    assert str(caught.value).startswith(f"{file}, {shown}")


def test_whole_numbers_and_others_are_one_kind(tmp_path):
    made = task(tmp_path, train=[("1", 1), ("2", 2.5), ("3", None)])
    assert made.train_problems()["answer"][:] == [1.0, 2.5, None]


def test_rows_without_a_column_that_the_task_reads_name_it(tmp_path):
    source = problem_set(tmp_path / "rows.jsonl", [{"problem": "1+1", "solution": "2", "level": 3}])
    made = Echo(train=source, test=source, template="{problem}")
    with pytest.raises(ValueError, match="no column answer") as caught:
        made.test_problems()
    place = f"{tmp_path}/rows.jsonl, line 1: there is no column answer; there are problem, solution, level"
    assert str(caught.value) == f"{place}; say which it is by task.test.columns={{answer: ..., ...}}"
