import dataclasses
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

import compare as script
from rhythm.evaluation.curves import Run, arms, draw, last_common, over_problems, over_seeds, table
from rhythm.evaluation.metrics import student_interval

TAG = "eval/pass@1"


@pytest.fixture
def a_run(tmp_path):
    """Makes a run folder with a curve of held-out pass@1."""

    def make(name, credit="Anchor", seed=0, values=(0.2, 0.4), correct=None, **settings):
        folder = tmp_path / name
        config = {"seed": seed, "learning_rate": 1e-3, "output_dir": str(folder), "iterations": 20, "eval_every": 10}
        credit = credit if isinstance(credit, dict) else {"_target_": f"rhythm.credit.{credit}Credit"}
        config |= {"credit": credit, "task": {"count": 3}} | settings
        config["algorithm"] = {"seed": seed, "optimizer": {"lr": config["learning_rate"]}}
        config.setdefault("callbacks", {})["export"] = {"folder": str(folder)}
        folder.mkdir()
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        with SummaryWriter(folder) as board:
            for iteration, value in zip((0, 10, 20), values, strict=False):
                board.add_scalar(TAG, value, iteration)
                board.add_scalar("eval/kl", 0.1, iteration)
        if correct is not None:
            (folder / "metrics.json").write_text(
                json.dumps({"last": {"iteration": 10, "correct": correct, "samples": 8}})
            )
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


def test_a_key_that_is_null_says_what_one_that_is_absent_does(a_run):
    found = load(a_run("a"), a_run("b", seed=1, lower=None), a_run("c", credit="Uniform", above={"lower": None}))
    assert {name: len(group) for name, group in found.items()} == {"anchor": 2, "uniform": 1}
    with pytest.raises(ValueError, match="another run has its settings and its seed"):
        load(a_run("d"), a_run("e", lower=None))


def test_credits_of_one_name_are_told_apart_by_where_they_are_from(a_run):
    mine = {"_target_": "mine.AnchorCredit", "strength": 2}
    runs = [a_run("a"), a_run("b", credit=mine), a_run("c", credit="Uniform"), a_run("d", seed=1)]
    found = load(*runs)
    assert list(found) == [
        "anchor credit._target_='rhythm.credit.AnchorCredit'",
        "anchor credit._target_='mine.AnchorCredit' credit.strength=2",
        "uniform",
    ]
    assert [len(group) for group in found.values()] == [2, 1, 1]


def test_a_number_and_its_digits_as_text_are_two_arms(a_run):
    found = load(a_run("a", version=1), a_run("b", version="1"))
    assert list(found) == ["anchor version=1", "anchor version='1'"]


def test_a_setting_that_is_null_is_told(a_run):
    reader = "rhythm.callbacks.attention_signals.AttentionSignals"
    values = {"absent": {}, "default": {"regroup_every": 1}, "never": {"regroup_every": None}}
    runs = {
        name: a_run(name, seed=seed, callbacks={"attention_signals": {"_target_": reader} | value})
        for seed, (name, value) in enumerate(values.items())
    }
    key = "callbacks.attention_signals.regroup_every"
    assert list(load(runs["default"], runs["never"])) == [f"anchor {key}=1", f"anchor {key}=null"]
    found = load(*runs.values())  # left out it has the default of its class
    assert {name: len(group) for name, group in found.items()} == {"anchor": 2, f"anchor {key}=null": 1}


def test_what_is_left_out_of_an_object_that_is_not_ours_is_not_known(a_run):
    """And nothing is imported to know it: a run's config is data."""
    mine = {"_target_": "nowhere.MineCredit"}
    found = load(a_run("a", credit=mine), a_run("b", seed=1, credit=mine | {"strength": None}))
    assert list(found) == ["mine", "mine credit.strength=null"]


def test_nor_of_one_of_ours_that_is_gone(a_run):
    gone = {"_target_": "rhythm.credit.GoneCredit"}
    found = load(a_run("a", credit=gone), a_run("b", seed=1, credit=gone | {"strength": None}))
    assert list(found) == ["gone", "gone credit.strength=null"]


def test_runs_measured_on_other_problems_are_other_arms(a_run):
    measured = [{"evaluation": {"problems": problems, "prompts_at_once": 64}} for problems in (128, 256)]
    found = load(*(a_run(f"a{i}", seed=i, callbacks=callbacks) for i, callbacks in enumerate(measured)))
    assert list(found) == [f"anchor callbacks.evaluation.problems={problems}" for problems in (128, 256)]


def test_a_row_for_each_arm_and_iteration(a_run):
    runs = [a_run("a", values=(0.25, 0.5)), a_run("b", seed=1, values=(0.5,)), a_run("c", credit="Uniform")]
    rows = table(load(*runs)).set_index(["arm", "iteration"])
    assert list(rows.index) == [("anchor", 0), ("anchor", 10), ("uniform", 0), ("uniform", 10)]
    assert rows.n.tolist() == [2, 1, 1, 1]
    assert rows["mean"].tolist() == pytest.approx([0.375, 0.5, 0.2, 0.4])
    reach = 12.7062 * 0.125  # t of one degree of freedom times the standard error of two values 0.25 apart
    assert rows.loc["anchor", 0][["low", "high"]].tolist() == pytest.approx([0.375 - reach, 0.375 + reach], abs=1e-4)
    assert rows.low.isna().tolist() == [False, True, True, True]
    assert rows.loc["anchor", 10][["seed 0", "seed 1"]].fillna(-1).tolist() == [0.5, -1]


def test_seeds_that_agree_have_no_interval_and_the_band_begins_at_a_point(a_run):
    """Before the first iteration all seeds are one policy."""
    curves = [(0.2, 0.4, 0.5), (0.2, 0.4, 0.7)]
    rows = table(load(*(a_run(f"a{seed}", seed=seed, values=values) for seed, values in enumerate(curves))))
    assert rows.low.isna().tolist() == rows.high.isna().tolist() == [True, True, False]
    (band,) = draw(rows, "pass@1").axes[0].collections
    points = np.concatenate([path.vertices for path in band.get_paths()])
    assert set(points[:, 0]) == {0, 20}
    assert points[points[:, 0] == 0, 1] == pytest.approx(0.2)


def test_runs_are_compared_where_all_have_come_to(a_run):
    runs = [Run.load(a_run(f"a{i}", values=values), TAG) for i, values in enumerate([(0.2, 0.4, 0.5), (0.2, 0.3)])]
    assert last_common(runs) == 10
    elsewhere = dataclasses.replace(runs[0], curve={5: 0.1})
    with pytest.raises(ValueError, match=r"no iteration at which all of these runs .*a0 at \[0, 10, 20\]"):
        last_common([runs[0], elsewhere])


def test_seeds_are_paired_where_two_are_common(a_run):
    ours = [a_run(f"a{seed}", seed=seed, values=(0.2, 0.4 + seed**2 / 10)) for seed in range(4)]
    theirs = [a_run(f"u{seed}", credit="Uniform", seed=seed, values=(0.2, 0.3 + seed / 10)) for seed in range(1, 4)]
    found = load(*ours, *theirs)
    seen = over_seeds(found["anchor"], found["uniform"], 10)
    assert (seen.pairs, seen.unit) == (3, "seeds")
    assert seen.difference == pytest.approx(0.1 + (0 + 2 + 6) / 30)
    assert (seen.low, seen.high) == pytest.approx(student_interval([0.1, 0.3, 0.7]))
    assert over_seeds(found["anchor"], found["uniform"], 0).difference == pytest.approx(0)
    assert over_problems(found["anchor"], found["uniform"], 10) is None  # nothing is known of them


def test_two_single_runs_are_paired_by_problem(a_run):
    one, other = a_run("a", correct=[4, 2, 0, 4]), a_run("b", credit="Uniform", correct=[2, 2, 0, 0])
    pair = load(one, other).values()
    assert over_seeds(*pair, 10) is None
    seen = over_problems(*pair, 10)
    assert (seen.pairs, seen.unit, seen.difference) == (4, "problems", pytest.approx(6 / 32))
    assert "not distinguishable" in str(seen)
    assert over_problems(*pair, 0) is None  # what is known of each problem is known of the end
    by_kl = arms([Run.load(folder, "eval/kl") for folder in (one, other)])
    assert over_problems(*by_kl.values(), 10) is None  # ... and is whether it was solved
    apart = load(one, a_run("c", credit="Uniform", correct=[2, 2, 0, 0], task={"count": 4}))
    assert over_problems(*apart.values(), 10) is None  # other problems
    fewer = load(one, a_run("d", credit="Uniform", correct=[2, 2, 0]))
    assert over_problems(*fewer.values(), 10) is None


def test_problems_count_by_their_mean_over_the_seeds_that_both_arms_have(a_run):
    ours = [a_run(f"a{seed}", seed=seed, correct=correct) for seed, correct in enumerate([[8, 0], [0, 4], [8, 8]])]
    theirs = [a_run(f"u{seed}", credit="Uniform", seed=seed, correct=[0, 0]) for seed in range(2)]
    found = load(*ours, *theirs)
    seen = over_problems(found["anchor"], found["uniform"], 10)
    assert (seen.pairs, seen.difference) == (2, pytest.approx((8 / 16 + 4 / 16) / 2))
    unknown = load(*ours, theirs[0], a_run("u", credit="Uniform", seed=1))
    assert over_problems(unknown["anchor"], unknown["uniform"], 10) is None


def test_the_same_run_twice(a_run):
    with pytest.raises(ValueError, match="another run has its settings and its seed"):
        load(a_run("a"), a_run("b"))


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    script.main()


def test_the_command_writes_and_prints(a_run, tmp_path, monkeypatch, capsys):
    ours = [a_run(f"a{seed}", seed=seed, values=(0.2, 0.4 + seed / 10, 0.9)) for seed in range(2)]
    theirs = [a_run(f"u{seed}", credit="Uniform", seed=seed) for seed in range(2)]
    call(monkeypatch, *theirs, *ours, "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert f"after iteration 10, the last that all of them have: {theirs[0]} ends at 10, {theirs[1]} ends at 10" in out
    assert "uniform: 0.4000 [unknown], 2 seeds" in out  # both have it: nothing says how far others would be
    assert "anchor − uniform: +0.0500 [" in out
    assert "2 seeds: not distinguishable" in out
    assert "P(anchor > uniform): 0.75\n" in out  # two runs an arm say nothing about its interval
    assert len(pd.read_csv(tmp_path / "out" / "compare.csv")) == 5
    assert 5_000 < (tmp_path / "out" / "compare.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"task": {"count": 4}}, "task.count"),
        ({"task": {"count": 4}, "size": 4}, "task.count"),  # in which another setting differs alike
        ({"callbacks": {"evaluation": {"problems": 64}}}, "callbacks.evaluation.problems"),
        ({"max_completion_tokens": 40}, "max_completion_tokens"),
        ({"policy": {"system_prompt": "Think."}}, "policy.system_prompt"),
        ({"task": {"count": 3, "train_size": 9}}, None),
        ({"learning_rate": 1e-2}, None),
    ],
)
def test_of_arms_that_may_have_been_asked_otherwise_it_says_so(a_run, tmp_path, monkeypatch, capsys, settings, asked):
    ours = [a_run(f"a{seed}", seed=seed, **settings) for seed in range(2)]
    theirs = [a_run(f"b{seed}", seed=seed, **{"size": 3} if "size" in settings else {}) for seed in range(2)]
    call(monkeypatch, *theirs, *ours, "--output", tmp_path / "out")
    told = [line for line in capsys.readouterr().out.splitlines() if "may have been asked otherwise" in line]
    assert [line.rpartition("they differ in ")[2] for line in told] == ([asked] if asked else [])


def test_pairs_of_problems_are_told_as_those_of_these_runs(a_run, tmp_path, monkeypatch, capsys):
    runs = [a_run("a", correct=[4, 2, 0, 4]), a_run("b", credit="Uniform", correct=[2, 2, 0, 0])]
    call(monkeypatch, *runs, "--output", tmp_path / "out")
    heading, line = capsys.readouterr().out.splitlines()[-3:-1]
    assert heading == "over problems, which tells of these runs, not of other runs of the same arms:"
    assert line.startswith("uniform − anchor: -0.1875 [")
    assert line.endswith("4 problems: not distinguishable")


def test_how_probable_an_improvement_is_has_an_interval_from_six_runs_an_arm(a_run, tmp_path, monkeypatch, capsys):
    folders = [
        a_run(f"{credit}{seed}", credit=credit, seed=seed, values=(0.2, 0.4 + (7 * seed + shift) % 10 / 50))
        for credit, shift in (("Uniform", 0), ("Anchor", 3))
        for seed in range(6)
    ]
    call(monkeypatch, *folders, "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert re.search(r"^P\(anchor > uniform\): 0\.\d\d \[0\.\d\d, \d\.\d\d\]$", out, re.MULTILINE)
    assert len(re.findall(r"6 seeds, interquartile mean 0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]$", out, re.MULTILINE)) == 2
    call(monkeypatch, *folders[1:], "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert re.search(r"^P\(anchor > uniform\): 0\.\d\d$", out, re.MULTILINE)
    assert re.search(r"5 seeds, interquartile mean 0\.\d{4}$", out, re.MULTILINE)


def test_of_several_arms_what_is_told_apart_is_so_after_holm(a_run, tmp_path, monkeypatch, capsys):
    """Alone either gain would be: p is 0.034 and 0.041."""
    gains = {"Uniform": (0.0,) * 3, "Anchor": (0.12, 0.10, 0.06), "Random": (0.13, 0.10, 0.06), "Entropy": (0.1,)}
    folders = [
        a_run(f"{credit}{seed}", credit=credit, seed=seed, values=(0.2, 0.4 + seed / 100 + gain))
        for credit, of in gains.items()
        for seed, gain in enumerate(of)
    ]
    found = load(*folders)
    alone = {name: over_seeds(found[name], found["uniform"], 10) for name in ("anchor", "random")}
    assert all(seen.distinguishable for seen in alone.values())
    call(monkeypatch, *folders, "--output", tmp_path / "out")
    out = capsys.readouterr().out
    smaller, larger = sorted(seen.p for seen in alone.values())
    assert f"anchor − uniform: {alone['anchor'].difference:+.4f} [" in out
    for name, p in (("anchor", 2 * smaller), ("random", max(2 * smaller, larger))):
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} − uniform"))
        assert f"p = {p:.3f}, 3 seeds" in line
        assert line.endswith("not distinguishable")
    assert "entropy − uniform: no two seeds in common" in out
    assert "p is corrected for 2 comparisons by Holm's procedure; intervals are of each alone" in out
    call(monkeypatch, *folders[:6], "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert f"p = {smaller:.3f}, 3 seeds" in out  # one comparison is no family
    assert "Holm" not in out


def test_a_run_whose_metrics_tell_of_no_end_is_compared_all_the_same(a_run, tmp_path, monkeypatch, capsys):
    ours, theirs = a_run("a"), a_run("u", credit="Uniform", correct=[1, 2])
    (ours / "metrics.json").write_text('{"iterations": 20}')
    call(monkeypatch, theirs, ours, "--output", tmp_path / "out")
    assert "anchor − uniform: no two seeds in common" in capsys.readouterr().out


def evaluated(path, correct, task="three", **others):
    how = {"seed": 0, "temperature": 1.0, "max_completion_tokens": 200, "prompts_at_once": 64}
    what = {"task": {"name": task}, "problems": len(correct), "samples": 8, "correct": correct}
    path.write_text(json.dumps(how | what | others))
    return path


def test_what_eval_wrote_is_compared_problem_by_problem(tmp_path, monkeypatch, capsys):
    base = evaluated(tmp_path / "base.json", [2, 0, 0, 1, 3, 0, 2, 1])
    better = evaluated(tmp_path / "better.json", [4, 2, 3, 2, 4, 2, 3, 3])
    call(monkeypatch, base, better)
    out = capsys.readouterr().out
    assert f"{base}: 0.1406" in out
    assert f"{better} − {base}: +0.2188 [" in out
    assert "p = 0.008, 8 problems" in out  # 2 of 2⁸ signs
    other = evaluated(tmp_path / "other.json", [2] * 8, task="four", temperature=0.5)
    with pytest.raises(SystemExit, match=f"^error: {other} and {base} differ in task, temperature: evaluate both"):
        call(monkeypatch, base, other)
    with pytest.raises(SystemExit, match=r"base\.json is one evaluation: name another"):
        call(monkeypatch, base)
    with pytest.raises(SystemExit, match=r"base\.json is a file and others are not"):
        call(monkeypatch, base, tmp_path)
    short = evaluated(tmp_path / "short.json", [2] * 8, problems=9)
    with pytest.raises(SystemExit, match=r"short\.json was not written by this version of eval\.py"):
        call(monkeypatch, base, short)
    (tmp_path / "old.json").write_text('{"metrics": {}}')
    with pytest.raises(SystemExit, match=r"^error: .*old\.json was not written by this version of eval\.py: eval"):
        call(monkeypatch, base, tmp_path / "old.json")


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (None, ["nowhere"], "no run folder, it has no config.yaml"),
        (None, ["a", "--metric", "eval/pass@9"], "no `eval/pass@9`.*eval/pass@1"),
        (None, ["a", "--output", "a/config.yaml"], "--output .*config.yaml: there is a file of that name"),
        ({"metrics.json": '{"last": '}, ["a"], "metrics.json is damaged"),
        ({"config.yaml": "[1"}, ["a"], "config.yaml cannot be read"),
        ({"config.yaml": "iterations: 3"}, ["a"], "config.yaml is no run's config: it names no seed"),
    ],
)
def test_what_cannot_be_compared(a_run, tmp_path, monkeypatch, damage, arguments, message):
    folder = a_run("a")
    for name, text in (damage or {}).items():
        (folder / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{message}[^\n]*$"):
        call(monkeypatch, *arguments)
