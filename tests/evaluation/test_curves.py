import json
import sys

import pandas as pd
import pytest
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

import compare as script
from rhythm.evaluation.curves import Run, against, arms, table

TAG = "eval/pass@1"


@pytest.fixture
def a_run(tmp_path):
    """Makes a run folder with a curve of held-out pass@1."""

    def make(name, credit="Anchor", seed=0, values=(0.2, 0.4), correct=None, **settings):
        folder = tmp_path / name
        config = {"seed": seed, "learning_rate": 1e-3, "output_dir": str(folder), "iterations": 20, "eval_every": 10}
        config |= {"credit": {"_target_": f"rhythm.credit.{credit}Credit"}, "task": {"count": 3}} | settings
        config["algorithm"] = {"seed": seed, "optimizer": {"lr": config["learning_rate"]}}
        config["callbacks"] = {"export": {"folder": str(folder)}}
        folder.mkdir()
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        with SummaryWriter(folder) as board:
            for iteration, value in zip((0, 10, 20), values, strict=False):
                board.add_scalar(TAG, value, iteration)
                board.add_scalar("eval/kl", 0.1, iteration)
        if correct is not None:
            (folder / "metrics.json").write_text(json.dumps({"last": {"correct": correct, "samples": 8}}))
        return folder

    return make


def load(*folders):
    return arms([Run.load(folder, TAG) for folder in folders])


def test_runs_that_differ_in_their_seed_alone_are_one_arm(a_run):
    found = load(a_run("a", seed=1), a_run("b", seed=0), a_run("c", credit="Uniform"), a_run("d", eval_every=5, seed=2))
    assert {name: [run.seed for run in group] for name, group in found.items()} == {"anchor": [0, 1, 2], "uniform": [0]}


def test_arms_are_named_by_what_differs(a_run):
    found = load(a_run("a"), a_run("b", learning_rate=1e-2), a_run("c", credit="Uniform"))
    assert list(found) == ["anchor learning_rate=0.001", "anchor learning_rate=0.01", "uniform learning_rate=0.001"]
    found = load(a_run("d", credit="Uniform", seed=4), a_run("e", iterations=40))
    assert list(found) == ["uniform iterations=20", "anchor iterations=40"]


def test_a_row_for_each_arm_seed_and_iteration(a_run):
    rows = table(load(a_run("a", values=(0.25, 0.5)), a_run("b", credit="Uniform", values=(0.25,))))
    assert rows.values.tolist() == [["anchor", 0, 0, 0.25], ["anchor", 0, 10, 0.5], ["uniform", 0, 0, 0.25]]


def test_seeds_are_paired_where_two_are_common(a_run):
    ours = [a_run(f"a{seed}", seed=seed, values=(0.2, 0.4 + seed / 10)) for seed in range(4)]
    theirs = [a_run(f"u{seed}", credit="Uniform", seed=seed, values=(0.2, 0.3 + seed / 10)) for seed in range(1, 4)]
    found = load(*ours, *theirs)
    seen = against(found["anchor"], found["uniform"])
    assert (seen.pairs, seen.unit) == (3, "seeds")
    assert seen.difference == pytest.approx(0.1)


def test_two_single_runs_are_paired_by_problem(a_run):
    one, other = a_run("a", correct=[4, 2, 0, 4]), a_run("b", credit="Uniform", correct=[2, 2, 0, 0])
    found = load(one, other)
    seen = against(found["anchor"], found["uniform"])
    assert (seen.pairs, seen.unit, seen.difference) == (4, "problems", pytest.approx(6 / 32))
    assert "not distinguishable" in str(seen)
    by_kl = arms([Run.load(folder, "eval/kl") for folder in (one, other)])
    assert against(*by_kl.values()) is None  # what is known of each problem is whether it was solved
    apart = load(one, a_run("c", credit="Uniform", correct=[2, 2, 0, 0], task={"count": 4}))
    assert against(*apart.values()) is None  # other problems


def test_the_same_run_twice(a_run):
    with pytest.raises(ValueError, match="another run has its settings and its seed"):
        load(a_run("a"), a_run("b"))


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    script.main()


def test_the_command_writes_and_prints(a_run, tmp_path, monkeypatch, capsys):
    ours = [a_run(f"a{seed}", seed=seed, values=(0.2, 0.4 + seed / 10)) for seed in range(2)]
    theirs = [a_run(f"u{seed}", credit="Uniform", seed=seed) for seed in range(2)]
    call(monkeypatch, *theirs, *ours, "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert "uniform: 0.4000, 2 seeds" in out
    assert "anchor − uniform: +0.0500 [" in out
    assert "2 seeds: not distinguishable" in out
    assert len(pd.read_csv(tmp_path / "out" / "compare.csv")) == 8
    assert 5_000 < (tmp_path / "out" / "compare.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    ("metric", "folder", "message"),
    [(TAG, "nowhere", "no run folder, it has no config.yaml"), ("eval/pass@9", "a", "no `eval/pass@9`.*eval/pass@1")],
)
def test_what_cannot_be_compared(a_run, tmp_path, monkeypatch, metric, folder, message):
    a_run("a")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        call(monkeypatch, tmp_path / folder, "--metric", metric)
