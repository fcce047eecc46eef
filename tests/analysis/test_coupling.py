import math

import numpy as np
import pytest
import torch
from torch import nan, tensor

from rhythm.analysis.coupling import (
    Lift,
    at_or_just_after,
    could_peak,
    entropy_at_waad_peaks,
    moved,
    overlap,
    peaks,
)


def marks(*columns, length=8):
    return tensor([[column in columns for column in range(length)]])


def test_peaks_are_local_maxima_that_stand_out():
    values = tensor([[nan, 0.0, 4.0, 1.0, 1.2, 1.0, 3.0, 0.0]])
    everything = torch.ones(1, 8, dtype=torch.bool)
    assert peaks(values, everything, prominence=0.0).equal(marks(2, 4, 6))
    assert peaks(values, everything, prominence=0.5).equal(marks(2, 6))  # 1.2 stands 0.2 above its valleys
    # 3 stands 2 above the valley towards 4; the standard deviation of the seven is 1.39.
    assert peaks(values, everything, prominence=1.6).equal(marks(2))


def test_peaks_are_found_within_the_mask_row_by_row():
    values = tensor([[0.0, 5.0, 0.0, 1.0, 0.0, 9.0], [0.0, 1.0, 0.0, 5.0, 4.0, 3.0], [1.0] * 6])
    mask = tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [1] * 6]).bool()
    expected = tensor([[0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0] * 6]).bool()
    assert peaks(values, mask, prominence=0.1).equal(expected)
    assert not peaks(values[:, :2], mask[:, :2]).any()  # an end is no peak


def test_entropy_at_waad_peaks():
    entropy = tensor([[1.0, 3.0, 2.0, 2.0, nan]])
    mask = tensor([[True, True, True, True, False]])
    found = entropy_at_waad_peaks(entropy, tensor([[False, True, True, False, False]]), mask)
    assert (found.observed, found.expected) == (2.5, 2.0)
    assert found.lift == pytest.approx(0.25)


def test_overlap_of_peaks():
    found = overlap(marks(1, 4), marks(1, 2), marks(*range(6)))
    assert (found.observed, found.expected) == (0.5, pytest.approx(2 / 6))


def test_followers_at_or_just_after_a_leader():
    leaders = torch.cat([marks(2), marks(0, 3)])
    followers = torch.cat([marks(3, 6), marks(1)])
    eligible = torch.cat([marks(*range(8)), marks(1, 2, 3)])
    found = at_or_just_after(followers, leaders, eligible)
    assert found.observed == pytest.approx(2 / 3)  # 3 is behind 2, 6 behind nothing, 1 behind 0
    # In the first row 2 of 8 tokens are near, drawn twice; in the second 1 and 3 of 3, drawn once.
    assert found.expected == pytest.approx((2 * 2 / 8 + 2 / 3) / 3)


def test_the_expectation_is_that_of_shuffles():
    draw = torch.Generator().manual_seed(0)
    leaders, followers = (torch.rand(3, 40, generator=draw) < share for share in (0.2, 0.3))
    eligible = torch.ones(3, 40, dtype=torch.bool)
    eligible[1, 25:] = False
    found = at_or_just_after(followers, leaders, eligible)
    shuffled = []
    for _ in range(4000):
        moved = torch.zeros_like(followers)
        for row in range(3):
            places = eligible[row].nonzero()[:, 0]
            count = int((followers & eligible)[row].sum())
            moved[row, places[torch.randperm(len(places), generator=draw)[:count]]] = True
        shuffled.append(at_or_just_after(moved, leaders, eligible).observed)
    assert sum(shuffled) / len(shuffled) == pytest.approx(found.expected, abs=0.01)


def test_nothing_expected_is_no_lift():
    nothing = torch.zeros(1, 8, dtype=torch.bool)
    assert math.isnan(at_or_just_after(nothing, nothing, marks(1)).lift)
    assert math.isnan(overlap(nothing, nothing, marks(1)).lift)


def test_only_inner_defined_tokens_could_peak():
    values = tensor([[nan, 1.0, 2.0, nan, 1.0, 2.0, 3.0, 4.0]])
    assert could_peak(values, marks(*range(7))).equal(marks(5))


def test_moved_marks_leave_the_row_at_its_ends():
    assert moved(marks(0, 6, 7), 1).equal(marks(1, 7))
    assert moved(marks(0, 1, 7), -1).equal(marks(0, 6))
    assert moved(marks(0, 7), 0).equal(marks(0, 7))


def test_offsets_part_what_stands_at_a_leader_from_what_stands_behind():
    leaders, followers = marks(2, 5), marks(2, 6, 7)
    for offset, share in {-1: 0.0, 0: 1 / 3, 1: 1 / 3, 2: 1 / 3}.items():
        found = at_or_just_after(followers, leaders, marks(*range(8)), (offset,))
        assert found.observed == pytest.approx(share), offset


def planted(effect, seed=0):
    """60 responses of 40 tokens, marks at random, values higher by `effect` at marks."""
    draw = torch.Generator().manual_seed(seed)
    marked = torch.rand(60, 40, generator=draw) < 0.2
    everything = torch.ones_like(marked)
    return Lift(torch.rand(60, 40, generator=draw) + effect * marked, marked, everything, over=everything)


@pytest.mark.parametrize("null", ["shuffle", "rotate"])
def test_thrown_marks_find_an_effect_that_is_there_and_none_that_is_not(null):
    found = planted(1.0).summary(resamples=400, null=null)
    assert found["p"] == pytest.approx(2 / 401)
    assert found["observed"] > 1.4 > found["shuffled"]["interval"][1]
    low, high = found["interval"]
    assert 0.8 < low < found["lift"] < high < 1.4
    p = [planted(0.0, seed).summary(resamples=200, null=null)["p"] for seed in range(12)]
    assert min(p) > 0.004  # of 12 even ones the least is below this with a chance of 5%
    assert 0.2 < np.mean(p) < 0.85


def test_thrown_marks_keep_their_number_and_stay_among_the_eligible():
    values = torch.arange(8.0)[None]
    found = Lift(values, marks(6, 7), marks(4, 5, 6, 7))
    assert found.expected == pytest.approx(5.5)  # the mean of 4 .. 7, whatever stands before
    thrown = found.shuffled(draws=3000)
    assert set(thrown.tolist()) == {4.5, 5.0, 5.5, 6.0, 6.5}
    assert thrown.mean() == pytest.approx(5.5, abs=0.05)
    assert set(found.shuffled(draws=300, null="rotate").tolist()) == {4.5, 5.5, 6.5}  # neighbours, around the end
    with pytest.raises(ValueError, match="null='flip': use one of shuffle, rotate"):
        found.shuffled(null="flip")
