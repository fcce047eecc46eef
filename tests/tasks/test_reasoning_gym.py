import inspect
import math
import re

import pytest
from reasoning_gym.factory import DATASETS

from rhythm.tasks.reasoning_gym import ReasoningGym, check_scorer

nan = math.nan
EXECUTED = ["binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"]
EXECUTED += ["puzzle24", "simple_integration", "spiral_matrix", "string_insertion"]


@pytest.fixture(scope="module")
def task():
    made = ReasoningGym(name="leg_counting", train_size=20, test_size=8, settings={"max_animals": 3}, seconds=5)
    yield made
    made._score.close()


def test_problems_are_made_apart_and_scored_by_the_tasks_own_scorer(task):
    train, test = task.train_problems().to_list(), task.test_problems().to_list()
    assert (len(train), len(test)) == (20, 8)  # of other seeds
    assert not {problem["question"] for problem in train} & {problem["question"] for problem in test}
    problem = train[3]
    assert task.prompt(problem).startswith(problem["question"])
    generator, config = DATASETS["leg_counting"]  # asked again by hand
    entry = generator(config(size=20, seed=problem["seed"], max_animals=3))[problem["index"]]
    assert entry["question"] == problem["question"]
    assert entry["answer"].isdecimal()
    completions = [
        f"<answer>{entry['answer']}</answer>",
        f"{entry['answer']}",
        "<answer>-1</answer>",
        "<answer></answer>",
    ]
    assert task.scores([problem] * 4, completions) == [1.0, 0.0, 0.0, 0.0]
    assert task.reward(problem, "<answer>1</answer> no <answer> " + entry["answer"] + "</answer>") == 1.0


def test_an_answer_that_the_scorer_fails_on_is_wrong_and_one_that_was_not_tried_has_no_score(task, monkeypatch):
    monkeypatch.setattr(task._score, "tried", lambda problems, answers: [0.5, nan])
    found = task.scores([{}] * 4, ["<answer>1</answer>", "", "<answer>2</answer>", "<answer>3</answer>"])
    assert found == pytest.approx([0.5, 0.0, 0.0, nan], nan_ok=True)


@pytest.mark.parametrize("name", EXECUTED)
def test_a_scorer_that_executes_the_answer_is_refused(name):
    with pytest.raises(ValueError, match=f"task.name={name}: reasoning-gym's scorer executes the answer"):
        check_scorer(name)


def test_no_scorer_that_executes_text_is_let_through():
    """By a second way: the source of every class, read for any call that could run a string."""
    for name, (cls, _) in DATASETS.items():
        source = inspect.getsource(cls.score_answer)
        calls = re.findall(r"\b(eval|exec|parse_expr|sympify|compile|S)\(([^)]*)", source)
        if any("answer" in argument and "entry" not in argument for _, argument in calls):
            with pytest.raises(ValueError, match=name):
                check_scorer(name)
        else:
            check_scorer(name)


def test_a_task_or_a_setting_that_is_not_there():
    with pytest.raises(ValueError, match=r"^task.name=leg_countin: reasoning-gym has .*; not this one$"):
        ReasoningGym(name="leg_countin")
    with pytest.raises(ValueError, match=r"^task.settings=.*max_legs.*: leg_counting of reasoning-gym: "):
        ReasoningGym(name="leg_counting", settings={"max_legs": 3}, test_size=2).test_problems()
    with pytest.raises(ValueError, match=r"^task.settings=.*: leg_counting of reasoning-gym: min_animals must be"):
        ReasoningGym(name="leg_counting", settings={"min_animals": 0}, test_size=2).test_problems()
