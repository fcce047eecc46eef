import subprocess
import sys

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from experiments import report, study

ARMS = ("uniform", "coupled", "shuffled_coupled", "anchor")


def described(folder, **changes):
    """A folder with a study.yaml."""
    folder.mkdir(exist_ok=True)
    content = {
        "arms": {arm: [f"experiment={arm}"] for arm in ARMS},
        "seeds": [0, 1],
        "baseline": "uniform",
        "primary": [["coupled", "uniform"], ["coupled", "shuffled_coupled"]],
    }
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
    assert again.stderr.strip() == "1 numbers differ"
    assert "grad_norm was 7.0000" in again.stdout


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
            trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.2"}
            ours.add(
                [row(arm, seed, 0, 0.25), row(arm, seed, 20, 0.3, **trained), row(arm, seed, 40, final, **trained)]
            )
    return report.Results.load(tmp_path)


def test_a_planted_gain_is_found_and_an_absent_one_is_not(planted):
    primary = report.contrasts(planted).splitlines()
    assert primary[0].startswith("- `coupled` against `uniform`: +")
    assert float(primary[0].split(": +")[1].split()[0]) == pytest.approx(5, abs=0.6)
    assert primary[0].endswith("**distinguishable**")
    assert "`shuffled_coupled`" in primary[1]
    assert primary[1].endswith("**not distinguishable**")
    # 0.05 a seed is 5 points; without pairing two such arms differ by √2 of it, and ten of them see 0.996 of that.
    assert primary[2].startswith("- Power: 10 seeds of `uniform` spread by ")
    spread, seen = (float(primary[2].split(mark)[1].split()[0]) for mark in ("spread by ", "help each other, "))
    assert seen == pytest.approx(2**0.5 * spread * 0.996, abs=0.06)


def test_the_table_has_a_line_an_arm_and_holm_over_what_is_not_primary(planted):
    lines = report.arms_table(planted).splitlines()[2:]
    cells = {line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert list(cells) == list(ARMS)
    assert cells["uniform"][3:6] == ["", "", ""]
    assert cells["coupled"][4] == "primary"
    one, other = (planted.compare(arm, "uniform").p for arm in ("shuffled_coupled", "anchor"))
    assert one < 0.01 < other
    assert cells["shuffled_coupled"][4] == f"{2 * one:.3f}"
    assert cells["anchor"][4] == f"{other:.3f}"
    assert float(cells["coupled"][5]) > float(cells["anchor"][5])
    assert cells["anchor"][6:] == ["0.500", "1.200"]


def test_an_arm_may_be_called_like_a_number(tmp_path):
    ours = described(tmp_path, arms={"1e-3": [], "2e-3": []}, baseline="2e-3", primary=[])
    trained = {"grad_norm": "0.5", "credit_entropy_weighted": "1.0"}
    for arm, seed in [("1e-3", 0), ("1e-3", 1), ("2e-3", 0), ("2e-3", 1)]:
        ours.add([row(arm, seed, 20, 0.3 + 0.01 * seed, **trained)])
    assert report.Results.load(tmp_path).arms == ["1e-3", "2e-3"]


def test_a_study_without_a_baseline_is_not_reported(planted):
    named = yaml.safe_load((planted.folder / "study.yaml").read_text())
    (planted.folder / "study.yaml").write_text(yaml.safe_dump({"arms": named["arms"], "seeds": [0]}))
    with pytest.raises(ValueError, match="names no baseline"):
        report.Results.load(planted.folder)


def test_the_figures_are_drawn_small(planted):
    report.draw_curves(planted, planted.folder / "curves.png")
    report.draw_forest(planted, planted.folder / "forest.png")
    for name in ("curves.png", "forest.png"):
        assert 5_000 < (planted.folder / name).stat().st_size < 300_000


@pytest.mark.parametrize("path", sorted((study.ROOT / "experiments").glob("*/study.yaml")), ids=lambda p: p.parent.name)
def test_every_arm_of_a_study_composes(path):
    ours = study.Study.load(path.parent)
    with initialize_config_dir(str(study.ROOT / "configs"), version_base="1.3"):
        for overrides in ours.arms.values():
            assert "credit" in compose("train", [*ours.common, *overrides])
    content = yaml.safe_load(path.read_text())
    assert {arm for pair in content.get("primary", []) for arm in pair} <= set(ours.arms)
    assert content.get("baseline", next(iter(ours.arms))) in ours.arms
