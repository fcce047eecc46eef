import json

import pytest

from rhythm.tasks.problem_set import ProblemSet
from rhythm.tasks.zebra_logic import ZebraLogic, last_solution
from tests.tasks.files import problem_set
from tests.tasks.processor import takes_less_than

UNREAD = ProblemSet(path="nobody/nothing")
ROW = {
    "puzzle": "There are 2 houses. Arnold drinks tea and lives left of Eric.",
    "solution": {"header": ["House", "Name", "Drink"], "rows": [["1", "Arnold", "tea"], ["2", "Eric", "milk"]]},
}
SOLUTION = {"House 1": {"Name": "Arnold", "Drink": "tea"}, "House 2": {"Name": "Eric", "Drink": "milk"}}


@pytest.fixture
def task():
    return ZebraLogic(train=UNREAD, test=UNREAD)


@pytest.fixture
def problem(task):
    return task.read(ROW)


def answered(**houses):
    return json.dumps({"solution": SOLUTION | {name.replace("_", " "): cells for name, cells in houses.items()}})


def test_a_number_is_right_as_text_and_a_puzzle_without_a_solution_is_left_out(task):
    problem = task.read(ROW | {"solution": {"header": ["House", "Age"], "rows": [["1", 34]]}})
    for age in ("34", 34):
        assert task.reward(problem, json.dumps({"solution": {"House 1": {"Age": age}}})) == 1.0
    assert task.read(ROW | {"solution": None}) is None


def test_the_prompt_shows_the_form_and_not_the_solution(task, problem):
    prompt = task.prompt(problem)
    form = json.loads(prompt[prompt.index("{") :])
    assert prompt.startswith(ROW["puzzle"])
    assert form == {"solution": {f"House {i}": {"Name": "___", "Drink": "___"} for i in (1, 2)}}
    assert "milk" not in prompt
    assert task.reward(problem, prompt) == 0.0


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (answered(), 1.0),
        (f"First, ... so\n```json\n{json.dumps({'solution': SOLUTION}, indent=4)}\n```", 1.0),
        (answered(House_1={"Name": " ARNOLD ", "Drink": "Tea", "Pet": "cat"}), 1.0),
        (answered(note={"solution": {}}), 1.0),  # an object within is none of its own
        ('{"solution": {}} no: ' + answered() + " {that is all}", 1.0),
        (answered() + ' or rather {"solution": {"House 1": {}}}', 0.0),  # the last one counts
        (answered(House_2={"Name": "Eric", "Drink": "tea"}), 0.0),
        (answered(House_2={"Name": "Eric"}), 0.0),
        (answered(House_2={"Name": "Eric", "Drink": ["milk", "tea"]}), 0.0),
        (answered(House_2={"Name": "Eric", "Drink": "milk tea"}), 0.0),
        (answered(House_2="Eric, milk"), 0.0),
        (answered(House_2=None), 0.0),
        (json.dumps(SOLUTION), 0.0),  # not in the form that was asked for
        ('{"solution": [1]}', 0.0),
        (answered()[:-1], 0.0),
        ("Arnold drinks tea", 0.0),
        ("", 0.0),
    ],
)
def test_a_puzzle_is_right_where_every_cell_is(task, problem, completion, reward):
    assert task.reward(problem, completion) == reward


def test_what_is_read_is_the_solution(task):
    assert json.loads(task.extract("so " + answered())) == SOLUTION
    assert task.extract('{"House 1": {}}') is None


HOSTILE = [
    "{" * 1_000_000,
    '{"a":' * 200_000,
    '{"solution":' * 90_000,
    '{"a":[' * 100_000,
    '"{' * 500_000,
    '{"a":"' * 200_000,
]
HOSTILE += ['{"solution":{"' + "x" * 1_000_000, "[" * 1_000_000 + "{", '{"a":1e9999999}', "\x00{\ud800"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_no_solution_and_takes_no_time(text):
    with takes_less_than(0.5):
        assert last_solution(text) is None


def test_hidden_solutions_are_left_out(tmp_path):
    hidden = {"header": ["House", "Name"], "rows": [["___", "___"], ["___", "___"]]}
    source = problem_set(tmp_path / "rows.parquet", [ROW, {"puzzle": "other", "solution": hidden}])
    task = ZebraLogic(train=source, test=source)
    (kept,) = task.test_problems().to_list()
    assert json.loads(kept["solution"])["solution"] == SOLUTION
