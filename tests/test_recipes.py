"""The paper's recipes: what they set, and that they run, on tiny stand-ins of their policies."""

import json
import re
import sys

import pytest

import train
from rhythm import cli
from tests.bases import save_base
from tests.tasks.files import write
from tests.tasks.test_task_configs import ROWS
from tests.test_configs import EXPERIMENTS, composed

# The recipe's base, and a row of the data that it trains on and of those that it watches.
STAND_INS = {
    "paper/countdown_4b": ("qwen3_base",),
    "paper/crossthink": ("qwen3_base", "crossthink_qa_train", "crossthink_qa_train"),
    "paper/math_4b_1k": ("qwen3_base", "dapo_math", "math500"),
    "paper/math_4b_8k": ("qwen3_base", "dapo_math", "math500"),
    "paper/math_8b_1k": ("qwen3_base", "dapo_math", "math500"),
    "paper/zebra_4b": ("qwen3_base", "zebra_logic_train", "zebra_logic_train"),
}
SHORT = {"paper/countdown_4b", "paper/math_4b_1k"}  # the others take the same path


def test_every_recipe_of_the_paper_has_a_stand_in():
    assert {name for name in EXPERIMENTS if name.startswith("paper/")} - {"paper/v1"} == set(STAND_INS)


def test_countdown_is_the_papers():
    cfg = composed("experiment=paper/countdown_4b")
    assert cfg.prompts_per_iteration * cfg.group_size == 512
    assert (cfg.updates_per_iteration, cfg.max_completion_tokens, cfg.iterations) == (16, 1024, 500)
    assert (cfg.policy.path, cfg.policy.full) == ("Qwen/Qwen3-4B-Base", False)
    assert (cfg.task.count, cfg.task.train_size, cfg.task.test_size) == (4, 20_000, 512)
    assert cfg.callbacks.evaluation.problems == 512
    assert cfg.algorithm.objective.beta == 0


@pytest.mark.parametrize(
    ("recipe", "policy", "train_on", "tokens"),
    [
        ("crossthink", "Qwen/Qwen3-4B-Base", "crossthink_qa", 1024),
        ("math_4b_1k", "Qwen/Qwen3-4B-Base", "dapo_math", 1024),
        ("math_4b_8k", "Qwen/Qwen3-4B-Base", "dapo_math", 8192),
        ("math_8b_1k", "Qwen/Qwen3-8B-Base", "dapo_math", 1024),
        ("zebra_4b", "Qwen/Qwen3-4B-Base", "zebra_logic", 8192),
    ],
)
def test_the_other_recipes_are_the_papers(recipe, policy, train_on, tokens):
    cfg = composed(f"experiment=paper/{recipe}")
    assert cfg.prompts_per_iteration * cfg.group_size == 512
    assert (cfg.updates_per_iteration, cfg.max_completion_tokens, cfg.policy.path) == (16, tokens, policy)
    assert cfg.task == composed(f"task={train_on}").task
    assert cfg.credit._target_ == "rhythm.credit.CoupledCredit"
    assert (cfg.signals.window, list(cfg.signals.horizon), cfg.credit.top_fraction) == (10, [10, 100], 0.4)


@pytest.mark.parametrize("recipe", STAND_INS)
def test_a_recipe_evaluates_no_more_at_once_on_a_device_than_it_trains_on(recipe):
    cfg = composed(f"experiment={recipe}")
    evaluation = cfg.callbacks.evaluation
    assert evaluation.prompts_at_once * evaluation.samples <= 512 // cfg.trainer.devices


def files(folder, name, role):
    """Eight rows like the one of a dataset, told apart by their text."""
    row, _ = ROWS[name]
    text = next(word for word in re.findall(r"Q\d+", json.dumps(row)))
    rows = [json.loads(json.dumps(row).replace(text, f"{text} {role} {i}")) for i in range(8)]
    return write(folder / f"{role}.jsonl", rows)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in STAND_INS]
)
def test_a_recipe_runs_on_a_stand_in(recipe, tmp_path, monkeypatch):
    stand_in, *data = STAND_INS[recipe]
    base = save_base(tmp_path / "base", stand_in)
    sizes = ["debug=smoke", "iterations=1", "max_completion_tokens=24", "trainer=cpu", "trainer.devices=1"]
    for role, name in zip(("train", "test"), data, strict=False):
        sizes += [f"task.{role}.files=[{files(tmp_path, name, role)}]", f"task.{role}.part=all"]
    words = [f"experiment={recipe}", *sizes, f"policy.path={base}", f"output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    cli.main(train.train, "train")
    outcome = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert outcome["iterations"] == 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
