import pytest
import torch
from torch import nan, tensor

from rhythm.attention.statistics import check_settings, fai, head_distance, head_statistics, waad, waad_drop

ATTENTION = tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0], [0.1, 0.4, 0.2, 0.3]])
close = torch.testing.assert_close


def test_waad_is_the_mean_distance_cut_at_the_window():
    close(waad(ATTENTION, 10), tensor([0.0, 0.5, 0.7, 1.3]))  # ..., 2·.2+.3, 3·.1+2·.4+.2
    close(waad(ATTENTION, 2), tensor([0.0, 0.5, 0.7, 1.2]))  # ..., 2·.1+2·.4+.2
    close(waad(ATTENTION, 1), tensor([0.0, 0.5, 0.5, 0.7]))  # all that is not on the diagonal


def test_fai_of_a_token_is_its_mean_attention_within_the_horizon():
    got = fai(ATTENTION, rows=slice(0, 4), horizon=(1, 2))
    close(got, tensor([0.35, 0.35, 0.20, nan]), equal_nan=True)  # (.5+.2)/2, (.3+.4)/2, .2/1, none


def test_fai_counts_response_rows_only():
    rows = tensor([False, False, True, True])
    close(fai(ATTENTION, rows, (1, 2)), tensor([0.2, 0.35, 0.2, nan]), equal_nan=True)
    close(fai(ATTENTION, rows, (0, None)), tensor([0.15, 0.35, 0.35, 0.3]))
    close(fai(ATTENTION, rows, (3, 50)), tensor([0.1, nan, nan, nan]), equal_nan=True)
    close(fai(ATTENTION[None, None], rows[None, None], (1, 2))[0, 0], fai(ATTENTION, rows, (1, 2)), equal_nan=True)


def test_head_distance_is_the_mean_over_response_rows():
    close(head_distance(ATTENTION, slice(2, 4)), tensor(1.0, dtype=torch.float64))  # (.7 + 1.3) / 2
    close(head_distance(ATTENTION, slice(0, 4)), tensor(0.625, dtype=torch.float64))
    assert head_distance(ATTENTION, torch.zeros(4, dtype=torch.bool)).isnan()


def test_waad_drop_is_undefined_at_the_last_token_and_outside_the_mask():
    values = tensor([[9.0, 0.5, 0.7, 1.3], [0.0, 2.0, 1.0, 9.0]])
    mask = tensor([[False, True, True, True], [True, True, True, False]])
    close(waad_drop(values, mask), tensor([[nan, 0.2, 0.6, nan], [2.0, 1.0, nan, nan]]), equal_nan=True)


@pytest.mark.parametrize(("window", "horizon"), [(0, (10, 100)), (10, (-1, 5)), (10, (6, 5))])
def test_settings_that_define_nothing_are_refused(window, horizon):
    with pytest.raises(ValueError, match=r"window=|horizon="):
        check_settings(window, horizon)


def dense(query, key, rows, window, horizon, bias):
    """The same statistics from whole maps, in float64."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    attention = (query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
    inside = rows[:, None]
    return (
        attention,
        torch.where(inside, waad(attention, window), nan),
        torch.where(inside, fai(attention, inside, horizon), nan),
    )


def random_case(batch=5, heads=4, kv_heads=2, length=150, width=8):
    generator = torch.Generator().manual_seed(0)
    query = 2 * torch.randn(batch, heads, length, width, generator=generator)
    key = 2 * torch.randn(batch, kv_heads, length, width, generator=generator)
    position = torch.arange(length)
    start, stop = tensor([[3], [40], [0], [149], [70]]), tensor([[150], [131], [60], [150], [70]])  # the last is empty
    return query, key, (position >= start) & (position < stop)


CAUSAL = torch.full((150, 150), -torch.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize(("window", "horizon"), [(10, (10, 100)), (1, (0, 0)), (400, (5, None)), (7, (140, 600))])
def test_blocks_agree_with_whole_maps(window, horizon, monkeypatch):
    query, key, rows = random_case()
    attention, expected_waad, expected_fai = dense(query, key, rows, window, horizon, CAUSAL)
    total = torch.where(rows[:, None], (attention * (torch.arange(150)[:, None] - torch.arange(150))).sum(-1), 0)
    for elements in (1, 2**17, 2**30):  # one sequence at a time, three, all
        monkeypatch.setattr("rhythm.attention.statistics.BLOCK_ELEMENTS_CPU", elements)
        got = head_statistics(query, key, rows, window=window, horizon=horizon)
        close(got.waad.double(), expected_waad, rtol=1e-4, atol=1e-5, equal_nan=True)
        close(got.fai.double(), expected_fai, rtol=1e-4, atol=1e-5, equal_nan=True)
        close(got.distance, total.sum((0, 2)), rtol=1e-6, atol=1e-3)
        assert got.rows == rows.sum()


def test_heads_are_computed_as_asked_for():
    query, key, rows = random_case()
    every = head_statistics(query, key, rows, window=10, horizon=(10, 100))
    some = head_statistics(query, key, rows, window=10, horizon=(10, 100), local=[3, 0], global_=[])
    close(some.waad, every.waad[:, [3, 0]], equal_nan=True)
    assert some.fai.shape == (5, 0, 150)
    close(some.distance, every.distance)


def test_bool_and_additive_masks_say_what_is_seen():
    query, key, rows = random_case()
    seen = (CAUSAL == 0).expand(5, 1, 150, 150).clone()
    seen[0, :, :, :2] = False  # two padding tokens on the left
    seen &= torch.arange(150)[:, None] - torch.arange(150) < 30  # a sliding window
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e30)
    _, expected_waad, expected_fai = dense(query, key, rows, 10, (10, 100), bias)
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)):
        got = head_statistics(query, key, rows, window=10, horizon=(10, 100), mask=mask)
        close(got.waad.double(), expected_waad, rtol=1e-4, atol=1e-5, equal_nan=True)
        close(got.fai.double(), expected_fai, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("closed", [False, -torch.inf])
def test_a_row_that_sees_nothing_is_no_row(closed):
    query, key, rows = random_case()
    causal = (CAUSAL == 0).expand(5, 1, 150, 150)
    mask = causal.clone() if closed is False else torch.zeros(causal.shape).masked_fill(~causal, closed)
    mask[1, :, 100] = closed
    without = rows.clone()
    without[1, 100] = False
    got = head_statistics(query, key, rows, window=10, horizon=(10, 100), mask=mask)
    expected = head_statistics(query, key, without, window=10, horizon=(10, 100))
    assert got.rows == expected.rows == rows.sum() - 1
    for name in ("distance", "waad", "fai"):
        close(getattr(got, name), getattr(expected, name), equal_nan=True)


def test_distances_at_far_positions_keep_their_digits():
    query, key = torch.zeros(1, 1, 4000, 4), torch.zeros(1, 1, 4000, 4)
    gaps = torch.arange(4000)[:, None] - torch.arange(4000)
    mask = ((gaps >= 0) & (gaps < 3))[None, None]  # a third each to the token itself and to the two before it
    rows = torch.arange(4000)[None] > 3900
    got = head_statistics(query, key, rows, window=10, horizon=(0, 5), mask=mask)
    close(got.distance / got.rows, torch.ones(1, dtype=torch.float64), rtol=0, atol=2e-6)


def test_half_precision_and_autocast_do_not_reach_the_softmax():
    query, key, rows = random_case()
    query, key = query.bfloat16(), key.bfloat16()
    expected = head_statistics(query.float(), key.float(), rows, window=10, horizon=(10, 100))
    with torch.autocast("cpu", torch.bfloat16):
        got = head_statistics(query, key, rows, window=10, horizon=(10, 100))
    assert got.waad.dtype == torch.float32
    close(got.waad, expected.waad, rtol=0, atol=0, equal_nan=True)
