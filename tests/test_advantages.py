import math

import pytest
import torch
from torch import inf, nan

from rhythm.advantages import group_advantages, group_spread, shape_advantages


def test_std_divides_by_the_sample_standard_deviation():
    # The first group's mean is 0.25 and its sample standard deviation 0.5; the second's are 2 and 2.
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 4.0, 2.0, 2.0])
    expected = [0.75 / 0.5001] + [-0.25 / 0.5001] * 3 + [-2 / 1.63309, 2 / 1.63309, 0.0, 0.0]  # √(8/3) + 1e-4
    torch.testing.assert_close(group_advantages(rewards, 4), torch.tensor(expected), rtol=1e-5, atol=0)


def test_mean_only_subtracts_the_mean():
    got = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, "mean")
    assert got.tolist() == [0.75, -0.25, -0.25, -0.25]


def test_leave_one_out_subtracts_the_mean_of_the_others():
    got = group_advantages(torch.tensor([3.0, 0.0, 6.0, 1.0, 1.0, 4.0]), 3, "leave_one_out")
    assert got.tolist() == [0.0, -4.5, 4.5, -1.5, -1.5, 3.0]


@pytest.mark.parametrize("kind", ["std", "mean", "leave_one_out"])
def test_groups_with_equal_rewards_get_exact_zeros(kind):
    rewards = torch.tensor([0.1] * 7 + [1.0] * 6 + [0.0])  # the float32 mean of seven 0.1 need not be 0.1
    got = group_advantages(rewards, 7, kind)
    assert got[:7].tolist() == [0.0] * 7
    assert (got[7:] != 0).all()
    assert group_advantages(rewards, 1, kind).tolist() == [0.0] * 14


@pytest.mark.parametrize("kind", ["std", "mean", "leave_one_out"])
def test_a_reward_that_is_not_finite_is_as_if_its_sample_were_not_there(kind):
    rewards = torch.tensor([nan, 1.0, 0.0, 0.5, 2.0, -inf, 2.0, nan, 0.25, nan, nan, inf, nan, nan, nan, nan])
    got = group_advantages(rewards, 4, kind)
    close = torch.testing.assert_close
    close(got[1:4], group_advantages(rewards[1:4], 3, kind), rtol=1e-6, atol=0)
    assert got[0] == 0
    assert got[4:].tolist() == [0.0] * 12  # equal ones, one alone, none


def test_the_spread_of_a_group_is_that_of_its_finite_rewards():
    centred, std, count = group_spread(torch.tensor([[1.0, nan, 4.0, 1.0], [nan, 3.0, nan, inf], [nan] * 4]))
    assert centred.tolist() == [[-1.0, 0.0, 2.0, -1.0], [0.0] * 4, [0.0] * 4]
    assert std.flatten().tolist() == [pytest.approx(math.sqrt(3)), 0.0, 0.0]
    assert count.flatten().tolist() == [3, 1, 1]


def test_integer_rewards_are_rewards():
    assert group_advantages(torch.tensor([1, 0]), 2, "mean").tolist() == [0.5, -0.5]


def test_rewards_that_do_not_make_groups_are_refused():
    with pytest.raises(ValueError, match=r"rewards of shape \(5,\) do not make groups of 2"):
        group_advantages(torch.zeros(5), 2)
    with pytest.raises(ValueError, match="do not make groups of 0"):
        group_advantages(torch.zeros(4), 0)
    with pytest.raises(ValueError, match="do not make groups of 2"):
        group_advantages(torch.zeros(2, 2), 2)
    with pytest.raises(ValueError, match=r"kind must be one of .*, not 'median'"):
        group_advantages(torch.zeros(4), 2, "median")


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ("both", [[3.0, 2.0], [-1.5, -1.0], [0.0, 0.0]]),
        ("positive", [[3.0, 2.0], [-1.0, -1.0], [0.0, 0.0]]),
        ("negative", [[2.0, 2.0], [-1.5, -1.0], [0.0, 0.0]]),
    ],
)
def test_credit_scales_the_advantages_of_the_chosen_sign(sign, expected):
    advantages, credit = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([[1.5, 1.0]] * 3)
    assert shape_advantages(advantages, credit, sign).tolist() == expected


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_importance_weighs_advantages_of_either_sign(sign):
    advantages, credit = torch.tensor([2.0, -1.0]), torch.tensor([[1.5, 1.0]] * 2)
    importance = torch.tensor([[0.5, 2.0], [2.0, 1.0]])
    plain = shape_advantages(advantages, credit, sign)
    assert torch.equal(shape_advantages(advantages, credit, sign, importance), plain * importance)
    assert torch.equal(shape_advantages(advantages, credit, sign, torch.ones(2, 2)), plain)


def test_shapes_and_signs_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"advantages \(3,\) are not the \[N\] of credit \(2, 3\)"):
        shape_advantages(torch.zeros(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"sign must be one of .*, not 'plus'"):
        shape_advantages(torch.zeros(2), torch.ones(2, 3), "plus")
