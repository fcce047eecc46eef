import itertools
import math

import pytest
import torch

from rhythm.evaluation.metrics import PassAtK, bootstrap_interval, pass_at_k, student_interval

CORRECT = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pass_at_k_is_the_share_of_subsets_of_k_with_a_right_answer(k):
    subsets = list(itertools.combinations(range(5), k))
    expected = [sum(any(row[i] for i in subset) for subset in subsets) / len(subsets) for row in CORRECT.tolist()]
    got = pass_at_k(CORRECT, k)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    assert pass_at_k(CORRECT.bool(), k).tolist() == got.tolist()


def test_pass_at_k_holds_for_more_samples_than_binomials_fit_in_a_float():
    correct = torch.arange(2000)[None] < 1
    assert pass_at_k(correct, 1000).item() == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_of_fewer_samples_than_k_is_refused(k):
    with pytest.raises(ValueError, match=rf"pass@{k} needs at least {k} samples of a problem, not 5"):
        pass_at_k(CORRECT, k)
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        PassAtK(k).update(CORRECT)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = torch.Generator().manual_seed(0)
    covered = {0.95: 0, 0.5: 0}
    for trial in range(300):
        chances = torch.rand(50, generator=draw) ** 2  # their mean is 1/3
        values = (torch.rand(50, 4, generator=draw) < chances[:, None]).double().mean(1)
        for level in covered:
            low, high = bootstrap_interval(values, level, resamples=300, seed=trial)
            covered[level] += low <= 1 / 3 <= high
    assert 0.90 <= covered[0.95] / 300 <= 0.985
    assert 0.42 <= covered[0.5] / 300 <= 0.58


def test_the_interval_is_around_the_mean_and_the_same_every_time():
    values = pass_at_k(CORRECT, 1).repeat(20)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.ones(7)) == (1.0, 1.0)


def test_the_interval_of_a_few_seeds_by_hand():
    # Mean 2 and standard error 1/√3 of 1, 2, 3; t of 2 degrees of freedom leaves 2.5% above 4.3027.
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    for alone in ([0.5], [0.5, 0.5], [0.5 - 0.4, 0.3 - 0.2]):  # one, alike, alike but for rounding: no spread is seen
        assert all(map(math.isnan, student_interval(alone)))


def test_the_metric_accumulates_problems():
    metric = PassAtK(2)
    metric.update(CORRECT[:2])
    metric.update(CORRECT[2:])
    expected = pass_at_k(CORRECT, 2)
    assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=1e-12)
    assert metric.interval() == bootstrap_interval(expected)
    metric.reset()
    metric.update(CORRECT[4:])
    assert metric.compute() == 1.0


def test_where_nothing_or_everything_is_solved_other_problems_may_differ():
    """A share θ of problems shows itself in none of 30 with probability (1 − θ)³⁰, which is 2.5% at the bound."""
    for right in (False, True):
        metric = PassAtK(2)
        metric.update(torch.full((30, 4), right))
        low, high = metric.interval()
        assert (low, high) == pytest.approx((1 - 0.1157, 1.0) if right else (0.0, 0.1157), abs=1e-4)
        assert pytest.approx((low if right else 1 - high) ** 30) == 0.025
