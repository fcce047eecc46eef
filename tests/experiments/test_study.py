import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from experiments import study
from rhythm.evaluation.studies import FIELDS, Study
from tests.studies import described, row


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
    assert all(rows[-1][name] for name in FIELDS)
    assert "0 runs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours.add([r | ({"grad_norm": "7.0000"} if r["iteration"] == "1" else {}) for r in rows])
    again = subprocess.run([*command, "--again"], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("1 numbers differ: ")
    assert "grad_norm was 7.0000" in again.stdout
    ours.results.unlink()  # the folders of finished runs still tell their rows
    subprocess.run(command, capture_output=True, text=True, check=True)
    told = [{name: r[name] for name in FIELDS if name != "peak_mb"} for r in (*rows, *ours.rows())]
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
    assert done.returncode == 1
    assert done.stderr == f"error: {theirs}, rows of steep: {ours.folder / 'study.yaml'} has no such arm\n"


def test_results_that_cannot_be_read_are_a_failure_of_that_run(tmp_path):
    ours = described(tmp_path)
    folder = (tmp_path / "uniform-0").resolve()
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    command = " ".join(["python train.py", *ours.common, *ours.arms["uniform"], "seed=0"])
    (folder / "config.yaml").write_text(f"command: {command}\n")
    with pytest.raises(RuntimeError, match=r"uniform-0: its results cannot be read: KeyError .*eval/pass@1"):
        study.run_once(ours, "uniform", 0, folder, threads=1, children=[])


@pytest.mark.parametrize("path", sorted((study.ROOT / "experiments").glob("*/study.yaml")), ids=lambda p: p.parent.name)
def test_every_arm_of_a_study_composes(path):
    ours = Study.load(path.parent)
    with initialize_config_dir(str(study.ROOT / "configs"), version_base="1.3"):
        for overrides in ours.arms.values():
            assert "credit" in compose("train", [*ours.common, *overrides])
    content = yaml.safe_load(path.read_text())
    contrasts = content.get("primary", []) + content.get("secondary", [])
    assert {arm for pair in contrasts for arm in pair} <= set(ours.arms)
    assert content.get("baseline", next(iter(ours.arms))) in ours.arms


def test_the_ablations_start_from_runs_of_the_comparison():
    ablations, comparison = (
        Study.load(study.ROOT / "experiments" / name) for name in ("ablations", "credit_comparison")
    )
    for seed in ablations.seeds:
        commands = [study.command_of(each, "coupled", seed, Path("run")) for each in (ablations, comparison)]
        assert commands[0] == commands[1]
    rows = [row for row in comparison.rows() if row["credit"] == "coupled" and int(row["seed"]) in ablations.seeds]
    assert [row for row in ablations.rows() if row["credit"] == "coupled"] == rows
