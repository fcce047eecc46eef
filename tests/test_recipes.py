"""The paper's recipes: what they set, and that they run, on tiny stand-ins of their policies."""

import json
import sys

import pytest

import train
from rhythm import cli
from tests.bases import save_base
from tests.test_configs import EXPERIMENTS, composed

STAND_INS = {"paper/countdown_4b": "qwen3_base"}


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


@pytest.mark.parametrize("recipe", STAND_INS)
def test_a_recipe_runs_on_a_stand_in(recipe, tmp_path, monkeypatch):
    base = save_base(tmp_path / "base", STAND_INS[recipe])
    sizes = ["debug=smoke", "iterations=1", "max_completion_tokens=24", "trainer=cpu", "trainer.devices=1"]
    words = [f"experiment={recipe}", *sizes, f"policy.path={base}", f"output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    cli.main(train.train, "train")
    outcome = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert outcome["iterations"] == 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
