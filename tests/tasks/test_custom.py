"""A user's data and rewards, up to an update of the policy."""

import math

import pytest

from rhythm.tasks.custom import Custom
from rhythm.types import Rollout
from tests.tasks.files import problem_set
from tests.training import run

MODULE = "tests.tasks.reward_functions"
nan = math.nan


@pytest.fixture
def custom(tmp_path):
    """Makes custom tasks on rows of a file and ends their processes."""
    made = []
    rows = [{"value": i, "question": f"numbers : {i} 2 3 target : 6 .", "note": None} for i in range(1, 9)]

    def make(*rewards, **settings):
        source = {"part": "train", "test_share": 0.3}, {"part": "test", "test_share": 0.3}
        train, test = (problem_set(tmp_path / "rows.jsonl", rows, **part) for part in source)
        names = [f"{MODULE}.{reward}" for reward in rewards]
        made.append(Custom(train=train, test=test, rewards=names, **{"template": "{question}"} | settings))
        return made[-1]

    yield make
    for task in made:
        for function in task.functions:
            function.close()


def test_rewards_are_weighted_sums_and_a_failure_of_one_is_no_reward(custom):
    task = custom("one", "parity", weights=[0.5, 2.0])
    assert task.scores([{"value": 10}] * 3, ["ab", "abc", "raise"]) == pytest.approx([6.0, 8.5, nan], nan_ok=True)
    assert custom("one", "parity").scores([{"value": 10}], ["abc"]) == [14.0]
    assert custom("batch", batch=True).reward({"value": 10}, "ab") == 12.0


def test_the_first_function_says_what_is_right_whatever_the_reward(custom):
    task = custom("parity", "one", weights=[1.0, 0.2])
    rollout = Rollout([{"value": 10}] * 3, ["ab", "abc", "raise"], *[None] * 6)
    assert task.rewards(rollout).tolist() == pytest.approx([2.4, 3.6, nan], nan_ok=True)
    assert task.right(rollout).tolist() == [False, True, True]


def test_a_problem_holds_the_rows_own_columns(custom):
    task = custom("parity")
    problem = task.train_problems()[0]
    assert set(problem) == {"value", "question", "note"}
    assert task.prompt(problem) == problem["question"]
    assert len(task.train_problems()) + len(task.test_problems()) == 8
    assert custom("parity", template="{value}").prompt(problem) == str(problem["value"])


def test_every_completion_is_an_answer_unless_a_pattern_says_which_is(custom):
    assert custom("parity").extract(" yes ") == "yes"
    assert custom("parity").extract("  ") is None
    assert custom("parity", answer_pattern="is (\\d+)").extract("it is 3") == "3"
    assert custom("parity", answer_pattern="is (\\d+)").extract("yes") is None


def test_a_function_is_found_where_the_run_is_started(custom, tmp_path, monkeypatch):
    (tmp_path / "rewards_beside_the_data.py").write_text(
        "def ends_well(problem, completion):\n    return completion[-1] == '.'\n"
    )
    monkeypatch.chdir(tmp_path)
    task = custom("parity")
    task.functions[0].function = "rewards_beside_the_data.ends_well"
    assert task.scores([{}, {}], ["Yes.", "No"]) == [1.0, 0.0]


def test_a_policy_trains_on_it(custom):
    _, watcher = run(task=custom("parity"))
    lengths = [len(completion) for completion in watcher.rollout.completions]
    assert watcher.rollout.rewards.tolist() == [float(length % 2) for length in lengths]
    assert watcher.metrics["updates/taken"] == 1


def test_a_name_alone_is_one_function_and_a_number_alone_its_weight(tmp_path):
    source = problem_set(tmp_path / "rows.jsonl", [{"question": "?"}])
    task = Custom(train=source, test=source, template="{question}", rewards=f"{MODULE}.parity", weights=2)
    assert [function.function for function in task.functions] == [f"{MODULE}.parity"]
    assert task.weights == [2]


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([], None, "there are 0 functions in task.rewards"),
        (["one", "parity"], [1.0], r"task.weights=\[1.0\]: there are 2 functions in task.rewards"),
        (["one"], [nan], r"^task.weights=\[nan\]: must be finite numbers$"),
        (["one"], "heavy", r"^task.weights=\['heavy'\]: must be finite numbers$"),
        (["one"], ["heavy"], r"^task.weights=\['heavy'\]: must be finite numbers$"),
        (["one", "parity"], 0.5, r"task.weights=\[0.5\]: there are 2 functions in task.rewards"),
    ],
)
def test_weights_that_make_no_sense(custom, rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        custom(*rewards, weights=weights)
