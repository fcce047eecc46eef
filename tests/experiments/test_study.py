import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from experiments import report, study
from rhythm.evaluation.comparison import holm, smallest_difference

ARMS = ("uniform", "coupled", "shuffled_coupled", "anchor")


def described(folder, **changes):
    """A folder with a study.yaml."""
    folder.mkdir(exist_ok=True)
    content = {
        "arms": {arm: [f"experiment={arm}"] for arm in ARMS},
        "seeds": [0, 1],
        "baseline": "uniform",
    }
    if "arms" not in changes:
        content["primary"] = [["coupled", "uniform"], ["coupled", "shuffled_coupled"]]
        content["secondary"] = [["anchor", "shuffled_coupled"]]
    (folder / "study.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return study.Study.load(folder)


def row(arm, seed, iteration, score, **others):
    named = {"credit": arm, "seed": str(seed), "iteration": str(iteration), "pass@1": f"{score:.4f}", "n": "512"}
    return {name: (named | others).get(name, "") for name in study.FIELDS}


def test_rows_stand_by_arm_seed_and_iteration_and_a_run_replaces_itself(tmp_path):
    ours = described(tmp_path)
    ours.add([row("coupled", 1, 0, 0.2), row("coupled", 1, 20, 0.3)])
    ours.add([row("uniform", 10, 0, 0.2), row("uniform", 2, 0, 0.2)])
    ours.add([row("coupled", 1, 0, 0.2), row("coupled", 1, 20, 0.4)])
    order = [(r["credit"], r["seed"], r["iteration"], r["pass@1"]) for r in ours.rows()]
    assert order == [
        ("uniform", "2", "0", "0.2000"),
        ("uniform", "10", "0", "0.2000"),
        ("coupled", "1", "0", "0.2000"),
        ("coupled", "1", "20", "0.4000"),
    ]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_the_study_runs_what_is_missing_and_the_same_again(tmp_path):
    """Two real runs of a second each: one for the row, one that has to give it once more."""
    smoke = ["debug=smoke", "iterations=1", "callbacks.evaluation.problems=4"]
    ours = described(tmp_path / "tiny", arms={"uniform": ["experiment=uniform"]}, common=smoke, seeds=[3])
    command = [sys.executable, study.__file__, str(ours.folder), "--logs", str(tmp_path / "logs"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 runs" in done.stdout
    rows = ours.rows()
    assert [r["iteration"] for r in rows] == ["0", "1"]
    assert all(rows[-1][name] for name in study.FIELDS)
    assert "0 runs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours.add([r | ({"grad_norm": "7.0000"} if r["iteration"] == "1" else {}) for r in rows])
    again = subprocess.run([*command, "--again"], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("1 numbers differ: ")
    assert "grad_norm was 7.0000" in again.stdout
    ours.results.unlink()  # the folders of finished runs still tell their rows
    subprocess.run(command, capture_output=True, text=True, check=True)
    told = [{name: r[name] for name in study.FIELDS if name != "peak_mb"} for r in (*rows, *ours.rows())]
    assert told[:2] == told[2:]


SMOKE = ["debug=smoke", "callbacks.evaluation.problems=4", "checkpoint_every=1"]


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path):
    arms = {"broken": ["group_size=0"], "uniform": ["experiment=uniform"]}
    ours = described(tmp_path / "tiny", arms=arms, common=[*SMOKE, "iterations=1"], seeds=[0])
    command = [sys.executable, study.__file__, str(ours.folder), "--logs", str(tmp_path / "logs"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1/2  broken, seed 0: failed" in done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: broken, seed 0: exit code 1; ")
    assert {r["credit"] for r in ours.rows()} == {"uniform"}


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_study_that_is_stopped_leaves_nothing_running_and_goes_on(tmp_path, again):
    common = [*SMOKE, "iterations=20", "eval_every=20", "inspect_every=100", "max_completion_tokens=40"]
    ours = described(tmp_path / "tiny", arms={"uniform": ["experiment=uniform"]}, common=common, seeds=[0])
    logs = tmp_path / "logs"
    command = [sys.executable, study.__file__, str(ours.folder), "--logs", str(logs), "--workers", "1"]
    log, deadline = logs / f"{'again-' * again}uniform-0.log", time.monotonic() + 300
    begun = subprocess.Popen([*command, *["--again"] * again])
    while not (log.exists() and "iteration 1" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(60) == 143
    assert "saved; to go on" in log.read_text()
    assert not subprocess.run(["pgrep", "-f", str(logs)], capture_output=True).stdout
    assert not ours.rows()
    if not again:
        subprocess.run(command, check=True)
        assert [row["iteration"] for row in ours.rows()] == ["0", "20"]
        assert "iteration 1/" not in log.read_text()  # it went on behind it


def test_a_finished_run_of_other_settings_is_not_taken_for_the_studys(tmp_path):
    ours = described(tmp_path)
    folder = tmp_path / "uniform-0"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    (folder / "config.yaml").write_text("command: python train.py experiment=uniform seed=1\n")
    with pytest.raises(
        RuntimeError, match=r"uniform-0 is a run of other settings \(python train.py .* seed=1\): remove"
    ):
        study.run_once(ours, "uniform", 0, folder, threads=1, children=[])


def test_rows_of_an_arm_that_the_study_does_not_name_are_refused(tmp_path):
    ours = described(tmp_path / "ours")
    described(tmp_path / "theirs", arms={"steep": []}).add([row("steep", 0, 0, 0.2)])
    theirs = tmp_path / "theirs" / "results.csv"
    command = [sys.executable, study.__file__, str(ours.folder), "--merge", str(theirs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1, f"error: {theirs} has rows of steep, which {ours.folder / 'study.yaml'} does not name\n",
    )  # fmt: skip


@pytest.fixture
def two_checkouts(tmp_path):
    """A run of ours, and the same run by them with one of their own beside it."""
    ours, theirs = described(tmp_path / "ours"), described(tmp_path / "theirs")
    common = [row("uniform", 0, 0, 0.2), row("uniform", 0, 20, 0.3)]
    ours.add([r | {"run_seconds": "300"} for r in common])
    theirs.add([r | {"run_seconds": "500"} for r in common])
    theirs.add([row("coupled", 0, 0, 0.2), row("coupled", 0, 20, 0.5)])
    return ours, theirs


def test_merged_runs_stand_beside_ours(two_checkouts):
    ours, theirs = two_checkouts
    command = [sys.executable, study.__file__, str(ours.folder), "--merge", str(theirs.results)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{theirs.results}: 1 runs are new, 1 stood in {ours.results}\n"
    found = [(r["credit"], r["iteration"], r["pass@1"], r["run_seconds"]) for r in ours.rows()]
    assert found == [
        ("uniform", "0", "0.2000", "300"), ("uniform", "20", "0.3000", "300"),
        ("coupled", "0", "0.2000", ""), ("coupled", "20", "0.5000", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [[(0, 0.2), (20, 0.4)], [(0, 0.2)]], ids=["other", "fewer"])
def test_a_run_that_stands_here_with_other_rows_is_not_merged(two_checkouts, rows):
    ours, theirs = two_checkouts
    theirs.add([row("uniform", 0, iteration, score) for iteration, score in rows])
    before = ours.results.read_text()
    with pytest.raises(RuntimeError, match=r"theirs/results.csv: uniform, seed 0 has other rows than in .*ours/res"):
        ours.merge(theirs.results)
    assert ours.results.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,seed,iteration\nuniform,0,0\n", "has no column credit: it is no results.csv"),
        ("credit,seed,iteration,reward_std\nuniform,0,0,1\n", "has columns that study.py does not write: reward_std"),
        ("credit,seed,iteration\nuniform,0,0\nuniform,one,0\n", "line 3: its seed or iteration is no whole number"),
        ("credit,seed,iteration\nuniform,0\n", "line 2 has too few or too many cells"),
        ("credit,seed,iteration\nuniform,0,0,0.2\n", "line 2 has too few or too many cells"),
        (
            "credit,seed,iteration\nuniform,0,0\nuniform,00,0\n",
            "line 3: there is a row of this arm, seed and iteration",
        ),
        ("credit,seed,iteration\nuniform,0,0\udcff\n", "is no table: "),
    ],
)
def test_a_file_that_is_no_results_csv_is_not_merged(tmp_path, text, message):
    ours = described(tmp_path / "ours")
    theirs = tmp_path / "theirs.csv"
    theirs.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RuntimeError, match=rf"theirs\.csv,? {message}"):
        ours.merge(theirs)
    assert {path.name for path in ours.folder.iterdir()} == {"study.yaml"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "arms"),
        ("seeds: [0]", "arms"),
        ("{arms: [uniform], seeds: [0]}", "arms"),
        ("{arms: {}, seeds: [0]}", "arms"),
        ("{arms: {uniform: }, seeds: [0]}", "arms"),
        ("arms: {uniform: []}", "seeds"),
        ("{arms: {uniform: []}, seeds: 3}", "seeds"),
        ("{arms: {uniform: []}, seeds: [one]}", "seeds"),
    ],
)
def test_a_study_without_arms_or_seeds_is_refused(tmp_path, content, what):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(RuntimeError, match=f"study.yaml: give `{what}`, "):
        study.Study.load(tmp_path)


@pytest.fixture
def planted(tmp_path):
    """Ten seeds: coupled gains 5 points on every seed, anchor nothing, whatever a seed has for all of them."""
    ours = described(tmp_path, seeds=list(range(10)))
    draw = np.random.default_rng(1)
    luck = draw.normal(0, 0.05, 10)
    gains = {"uniform": 0.0, "coupled": 0.05, "shuffled_coupled": 0.05, "anchor": 0.0}
    for arm, gain in gains.items():
        for seed in range(10):
            final = 0.4 + luck[seed] + gain + draw.normal(0, 0.005)
            trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.2", "well_formed": "0.9"}
            rows = [row(arm, seed, 0, 0.25), row(arm, seed, 30, 0.3, **trained)]
            ours.add([*rows, row(arm, seed, 40, final, **trained | {"grad_norm": "0.3"})])  # 30 at 0.5 and 10 at 0.3
    return report.Results.load(tmp_path)


def test_a_planted_gain_is_found_and_an_absent_one_is_not(planted):
    primary = report.contrasts(planted).splitlines()
    assert primary[0].startswith("- `coupled` against `uniform`: +")
    assert float(primary[0].split(": +")[1].split()[0]) == pytest.approx(5, abs=0.6)
    assert "p < 0.001, 10 pairs: **distinguishable**." in primary[0]
    assert "`shuffled_coupled`" in primary[1]
    assert "**not distinguishable**" in primary[1]
    # The pairs of ten seeds differ by 0.005·√2, or 0.7 points; ten of them see 0.996 of what that is.
    spread = planted.compare("coupled", "uniform").spread
    assert 0.4 < spread < 1.1
    assert f"With 80% power {0.996 * spread:.1f} points would be found." in primary[0]
    assert "corrected" not in primary[0]
    assert primary[2].startswith("- `anchor` against `shuffled_coupled`")
    assert "corrected p < 0.001" in primary[2]
    seen = planted.compare("anchor", "shuffled_coupled")
    found = smallest_difference(seen.spread, 10, level=0.05 / 3)  # of a family of three
    assert f"With 80% power {found:.1f} points would be found." in primary[2]
    assert primary[3].startswith("- 10 seeds of `uniform` spread by ")


def cells_by_arm(results):
    lines = report.arms_table(results).splitlines()[2:]
    return {line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


def test_the_table_has_a_line_an_arm_and_holm_over_what_is_not_primary(planted):
    cells = cells_by_arm(planted)
    assert list(cells) == list(ARMS)
    assert cells["uniform"][3:7] == ["", "", "", ""]
    assert cells["coupled"][5] == "primary"
    pairs = [("shuffled_coupled", "uniform"), ("anchor", "uniform"), ("anchor", "shuffled_coupled")]
    assert list(planted.family) == pairs
    turned = [*planted.secondary, ("uniform", "anchor"), ("uniform", "coupled"), *planted.secondary]
    other_way = dataclasses.replace(planted, secondary=turned)
    assert list(other_way.family) == pairs
    assert "- `anchor` against `uniform`: " in report.contrasts(other_way)
    assert "- `anchor` against `uniform`: " not in report.contrasts(planted)
    alone = [planted.compare(*pair).p for pair in pairs]
    assert max(alone[0], alone[2]) < 0.01 < alone[1]
    assert cells["anchor"][5] == f"{alone[1]:.3f}"  # the largest of the family
    assert [each.p for each in planted.family.values()] == pytest.approx(holm(alone))
    assert float(cells["coupled"][6].split()[0]) > float(cells["anchor"][6].split()[0])
    assert cells["anchor"][7:] == ["90.0", "0.450", "1.200"]


def test_every_arm_is_told_with_what_would_have_been_found(planted):
    cells = cells_by_arm(planted)
    for arm, level in {"coupled": 0.05, "anchor": 0.05 / 3}.items():  # of a family of three, by Bonferroni
        spread = planted.compare(arm, "uniform").spread
        assert cells[arm][4] == f"{smallest_difference(spread, 10, level=level):.1f}"


def test_an_earlier_iteration_is_told_of_when_asked(planted):
    early = report.Results.load(planted.folder, at=30)
    assert early.final("coupled").tolist() == [0.3] * 10
    assert early.trained_mean("coupled", "grad_norm") == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"--at 7: use one of 30, 40, iterations of .*results\.csv"):
        report.Results.load(planted.folder, at=7)


def reported(monkeypatch, *arguments):
    """Calls report.py as a user does."""
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()


def test_another_outcome_and_some_seeds_are_told_of_when_asked_and_no_figure_is_drawn(planted, monkeypatch, capsys):
    ours = study.Study.load(planted.folder)
    ours.add([r | {"pass@8": f"{1 - float(r['pass@1']):.4f}"} for r in ours.rows()])
    reported(monkeypatch, planted.folder, "--outcome", "pass@8", "--seeds", 2, 3, 4)
    table, told = capsys.readouterr().out.split("\n\n")
    assert "| pass@8, % |" in table
    assert told.startswith("- `coupled` against `uniform`: -")  # what gains by one loses by the other
    assert "3 pairs" in told
    assert "3 seeds of `uniform` spread by" in told
    assert "Before training pass@8 is 75.0%." in told
    assert told.splitlines()[-1].endswith("no p is corrected for this look.")
    assert not list(planted.folder.glob("*.png"))
    reported(monkeypatch, planted.folder)
    assert "no p is corrected" not in capsys.readouterr().out
    assert len(list(planted.folder.glob("*.png"))) == 2
    with pytest.raises(ValueError, match=r"--outcome kl: use one of pass@1, pass@8, .*, well_formed, columns of "):
        report.Results.load(planted.folder, outcome="kl")
    with pytest.raises(ValueError, match=r"--seeds 11: .*results.csv has no such seed"):
        report.Results.load(planted.folder, seeds=[1, 11])
    ours.add([row("anchor", 4, 0, 0.2), row("anchor", 4, 40, 0.2) | {"pass@8": "0.6"}])
    with pytest.raises(ValueError, match=r"results.csv: anchor, seed 4 has no pass@8 at iteration 0$"):
        report.Results.load(planted.folder, outcome="pass@8")


def test_what_is_shown_changes_no_p(planted):
    some = report.Results.load(planted.folder, ["uniform", "anchor"])
    assert list(cells_by_arm(some)) == ["uniform", "anchor"]
    assert cells_by_arm(some)["anchor"] == cells_by_arm(planted)["anchor"]
    assert "shuffled" not in report.contrasts(some)


def test_an_arm_may_be_called_like_a_number(tmp_path):
    ours = described(tmp_path, arms={"1e-3": [], "2e-3": []}, baseline="2e-3")
    trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.0", "well_formed": "1.0"}
    for arm, seed in [("1e-3", 0), ("1e-3", 1), ("2e-3", 0), ("2e-3", 1)]:
        ours.add([row(arm, seed, 20, 0.3 + 0.01 * seed, **trained)])
    assert report.Results.load(tmp_path).arms == ["1e-3", "2e-3"]


def test_equal_scores_are_ties_whatever_their_rounding(tmp_path):
    ours = described(tmp_path, arms={"uniform": [], "coupled": []})
    for arm in ("uniform", "coupled"):
        trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.0", "well_formed": "1.0"}
        for seed in range(2):
            ours.add([row(arm, seed, 0, 0.1), row(arm, seed, 20, 0.0007 + 0.28 * seed, **trained)])
    assert cells_by_arm(report.Results.load(tmp_path))["coupled"][6] == "0.50"


def unfinished(folder, seeds, score, **changes):
    """Results of the seeds that each arm has so far."""
    ours = described(folder, **changes)
    trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.0", "well_formed": "1.0"}
    for arm, those in seeds.items():
        for seed in those:
            ours.add([row(arm, seed, 0, 0.2), row(arm, seed, 20, score(arm, seed), **trained)])
    return report.Results.load(folder)


def spread(arm, seed):
    return 0.3 + 0.01 * ARMS.index(arm) + (3 * seed + ARMS.index(arm)) % 5 / 100


def test_two_seeds_of_every_arm_are_reported(tmp_path):
    found = unfinished(tmp_path, dict.fromkeys(ARMS, (0, 1)), spread)
    told = report.contrasts(found)
    assert "- `anchor` against `shuffled_coupled`: " in told
    assert "2 pairs: **not distinguishable**. With 80% power " in told
    assert "nan" not in told + report.arms_table(found)


def test_contrasts_wait_for_two_seeds_that_both_arms_have(tmp_path):
    seeds = {"uniform": range(4), "coupled": (0, 1), "shuffled_coupled": (2, 3), "anchor": (1, 2, 3)}
    found = unfinished(tmp_path, seeds, spread)
    assert found.arms == list(ARMS)
    assert found.primary == [("coupled", "uniform")]
    assert found.secondary == [("anchor", "shuffled_coupled")]
    assert "- `coupled` against `shuffled_coupled`" not in report.contrasts(found)


def test_the_two_resampled_intervals_are_told_from_six_seeds_an_arm(tmp_path):
    few = cells_by_arm(unfinished(tmp_path / "few", dict.fromkeys(ARMS, range(5)), spread))
    assert ["[" in cell for cell in few["anchor"][1:7]] == [True, False, True, False, False, False]  # Student's alone
    enough = cells_by_arm(unfinished(tmp_path / "enough", dict.fromkeys(ARMS, range(6)), spread))
    assert ["[" in cell for cell in enough["anchor"][1:7]] == [True, True, True, False, False, True]


def test_where_no_spread_was_seen_nothing_is_sure(tmp_path):
    """Every seed gains a point: the intervals, p and the power are unknown rather than zero or NaN."""
    score = {"uniform": 0.30, "coupled": 0.31, "shuffled_coupled": 0.31, "anchor": 0.31}
    found = unfinished(tmp_path, dict.fromkeys(ARMS, range(6)), lambda arm, seed: score[arm])
    told = (
        "+1.0 points [unknown], p unknown, 6 pairs that all differ alike: **not distinguishable**. With 80% power an "
    )
    assert f"- `coupled` against `uniform`: {told}unknown difference would be found.\n" in report.contrasts(found)
    cells = cells_by_arm(found)["anchor"]
    assert cells[1:7] == ["31.0 [unknown]", "31.0", "+1.0 [unknown]", "unknown", "unknown", "1.00"]
    assert "nan" not in report.contrasts(found)
    for draw in (report.draw_curves, report.draw_forest):
        draw(found).savefig(tmp_path / "drawn.png")


def test_results_that_cannot_be_read_are_a_failure_of_that_run(tmp_path):
    ours = described(tmp_path)
    folder = (tmp_path / "uniform-0").resolve()
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    command = " ".join(["python train.py", *ours.common, *ours.arms["uniform"], "seed=0"])
    (folder / "config.yaml").write_text(f"command: {command}\n")
    with pytest.raises(RuntimeError, match=r"uniform-0: its results cannot be read: KeyError .*eval/pass@1"):
        study.run_once(ours, "uniform", 0, folder, threads=1, children=[])


@pytest.mark.parametrize(
    ("changes", "only", "message"),
    [
        ({"primary": [["coupled", "unifrom"]]}, None, "primary unifrom: .*study.yaml has no such arm"),
        ({"baseline": "unifrom"}, None, "baseline unifrom: .*study.yaml has no such arm"),
        ({}, ["steep"], "--arms steep: .*study.yaml has no such arm"),
        ({"arms": {arm: [] for arm in (*ARMS, "late")}}, ["late"], "--arms late: fewer than two seeds in common"),
    ],
)
def test_arms_that_are_not_there_are_named(planted, changes, only, message):
    described(planted.folder, **changes)
    with pytest.raises(ValueError, match=message):
        report.Results.load(planted.folder, only)


@pytest.mark.parametrize(("left", "missing"), [(["arms", "seeds"], "baseline"), (["baseline"], "arms"), ([], "arms")])
def test_a_study_without_a_baseline_or_arms_is_not_reported(planted, left, missing):
    named = yaml.safe_load((planted.folder / "study.yaml").read_text())
    (planted.folder / "study.yaml").write_text(yaml.safe_dump({name: named[name] for name in left}))
    with pytest.raises(ValueError, match=f"names no {missing}"):
        report.Results.load(planted.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((",grad_norm,", ",norm,"), "has no column grad_norm: study.py writes them"),
        (("anchor,3,40,", "anchor,3,40,much"), "not every pass@1 is a number"),
        (("anchor,3,40,", "anchor,3,30,"), "anchor, seed 3 has two rows of iteration 30"),
        (("anchor,3,0,", "anker,3,40,"), "has rows of anker, which study.yaml does not name"),
        (("anchor,3,0,", ",3,0,"), "line 101 lacks its credit, seed or iteration"),
        (("anchor,3,0,", "anchor,,0,"), "line 101 lacks its credit, seed or iteration"),
    ],
)
def test_rows_that_no_study_wrote_are_refused(planted, change, message):
    results = planted.folder / "results.csv"
    text = results.read_text()
    assert text.count(change[0]) == 1
    results.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=f"results.csv[:,]? {message}"):
        report.Results.load(planted.folder)


def test_arms_that_wait_for_their_seeds_are_named(tmp_path):
    found = unfinished(tmp_path, {"uniform": range(3), "coupled": range(3), "anchor": [7]}, spread)
    assert report.contrasts(found).splitlines()[-1].endswith("of p: `shuffled_coupled`, `anchor`.")
    more = unfinished(tmp_path, {"uniform": range(3, 6), "shuffled_coupled": (0, 1), "anchor": range(3, 6)}, spread)
    assert more.arms == list(ARMS)
    assert report.contrasts(more).splitlines()[-1].endswith("correction of p: `anchor` against `shuffled_coupled`.")
    whole = unfinished(tmp_path, {"anchor": range(3)}, spread)
    assert "Not compared yet" not in report.contrasts(whole)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows yet: python experiments/study.py"),
        ([("uniform", 0, 20)], "no arm has two seeds in common with uniform yet"),
        ([("coupled", 0, 20), ("coupled", 1, 20)], "no arm has two seeds in common with uniform yet"),
        ([(arm, seed, 20) for arm, seed in zip(ARMS * 2, range(8), strict=True)], "no arm has two seeds in common"),
        ([("uniform", 0, 20), ("uniform", 1, 10)], "uniform, seed 1 ends at iteration 10, others at 20"),
    ],
)
def test_what_cannot_be_compared_yet_is_one_line(tmp_path, rows, message, monkeypatch, capsys):
    ours = described(tmp_path)
    ours.results.touch()
    for arm, seed, iteration in rows:
        ours.add([row(arm, seed, iteration, 0.2)])
    with pytest.raises(SystemExit, match="2"):
        reported(monkeypatch, tmp_path)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_lowest_panel_of_each_column_has_its_iterations(tmp_path):
    arms = [f"arm_{i}" for i in range(7)]
    ours = described(tmp_path, arms={arm: [] for arm in arms}, baseline="arm_0")
    for arm in arms:
        ours.add([row(arm, seed, iteration, 0.2 + seed / 10) for seed in (0, 1) for iteration in (0, 20)])
    figure = report.draw_curves(report.Results.load(tmp_path))
    labelled = {axis.get_title(): axis.xaxis.get_tick_params()["labelbottom"] for axis in figure.axes[:7]}
    assert labelled == {arm: arm not in ("arm_0", "arm_1") for arm in arms}


def test_the_figures_are_drawn_small(planted, monkeypatch):
    reported(monkeypatch, planted.folder)
    for name in ("curves.png", "forest.png"):
        assert 5_000 < (planted.folder / name).stat().st_size < 300_000


@pytest.mark.parametrize("path", sorted((study.ROOT / "experiments").glob("*/study.yaml")), ids=lambda p: p.parent.name)
def test_every_arm_of_a_study_composes(path):
    ours = study.Study.load(path.parent)
    with initialize_config_dir(str(study.ROOT / "configs"), version_base="1.3"):
        for overrides in ours.arms.values():
            assert "credit" in compose("train", [*ours.common, *overrides])
    content = yaml.safe_load(path.read_text())
    contrasts = content.get("primary", []) + content.get("secondary", [])
    assert {arm for pair in contrasts for arm in pair} <= set(ours.arms)
    assert content.get("baseline", next(iter(ours.arms))) in ours.arms


def test_the_ablations_start_from_runs_of_the_comparison():
    ablations, comparison = (
        study.Study.load(study.ROOT / "experiments" / name) for name in ("ablations", "credit_comparison")
    )
    for seed in ablations.seeds:
        assert ablations.command("coupled", seed, Path("run")) == comparison.command("coupled", seed, Path("run"))
    rows = [row for row in comparison.rows() if row["credit"] == "coupled" and int(row["seed"]) in ablations.seeds]
    assert [row for row in ablations.rows() if row["credit"] == "coupled"] == rows
