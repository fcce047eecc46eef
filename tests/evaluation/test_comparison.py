from math import nan

import numpy as np
import pytest
from scipy import stats

from rhythm.evaluation import comparison
from rhythm.evaluation.comparison import (
    ENOUGH,
    brackets,
    compare,
    corrected,
    holm,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_p,
    smallest_difference,
    student_p,
)


def test_a_few_seeds_far_apart_can_be_told_apart_by_student():
    assert student_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.0742, abs=1e-4)  # t = 2√3 of 2 degrees of freedom
    assert student_p(np.zeros(3)) == 1.0
    assert np.isnan(student_p(np.array([0.5 - 0.4, 0.3 - 0.2])))  # alike but for rounding
    ours, theirs = np.array([0.50, 0.52, 0.51]), np.array([0.20, 0.21, 0.20])
    assert not compare(ours, theirs).distinguishable  # 2 of 8 signs
    seen = compare(ours, theirs, student=True)
    assert seen.distinguishable
    assert seen.low > 0


def test_pairs_that_all_differ_alike_are_told_nothing_by_student():
    seen = compare([0.3, 0.5], [0.2, 0.4], student=True)
    assert seen.difference == pytest.approx(0.1)
    assert np.isnan([seen.low, seen.high, seen.p]).all()
    assert str(seen) == "+0.1000 [unknown], p unknown, 2 pairs that all differ alike: not distinguishable"
    same = compare([0.3, 0.5], [0.3, 0.5], student=True)
    assert np.isnan([same.low, same.high]).all()
    assert str(same) == "+0.0000 [unknown], p = 1.000, 2 pairs that are all equal: not distinguishable"


def test_resampling_pairs_that_all_differ_alike_tells_no_interval_either():
    seen = compare(np.arange(10) + 0.1, np.arange(10.0))
    assert np.isnan([seen.low, seen.high]).all()
    assert str(seen) == "+0.1000 [unknown], p = 0.002, 10 pairs that all differ alike"  # 2 of 2¹⁰ signs


def test_the_signs_of_pairs_give_p_by_hand():
    # Of the 8 ways to sign 1, 2, 3, sums of 6 and −6 are as far from 0 as what was seen; all but ±0 are for 1, 2, −3.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert sign_flip_p(np.array([1.0, 2.0, -3.0])) == pytest.approx(1.0)
    assert sign_flip_p(np.ones(10)) == pytest.approx(2 / 1024)
    assert sign_flip_p(np.zeros(10)) == 1.0


def test_improvement_counts_pairs_and_halves_ties():
    assert probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)
    assert probability_of_improvement(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5
    draw = np.random.default_rng(0)
    ours, theirs = draw.integers(5, size=9).astype(float), draw.integers(5, size=7).astype(float)
    by_rank = stats.mannwhitneyu(ours, theirs).statistic / 63
    assert probability_of_improvement(ours, theirs) == pytest.approx(by_rank)


@pytest.mark.parametrize("runs", [ENOUGH, 10, 20])
def test_resampled_intervals_cover_the_truth_about_as_often_as_they_say(runs, monkeypatch):
    """Normal scores one standard deviation apart improve with probability Φ(1/√2)."""
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)
    truth = {"improvement": stats.norm.cdf(0.5**0.5), "mean": 0.0}
    draw = np.random.default_rng(0)
    covered = {name: [] for name in truth}
    for trial in range(300):
        ours, theirs = draw.normal(1, 1, runs), draw.normal(0, 1, runs)
        found = {
            "improvement": improvement_interval(ours, theirs, seed=trial),
            "mean": interquartile_interval(theirs, seed=trial),
        }
        for name, (low, high) in found.items():
            if not np.isnan(low):
                covered[name].append(low <= truth[name] <= high)
    for inside in covered.values():
        assert len(inside) > 0.9 * 300
        assert 0.88 <= np.mean(inside) <= 0.98


def test_a_few_runs_resampled_tell_no_interval():
    """Of two runs an arm every other interval of P(better) would miss."""
    few, enough = np.arange(ENOUGH - 1.0), np.arange(float(ENOUGH))
    for low, high in (
        improvement_interval(few, enough),
        improvement_interval(enough, few),
        interquartile_interval(few),
    ):
        assert np.isnan([low, high]).all()
    for low, high in (improvement_interval(enough, enough), interquartile_interval(enough)):
        assert low < high
    apart, alike = improvement_interval(enough + 100, enough), interquartile_interval(np.ones(ENOUGH))
    assert np.isnan([*apart, *alike]).all()  # every draw says the same


def test_an_interval_that_is_not_known_is_a_word():
    assert brackets((0.25, 0.5), ".2f") == "[0.25, 0.50]"
    assert brackets((nan, nan), ".2f") == "[unknown]"
    assert brackets((nan, nan), ".2f", unknown="") == ""


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -100]) == pytest.approx(3.5)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.6 times 4, 3, 2, 1; never less than the one before, never above 1.
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([float("nan"), 0.01]) == pytest.approx([float("nan"), 0.02], nan_ok=True)


def test_pairs_see_a_difference_that_their_common_spread_hides():
    draw = np.random.default_rng(0)
    theirs = draw.normal(size=10)
    seen = compare(theirs + 0.1 + 0.05 * draw.normal(size=10), theirs)
    assert seen.low < 0.1 < seen.high
    assert seen.distinguishable
    assert "not distinguishable" not in str(seen)
    alone = compare(draw.normal(size=10) + 0.1, theirs)
    assert not alone.distinguishable
    assert str(alone).endswith("10 pairs: not distinguishable")


def test_a_comparison_turned_around_changes_its_sign_alone():
    draw = np.random.default_rng(0)
    ours, theirs = draw.random((2, 60))
    one, other = compare(ours, theirs), compare(theirs, ours)
    assert one.difference == pytest.approx((ours - theirs).mean()) == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.01)
    assert one.spread == pytest.approx(other.spread) == pytest.approx((ours - theirs).std(ddof=1))
    assert one.p == pytest.approx(other.p, abs=0.02)


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="the same problems and seeds"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="the same problems and seeds"):
        compare([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="at least two"):
        compare([1], [2])


def test_the_smallest_difference_is_found_as_often_as_it_says():
    difference = smallest_difference(spread=2.0, pairs=10)
    assert difference == pytest.approx(2.0 * 0.996, rel=0.01)  # d = 0.996 for n = 10: Cohen 1988's table
    samples = np.random.default_rng(0).normal(difference, 2.0, size=(4000, 10))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(10))
    assert np.mean(np.abs(t) > 2.262) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
@pytest.mark.parametrize("family", [2, 13, 40])
def test_the_smallest_difference_of_a_family_is_known_for_any_number_of_pairs(pairs, family):
    difference = smallest_difference(1.0, pairs, level=0.05 / family)
    critical = stats.t.ppf(1 - 0.025 / family, pairs - 1)
    samples = np.random.default_rng(0).normal(difference, 1.0, size=(20_000, pairs))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(pairs))
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.02)


def test_what_would_be_found_is_not_known_where_pairs_do_not_spread():
    assert np.isnan(smallest_difference(0.0, 5))
    assert np.isnan(smallest_difference(1e-15, 5))


@pytest.mark.parametrize("pairs", [2, 3, 4, 50])
def test_the_smallest_difference_is_known_for_any_number_of_pairs(pairs):
    difference, critical = smallest_difference(1.0, pairs), stats.t.ppf(0.975, pairs - 1)
    samples = np.random.default_rng(0).normal(difference, 1.0, size=(20_000, pairs))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(pairs))
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.02)


def test_a_family_of_comparisons_is_corrected_by_holm_and_keeps_its_intervals():
    draw = np.random.default_rng(3)
    theirs = draw.normal(size=12)
    family = [compare(theirs + gain + draw.normal(0, 0.3, 12), theirs, student=True) for gain in (0.15, 1.0, 0.0)]
    found = corrected(family)
    assert [each.p for each in found] == holm([each.p for each in family])
    assert [(each.low, each.high) for each in found] == [(each.low, each.high) for each in family]
    assert [each.distinguishable for each in family] == [True, True, False]
    assert [each.distinguishable for each in found] == [False, True, False]
    assert corrected(family[:1]) == family[:1]  # one is no family
    assert corrected([]) == []
