import math

import pytest
import torch

from rhythm.analysis.overlap import agreement, agreement_by_chance, jaccard, jaccard_by_chance


def test_jaccard_by_hand():
    assert jaccard({"1", "2"}, {"2", "3"}) == pytest.approx(1 / 3)
    assert jaccard([(0, 1), (0, 2)], [(0, 2), (1, 1), (1, 2)]) == pytest.approx(1 / 4)
    assert jaccard([], []) is None
    assert jaccard(["1"], []) == 0.0


def test_what_two_sets_have_in_common_by_chance():
    # One and one of four things are the same with probability 1/4. Of three, two and two are so with 1/3, or share one.
    assert jaccard_by_chance(1, 1, 4) == pytest.approx(1 / 4)
    assert jaccard_by_chance(2, 2, 3) == pytest.approx(1 / 3 * 1 + 2 / 3 * (1 / 3))
    assert jaccard_by_chance(3, 3, 3) == 1.0
    assert math.isnan(jaccard_by_chance(0, 0, 5))


def test_choices_of_tokens_are_compared_row_by_row():
    chosen = torch.tensor([[True, True, False, True], [False] * 4])
    other = torch.tensor([[True, True, True, False], [False] * 4])
    assert agreement(chosen, other).nan_to_num(-1).tolist() == [pytest.approx(2 / 4), -1]
    one = torch.tensor([[True, False, False, False], [True, True, False, False]])
    eligible = torch.tensor([[True] * 4, [True, True, True, False]])
    assert agreement_by_chance(one, eligible).tolist() == pytest.approx([1 / 4, 1 / 3 + 2 / 9])
