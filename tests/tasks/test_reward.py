"""A user's reward function that hangs, raises, exits or answers nonsense costs its samples and nothing else."""

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhythm.tasks import reward
from rhythm.tasks.reward import RewardFunction

MODULE = "tests.tasks.reward_functions"
nan = math.nan


@pytest.fixture
def rewarding():
    """Makes reward functions of the test module and ends their processes."""
    made = []

    def make(name, **settings):
        made.append(RewardFunction(f"{MODULE}.{name}", **settings))
        return made[-1]

    yield make
    for function in made:
        function.close()


def scored(function, *completions):
    return function([{"value": 10 * i} for i in range(len(completions))], completions)


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("batch", [False, True])
def test_rewards_come_back_in_order_from_one_process_that_stays(rewarding, batch):
    function = rewarding("batch" if batch else "one", batch=batch)
    assert scored(function, "a", "bb", "true", "numpy", "é" * 100_000) == [1.0, 12.0, 1.0, 0.5, 100_040.0]
    assert scored(function) == []
    assert scored(function, "a") == [1.0]
    processes = rewarding("process_id")
    first, again = scored(processes, "", "")
    assert first == again == scored(processes, "")[0] != os.getpid()


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("raise", "KeyError: 'no\\nsuch key'"),
        ("recurse", "RecursionError"),
        ("none", "it returned None, which is no finite number"),
        ("nan", "it returned nan"),
        ("inf", "it returned inf"),
        ("huge", "it returned 1000"),
        ("text", "it returned '1.0'"),
        ("list", r"it returned [1.0]"),
        ("exit", "its process ended with code 0"),
        ("die", "its process ended with code 3"),
        ("abort", "its process ended with code -6"),
    ],
)
def test_a_sample_that_fails_is_nan_and_the_others_are_not(rewarding, caplog, completion, reason):
    assert scored(rewarding("one"), "a", completion, "ccc") == pytest.approx([1.0, nan, 23.0], nan_ok=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"reward function {MODULE}.one failed on 1 of 3 completions, first: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("completion", ["hang", "spin"])
def test_a_sample_that_outlasts_its_deadline_is_nan(rewarding, caplog, completion):
    function = rewarding("one", seconds=0.3)
    started = time.monotonic()
    assert scored(function, "a", completion, "ccc", completion) == pytest.approx([1.0, nan, 23.0, nan], nan_ok=True)
    assert time.monotonic() - started < 60
    assert "failed on 2 of 4 completions, first: no answer within 0.3 seconds" in caplog.text
    assert scored(function, "a") == [1.0]  # by a new process


def test_what_remains_is_not_tried_after_many_samples_that_cost_their_process(rewarding, caplog, monkeypatch):
    monkeypatch.setattr(reward, "MAX_LOST", 2)
    function = rewarding("one")
    completions = ["a", "die", "bb", "die", "ccc", "dddd"]
    assert scored(function, *completions) == pytest.approx([1.0, nan, 22.0, nan, nan, nan], nan_ok=True)
    assert "failed on 2 of 4 completions, first: its process ended" in caplog.text
    assert "after 2 that ended their process 2 more were not tried" in caplog.text
    assert function.tried([{"value": 0}] * 6, completions) == pytest.approx([1.0, nan, 2.0, nan], nan_ok=True)


def test_what_a_function_prints_or_closes_is_no_reward(rewarding):
    assert scored(rewarding("one"), "print", "a", "close", "bb") == [7.0, 11.0, 8.0, 32.0]


@pytest.mark.parametrize("completion", ["raise", "die", "hang"])
def test_a_batch_that_fails_fails_as_a_whole(rewarding, caplog, completion):
    function = rewarding("batch", batch=True, seconds=0.3)
    assert scored(function, "a", completion) == pytest.approx([nan, nan], nan_ok=True)
    assert "failed on 2 of 2 completions" in caplog.text
    assert scored(function, "a", "none") == pytest.approx([1.0, nan], nan_ok=True)


@pytest.mark.parametrize(("name", "shown"), [("nothing", "None"), ("one_for_all", "1.0")])
def test_a_batch_function_that_returns_no_list_has_failed(rewarding, caplog, name, shown):
    assert scored(rewarding(name, batch=True), "a", "b") == pytest.approx([nan, nan], nan_ok=True)
    assert f"it returned {shown}, which is no list" in caplog.text


def test_an_array_is_a_list_of_rewards(rewarding):
    assert scored(rewarding("as_array", batch=True), "a", "b") == [1.0, 1.0]


def test_the_wrong_number_of_rewards_is_an_error_that_names_the_function(rewarding):
    with pytest.raises(ValueError, match=rf"reward function {MODULE}.one_short returned 2 rewards for 3 completions"):
        scored(rewarding("one_short", batch=True), "a", "b", "c")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("nowhere.to.be.found", "ModuleNotFoundError: No module named 'nowhere'"),
        (f"{MODULE}.missing", "AttributeError: .* has no attribute 'missing'"),
        (f"{MODULE}.no_function", "TypeError: no_function is no function"),
        ("alone", "give it as my.module.function"),
        ("antigravity_that_exits.f", "its process ended with code 5"),
    ],
)
def test_a_function_that_cannot_be_imported_is_an_error_that_names_it(function, reason, tmp_path, monkeypatch):
    (tmp_path / "antigravity_that_exits.py").write_text("import os\nos._exit(5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^reward function {function} cannot be used: .*{reason}"):
        RewardFunction(function)([{}], ["a"])


def test_a_deadline_of_no_time_is_refused():
    with pytest.raises(ValueError, match=r"^task.seconds=0: must be above 0$"):
        RewardFunction("a.b", seconds=0)


def test_what_the_function_started_ends_with_it(rewarding, tmp_path):
    function = rewarding("beside_children", seconds=0.3)
    assert function([{}], [str(tmp_path / "pids")]) == pytest.approx([nan], nan_ok=True)
    pids = (tmp_path / "pids").read_text().split()
    assert until(lambda: not any(map(alive, pids)))


def test_a_function_that_hangs_ends_when_the_run_is_killed(tmp_path):
    pids = tmp_path / "pids"
    script = f"from rhythm.tasks.reward import RewardFunction as R; R('{MODULE}.beside_children')([{{}}], ['{pids}'])"
    run = subprocess.Popen([sys.executable, "-c", script])
    assert until(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
    run.kill()
    run.wait()
    assert until(lambda: not any(map(alive, pids.read_text().split())))
