"""Each strategy on numbers that can be worked out by hand."""

import math

import pytest
import torch

from rhythm.credit import (
    AnchorCredit,
    CoupledCredit,
    EntropyCredit,
    MeanMatchedCredit,
    PreplanCredit,
    RandomCredit,
    ShuffledCredit,
    UniformCredit,
)
from rhythm.credit.coupled import row_quantile
from rhythm.types import AttentionSignals

nan = math.nan

# Six tokens have an FAI, so q = 0.4 makes three anchors: tokens 1, 3 and 5. The median WAAD is 5.5. The seven drops in
# order are 1 1 3 3 4 4 5, their 0.6 quantile lies at rank 3.6: 3.6. Anchor 1 looks back on a drop of 3 only; anchor 3
# looks near (2 ≤ 5.5) and back on the drop of 5 at token 1, so it is dominated; anchor 5 looks far (9).
FAI = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, nan, nan]
WAAD = [4.0, 1.0, 6.0, 2.0, 5.0, 9.0, 8.0, 7.0]
DROP = [3.0, 5.0, 4.0, 3.0, 4.0, 1.0, 1.0, nan]


def signals(fai=FAI, waad=WAAD, drop=DROP, entropy=None):
    optional = None if entropy is None else torch.tensor([entropy])
    return AttentionSignals(
        fai=torch.tensor([fai]), waad=torch.tensor([waad]), waad_drop=torch.tensor([drop]), entropy=optional
    )


def credit(strategy, given=None, **keywords):
    given = given or signals()
    return strategy(given, torch.ones(given.fai.shape, dtype=torch.bool), **keywords)[0].tolist()


def test_uniform_credit_is_one_everywhere():
    assert credit(UniformCredit()) == [1] * 8


def test_entropy_credit_amplifies_the_least_certain_tokens():
    given = signals(entropy=[0.3, 0.1, 2.0, 0.0, 0.3, 0.2, 0.0, 0.1])
    assert credit(EntropyCredit(top_fraction=0.25), given) == [1.5, 1, 1.5, 1, 1, 1, 1, 1]
    assert credit(EntropyCredit(top_fraction=0.25, select="bottom"), given) == [1, 1, 1, 1.5, 1, 1, 1.5, 1]


def test_preplan_credit_amplifies_the_largest_drops():
    assert credit(PreplanCredit()) == [1, 1.5, 1.5, 1, 1.5, 1, 1, 1]  # ⌈0.4·7⌉ = 3
    assert credit(PreplanCredit(select="bottom", amplification=2)) == [2, 1, 1, 1, 1, 2, 2, 1]


def test_anchor_credit_amplifies_the_largest_influence():
    assert credit(AnchorCredit()) == [1, 1.5, 1, 1.5, 1, 1.5, 1, 1]  # ⌈0.4·6⌉ = 3
    assert credit(AnchorCredit(select="bottom", amplification=0)) == [0, 1, 0, 1, 0, 1, 1, 1]


# ---- coupled


def test_a_dominated_anchor_shares_its_bonus_with_its_introduction():
    # Token 1 is an anchor (+0.5) and introduces anchor 3 (+0.25), which keeps the other half.
    assert credit(CoupledCredit()) == [1, 1.75, 1, 1.25, 1, 1.5, 1, 1]


@pytest.mark.parametrize(("alpha", "token_1", "token_3"), [(0.0, 1.5, 1.5), (0.25, 1.625, 1.375), (1.0, 2.0, 1.0)])
def test_back_allocation_is_the_share_passed_back(alpha, token_1, token_3):
    assert credit(CoupledCredit(back_allocation=alpha)) == [1, token_1, 1, token_3, 1, 1.5, 1, 1]


def test_lookback_one_introduces_by_the_token_right_before():
    assert credit(CoupledCredit(lookback=1)) == [1, 1.5, 1.25, 1.25, 1, 1.5, 1, 1]


def test_bottom_takes_the_lowest_influence_and_leaves_the_rest():
    # Anchors 0, 2 and 4; of these only 4 looks near (5 ≤ 5.5) with a large drop before it (5, at token 1).
    assert credit(CoupledCredit(select="bottom")) == [1.5, 1.25, 1.5, 1, 1.25, 1, 1, 1]


def test_a_looser_waad_quantile_dominates_more_anchors():
    # Anchor 5 (WAAD 9) now counts; it is introduced by the earlier of two drops of 4, at token 2.
    assert credit(CoupledCredit(waad_quantile=1.0)) == [1, 1.75, 1.25, 1.25, 1, 1.25, 1, 1]


def test_a_looser_drop_quantile_dominates_more_anchors():
    # Anchor 1 now counts, introduced by token 0; it also introduces anchor 3.
    assert credit(CoupledCredit(drop_quantile=0.0)) == [1.25, 1.5, 1, 1.25, 1, 1.5, 1, 1]


def test_both_thresholds_are_inclusive():
    # WAAD's median is 2, that of anchor 2 itself; the 0.75 quantile of the drops is 6, that of token 1 itself.
    given = signals(fai=[0.0, 0.0, 1.0, 0.0, 0.0], waad=[1.0, 3.0, 2.0, 1.0, 3.0], drop=[5.0, 6.0, 1.0, 7.0, 1.0])
    assert credit(CoupledCredit(top_fraction=0.2, drop_quantile=0.75), given) == [1, 1.25, 1.25, 1, 1]


def test_a_token_that_introduces_two_anchors_is_paid_once():
    # Anchors 2 and 3 both look near and back on the drop at token 1.
    given = signals(fai=[0.0, 0.0, 1.0, 1.0, 0.0], waad=[9.0, 8.0, 1.0, 1.0, 9.0], drop=[1.0, 7.0, 0.0, 8.0, nan])
    assert credit(CoupledCredit(drop_quantile=0.5), given) == [1, 1.25, 1.25, 1.25, 1]


def test_equal_drops_introduce_by_the_earlier_token():
    given = signals(fai=[0.0, 0.0, 0.0, 1.0, 0.0], waad=[9.0, 9.0, 9.0, 1.0, 9.0], drop=[0.0, 7.0, 7.0, 8.0, nan])
    assert credit(CoupledCredit(top_fraction=0.2, drop_quantile=0.5), given) == [1, 1.25, 1, 1.25, 1]


def test_an_undefined_drop_introduces_nothing():
    given = signals(fai=[0.0, 0.0, 0.0, 1.0, 0.0], waad=[9.0, 9.0, 9.0, 1.0, 9.0], drop=[2.0, nan, 1.0, 0.0, nan])
    assert credit(CoupledCredit(top_fraction=0.2, drop_quantile=0.5), given) == [1.25, 1, 1, 1.25, 1]
    given.waad_drop[0, :3] = nan
    assert credit(CoupledCredit(top_fraction=0.2, drop_quantile=0.5), given) == [1, 1, 1, 1.5, 1]


def test_what_stands_before_the_response_neither_introduces_nor_counts():
    given = signals(fai=[5.0, 5.0, *FAI, 5.0], waad=[0.0, 0.0, *WAAD, 0.0], drop=[100.0, 100.0, *DROP, 100.0])
    mask = torch.tensor([[False, False, *[True] * 8, False]])
    assert CoupledCredit()(given, mask)[0].tolist() == [1, 1, 1, 1.75, 1, 1.25, 1, 1.5, 1, 1, 1]


def test_row_quantiles_interpolate_in_float64_over_defined_tokens():
    values = torch.tensor([[9.0, 0.1, nan, 0.2, 0.4], [9.0, nan, nan, nan, nan]])
    mask = torch.tensor([[False, True, True, True, True]] * 2)
    below, above = values[0, 1].item(), values[0, 3].item()
    expected = torch.tensor([[below + 0.5 * (above - below)], [nan]], dtype=torch.float64)
    torch.testing.assert_close(row_quantile(values, mask, 0.25), expected, rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("quantile", "count", "rank"), [(1 - 0.7, 11, 3), (0.28, 26, 7), (0.29, 101, 29), (0.6, 11, 6)]
)
def test_a_quantile_that_falls_on_a_token_is_its_value(quantile, count, rank):
    """Rounding makes of these ranks 3.0000000000000004, 7.000000000000001 and 28.999999999999996."""
    values = torch.rand(1, count, generator=torch.Generator().manual_seed(0))
    found = row_quantile(values, torch.ones(1, count, dtype=torch.bool), quantile)
    assert found.item() == values.sort().values[0, rank].item()


@pytest.mark.parametrize("share", [0.3, 1 - 0.7])
def test_an_introduction_right_at_the_threshold_introduces(share):
    """Eleven drops; the 0.3 quantile is the fourth from below, the one before the only anchor."""
    drop = [5.0, 6.0, 7.0, 0.1, 0.2, 0.3, 0.4, 8.0, 9.0, 10.0, 11.0, nan]
    given = signals(fai=[nan] * 7 + [1.0] + [nan] * 4, waad=[1.0] * 12, drop=drop)
    strategy = CoupledCredit(lookback=1, drop_quantile=share)
    assert credit(strategy, given) == [1] * 6 + [1.25, 1.25] + [1] * 4


def test_the_default_drop_quantile_is_the_complement_of_the_share():
    assert CoupledCredit(top_fraction=0.25).drop_quantile == 0.75
    assert CoupledCredit(top_fraction=0.25, drop_quantile=0.5).drop_quantile == 0.5


@pytest.mark.parametrize(
    ("argument", "value"),
    [("back_allocation", 1.5), ("lookback", 0), ("waad_quantile", -0.1), ("drop_quantile", 2.0),
     ("amplification", 0.3)],
)  # fmt: skip
def test_coupled_refuses_bad_settings_by_name(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}={value}: must be "):
        CoupledCredit(**{argument: value})


def test_weights_stay_nonnegative_at_the_smallest_amplification():
    assert credit(CoupledCredit(amplification=0, back_allocation=0)) == [1, 0, 1, 0, 1, 0, 1, 1]
    assert min(credit(CoupledCredit(amplification=0.5, back_allocation=1))) == 0


# ---- random and the controls


def test_random_credit_amplifies_its_share_anew_for_each_seed_and_row():
    mask = torch.ones(2, 10, dtype=torch.bool)
    draws = [RandomCredit(top_fraction=0.3, amplification=2)(None, mask, seed=seed) for seed in range(200)]
    assert all(draw.sum(dim=1).tolist() == [13, 13] for draw in draws)
    assert torch.equal(draws[5], RandomCredit(top_fraction=0.3, amplification=2)(None, mask, seed=5))
    share = torch.stack(draws).mean(dim=(0, 1)) - 1  # of 400 draws, so a standard error of 0.023
    torch.testing.assert_close(share, torch.full((10,), 0.3), atol=0.1, rtol=0)


def test_shuffled_credit_keeps_the_amounts_and_moves_them():
    mask = torch.tensor([[False, *[True] * 8, False]])
    given = signals(fai=[9.0, *FAI, 9.0], waad=[0.0, *WAAD, 0.0], drop=[9.0, *DROP, 9.0])
    draws = [ShuffledCredit(of=CoupledCredit())(given, mask, seed=seed)[0] for seed in range(200)]
    for draw in draws:
        assert sorted(draw[1:9].tolist()) == [1, 1, 1, 1, 1, 1.25, 1.5, 1.75]
    share = (torch.stack(draws)[:, 1:9] == 1.75).float().mean(dim=0)  # a standard error of 0.023
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), atol=0.1, rtol=0)


def test_shuffling_random_credit_is_random_still():
    mask = torch.ones(1, 10, dtype=torch.bool)
    draws = [ShuffledCredit(of=RandomCredit(top_fraction=0.3, amplification=2))(None, mask, seed=s) for s in range(200)]
    share = torch.cat(draws).mean(dim=0) - 1
    torch.testing.assert_close(share, torch.full((10,), 0.3), atol=0.15, rtol=0)


def test_shuffling_within_segments_keeps_the_amounts_of_each_part():
    mask = torch.tensor([[False, *[True] * 8, False], [*[True] * 7, False, False, False]])
    given = signals(fai=[9.0, *FAI, 9.0], waad=[0.0, *WAAD, 0.0], drop=[9.0, *DROP, 9.0])
    given = AttentionSignals(**{name: getattr(given, name).expand(2, -1) for name in ("fai", "waad", "waad_drop")})
    plain = CoupledCredit()(given, mask)
    draws = [ShuffledCredit(of=CoupledCredit(), segments=2)(given, mask, seed=seed) for seed in range(50)]
    for draw in draws:
        for row, start, stop in ((0, 1, 5), (0, 5, 9), (1, 0, 4), (1, 4, 7)):  # of seven the first four are one half
            assert draw[row, start:stop].sort().values.equal(plain[row, start:stop].sort().values)
    assert any(not draw.equal(plain) for draw in draws)
    with pytest.raises(ValueError, match="segments=0: must be at least 1"):
        ShuffledCredit(of=CoupledCredit(), segments=0)


def test_mean_matched_credit_spreads_the_mean():
    assert credit(MeanMatchedCredit(of=CoupledCredit())) == [1.1875] * 8  # (5 + 1.75 + 1.25 + 1.5) / 8


def test_mean_matched_credit_is_the_same_to_the_last_bit_however_wide_the_padding():
    strategy = MeanMatchedCredit(of=RandomCredit(amplification=1.1))
    masks = [torch.arange(width).expand(50, width) < torch.arange(100, 150)[:, None] for width in (150, 1000)]
    narrow, wide = [strategy(None, mask, seed=0)[:, 0] for mask in masks]
    assert torch.equal(narrow, wide)


def test_controls_read_what_they_control_for():
    assert ShuffledCredit(of=AnchorCredit()).requires == {"fai"}
    assert MeanMatchedCredit(of=ShuffledCredit(of=PreplanCredit())).requires == {"waad_drop"}
    with pytest.raises(ValueError, match=r"^mean_matched credit reads `fai`"):
        MeanMatchedCredit(of=AnchorCredit())(AttentionSignals(), torch.ones(1, 3))
