import subprocess
import sys

import pytest

from experiments import study
from rhythm.evaluation.studies import Study
from tests.studies import described, row


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
    with pytest.raises(ValueError, match=r"theirs/results.csv: uniform, seed 0 has other rows than in .*ours/res"):
        ours.merge(theirs.results)
    assert ours.results.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,seed,iteration\nuniform,0,0\n", "has no column credit: it is no results.csv"),
        ("credit,seed,iteration,reward_std\nuniform,0,0,1\n", "has columns that study.py does not write: reward_std"),
        (
            "credit,seed,iteration\nuniform,0,0\nuniform,one,0\n",
            "line 3 has no arm, or a seed or it",
        ),
        (
            "credit,seed,iteration\nuniform,0,0\nuniform,0,\n",
            "line 3 has no arm, or a seed or it",
        ),
        ("credit,seed,iteration\n,0,0\n", "line 2 has no arm"),
        ("credit,seed,iteration\nsteep,0,0\n", "rows of steep: .*study.yaml has no such arm"),
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
    with pytest.raises(ValueError, match=rf"theirs\.csv,? {message}"):
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
    with pytest.raises(ValueError, match=f"study.yaml: give `{what}`, "):
        Study.load(tmp_path)
