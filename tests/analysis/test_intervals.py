import math

import numpy as np
import pytest

from rhythm.analysis.intervals import bootstrap, mean_interval, permutation_p, share_interval


def test_the_bootstrap_resamples_units_and_not_what_they_hold():
    """Ten responses of a hundred equal tokens say as much as ten numbers."""
    values = np.random.default_rng(0).normal(size=10)
    sums = np.stack([values * 100, np.full(10, 100.0)], 1)
    low, high = bootstrap(sums, lambda total: total[:, 0] / total[:, 1])
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(10), rel=0.15)
    assert (low, high) == pytest.approx(mean_interval(values), abs=0.05)  # other draws


def test_what_is_undefined_has_no_interval():
    assert all(map(math.isnan, mean_interval([1.0])))
    assert all(map(math.isnan, mean_interval([math.nan] * 5)))
    assert all(map(math.isnan, share_interval(0, 0)))
    assert math.isnan(permutation_p(math.nan, [1.0]))


def test_wilsons_interval_by_hand():
    # (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) for 61 of 70: the paper's 0.8714
    assert share_interval(61, 70) == pytest.approx((0.7734, 0.9309), abs=2e-4)


def test_the_p_value_counts_the_observed_one():
    null = np.arange(99.0)
    assert permutation_p(1000.0, null) == pytest.approx(2 / 100)
    assert permutation_p(-1.0, null) == pytest.approx(2 / 100)
    assert permutation_p(49.0, null) == 1.0
