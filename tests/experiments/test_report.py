import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import report
from rhythm.evaluation.comparison import holm, smallest_difference
from rhythm.evaluation.studies import Study
from tests.studies import ARMS, describe, described, row


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
    ours = Study.load(planted.folder)
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
    ours = described(tmp_path, arms={"uniform": [], "coupled": []}, baseline="uniform")
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
    describe(planted.folder, **{"baseline": "uniform"} | changes)
    with pytest.raises(ValueError, match=message):
        report.Results.load(planted.folder, only)


def test_a_study_without_a_baseline_is_not_reported(planted):
    describe(planted.folder, arms={arm: [] for arm in ARMS})
    with pytest.raises(ValueError, match="names no baseline"):
        report.Results.load(planted.folder)


def test_columns_that_are_not_there_or_no_numbers_are_refused(planted):
    results = planted.folder / "results.csv"
    rows = pd.read_csv(results)
    rows.drop(columns="grad_norm").to_csv(results, index=False)
    with pytest.raises(ValueError, match=r"results.csv has no column grad_norm: study.py writes them"):
        report.Results.load(planted.folder)
    rows.astype({"pass@1": str}).replace({"pass@1": {"0.25": "much"}}).to_csv(results, index=False)
    with pytest.raises(ValueError, match=r"results.csv: not every pass@1 is a number"):
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
