import pytest
import torch
from torch import nan, tensor

from rhythm.attention import fused
from rhythm.attention.blocks import block_size
from rhythm.attention.definitions import SignalSettings, excess_kurtosis, fai, received, waad
from rhythm.attention.statistics import band_statistics, head_statistics

close = torch.testing.assert_close
PAPER = SignalSettings()
CAUSAL = torch.full((150, 150), -torch.inf, dtype=torch.float64).triu(1)
GAPS = torch.arange(150)[:, None] - torch.arange(150)


def dense(query, key, rows, settings, bias=CAUSAL):
    """Attention, distance of each row, WAAD, FAI and kurtosis from whole maps in float64, for `row: token`."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    attention = (query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
    inside = rows[:, None]
    return (
        attention,
        (attention * GAPS).sum(-1),
        torch.where(inside, waad(attention, settings.window), nan),
        torch.where(inside, fai(attention, inside, settings.horizon), nan),
        excess_kurtosis(received(attention, inside.expand(attention.shape[:-1]), settings.receiver_gap)),
    )


def random_case(batch=5, heads=4, kv_heads=2, length=150, width=8):
    generator = torch.Generator().manual_seed(0)
    query = 2 * torch.randn(batch, heads, length, width, generator=generator)
    key = 2 * torch.randn(batch, kv_heads, length, width, generator=generator)
    position = torch.arange(length)
    start, stop = tensor([[3], [40], [0], [149], [70]]), tensor([[150], [131], [60], [150], [70]])  # the last is empty
    return query, key, (position >= start) & (position < stop)


def assert_signals(got, expected_waad, expected_fai):
    close(got.waad.double(), expected_waad, rtol=1e-4, atol=1e-5, equal_nan=True)
    close(got.fai.double(), expected_fai, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("window", "horizon"), [(10, (10, 100)), (1, (0, 0)), (400, (5, None)), (7, (140, 600))])
def test_blocks_agree_with_whole_maps(window, horizon, monkeypatch):
    query, key, rows = random_case()
    settings = SignalSettings(window, horizon, receiver_gap=window % 5)
    attention, distance, expected_waad, expected_fai, kurtosis = dense(query, key, rows, settings)
    inside = rows[:, None]
    for elements, size in ((1, 64), (2**17, 64), (2**30, 64), (2**17, 128), (2**30, 1000)):
        monkeypatch.setattr("rhythm.attention.blocks.BLOCK_ELEMENTS_CPU", elements)
        monkeypatch.setattr("rhythm.attention.blocks.BLOCK_ROWS", size)
        got = head_statistics(query, key, rows, settings, receivers=True)
        assert_signals(got, expected_waad, expected_fai)
        close(got.distance, distance.where(inside, 0).sum((0, 2)), rtol=1e-6, atol=1e-3)
        close(got.sink, attention[..., 0].where(inside, 0).sum((0, 2)), rtol=1e-6, atol=1e-4)
        assert got.rows == rows.sum()
        close(got.kurtosis, kurtosis.nansum(0), rtol=1e-4, atol=1e-4)
        assert got.responses.tolist() == [3] * 4  # one is too short, one is empty


def test_a_block_on_an_accelerator_takes_whole_sequences_where_they_fit():
    assert block_size(8, 512, 512, on_cpu=True) == (2, 64)
    assert block_size(8, 512, 512, on_cpu=False) == (32, 512)  # 2**26 = 32 · 8 · 512²
    assert block_size(8, 8192, 8192, on_cpu=False) == (1, 1024)
    assert block_size(8, 2**20, 2**20, on_cpu=False) == (1, 64)


def test_one_mask_serves_every_sequence(monkeypatch):
    monkeypatch.setattr("rhythm.attention.blocks.BLOCK_ELEMENTS_CPU", 1)  # one sequence at a time
    query, key, rows = random_case()
    got = head_statistics(query, key, rows, PAPER, mask=(GAPS >= 0)[None, None])
    expected = head_statistics(query, key, rows, PAPER)
    assert_signals(got, expected.waad.double(), expected.fai.double())
    close(got.distance, expected.distance)


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize(
    "settings",
    [PAPER, SignalSettings(1, (0, 0)), SignalSettings(16, (20, 30), min_rows=4), SignalSettings(row="predictor")],
    ids=str,
)
def test_bands_agree_with_blocks(settings, scaling):
    query, key, rows = random_case()
    value = torch.randn(key.shape)
    output, sums = fused.attention_with_sums(query, key, value, scaling)
    groups = {"local": [3, 0], "global_": [1, 2, 0]}
    for chosen in ({}, groups, {"local": [], "global_": [2]}):
        got = band_statistics(query, key, rows, settings, sums, scaling=scaling, **chosen)
        expected = head_statistics(query, key, rows, settings, scaling=scaling, **chosen)
        assert_signals(got, expected.waad.double(), expected.fai.double())
        close(got.distance, expected.distance, rtol=1e-5, atol=1e-3)
        close(got.sink, expected.sink, rtol=1e-5, atol=1e-4)
        assert got.rows == expected.rows
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    close(output, plain.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_row_sums_of_long_sequences_keep_their_digits():
    """Within what is asked of distances, 1e-4 and 1e-2 tokens, also for a head that looks near at far positions."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4096, 16, generator=generator) for _ in range(3))
    position = torch.arange(4096)
    query[0, 0, :, 0], key[0, 0, :, 0] = 40.0, position / 10  # the nearer the key, the higher its score
    _, sums = fused.attention_with_sums(query, key, value, None)
    attention = (query.double() @ key.double().transpose(-1, -2) / 4).masked_fill(
        position[:, None] < position, -torch.inf
    )
    expected = (attention.softmax(-1) * (position[:, None] - position)).sum(-1)
    assert expected[0, 0].mean() < 2 < 1000 < expected[0, 1].mean()
    close(sums.distance.double().mean(-1), expected.mean(-1), rtol=1e-4, atol=1e-3)
    close(sums.logsumexp.double(), attention.logsumexp(-1), rtol=1e-5, atol=1e-4)


def test_fused_attention_takes_what_it_can_compute():
    query = key = value = torch.randn(1, 2, 8, 4)
    assert fused.fits(query, key, value, None)
    assert not fused.fits(query, key, value, torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert not fused.fits(*(tensor.bfloat16() for tensor in (query, key, value)), None)
    assert not fused.fits(query, key, value[..., :2], None)
    assert not fused.fits(query[:, :, :1], key, value, None)
    assert not fused.fits(query.clone().requires_grad_(), key, value, None)


def test_the_row_of_the_predictor():
    query, key, rows = random_case()
    _, distance, expected_waad, _, _ = dense(query, key, torch.ones_like(rows), PAPER)
    shifted = torch.full_like(expected_waad, nan)
    shifted[..., 1:] = expected_waad[..., :-1]
    got = head_statistics(query, key, rows, SignalSettings(row="predictor"))
    _, _, _, unchanged, _ = dense(query, key, rows, PAPER)
    assert_signals(got, shifted.where(rows[:, None], nan), unchanged)
    before = torch.zeros_like(rows)
    before[:, :-1] = rows[:, 1:]
    close(got.distance, distance.where(before[:, None], 0).sum((0, 2)), rtol=1e-6, atol=1e-3)
    assert got.rows == before.sum() == rows.sum() - 1  # the response that begins at once lacks a row


@pytest.mark.parametrize("masked", [False, True])
def test_a_dropped_sink_is_a_map_without_its_column(masked):
    query, key, rows = random_case()
    first = tensor([2, 0, 5, 0, 0]) if masked else torch.zeros(5, dtype=torch.long)
    column = torch.arange(150)
    padding = column < first[:, None]
    mask = ((GAPS >= 0) & ~padding[:, None])[:, None] if masked else None
    closed = padding | (column == first[:, None])
    bias = CAUSAL + torch.zeros(5, 1, 1, 150).double().masked_fill(closed[:, None, None], -1e30)
    rows = rows & ~closed
    _, distance, expected_waad, expected_fai, _ = dense(query, key, rows, PAPER, bias)
    got = head_statistics(query, key, rows, SignalSettings(sink="drop"), mask=mask)
    assert_signals(got, expected_waad, expected_fai)
    close(got.distance, distance.where(rows[:, None], 0).sum((0, 2)), rtol=1e-6, atol=1e-3)
    assert got.sink.abs().max() == 0
    kept = head_statistics(query, key, rows, PAPER, mask=mask)
    assert (kept.waad - got.waad).nan_to_num().abs().max() > 0.1


def test_a_mean_of_too_few_rows_is_undefined():
    query, key, rows = random_case()
    expected = head_statistics(query, key, rows, PAPER).fai
    for least in (1, 5):
        got = head_statistics(query, key, rows, SignalSettings(min_rows=least)).fai
        later = torch.nn.functional.pad(rows, (0, 10 + least - 1))[:, 10 + least - 1 :]  # the least-th row exists
        close(got, expected.where((rows & later)[:, None], nan), equal_nan=True)


def test_heads_are_computed_as_asked_for():
    query, key, rows = random_case()
    every = head_statistics(query, key, rows, PAPER)
    some = head_statistics(query, key, rows, PAPER, local=[3, 0], global_=[])
    close(some.waad, every.waad[:, [3, 0]], equal_nan=True)
    assert some.fai.shape == (5, 0, 150)
    close(some.distance, every.distance)
    assert every.kurtosis.tolist() == every.responses.tolist() == [0] * 4  # nobody asked


def test_bool_and_additive_masks_say_what_is_seen():
    query, key, rows = random_case()
    seen = (CAUSAL == 0).expand(5, 1, 150, 150).clone()
    seen[0, :, :, :2] = False  # two padding tokens on the left
    seen &= GAPS < 30  # a sliding window
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e30)
    _, _, expected_waad, expected_fai, _ = dense(query, key, rows, PAPER, bias)
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)):
        assert_signals(head_statistics(query, key, rows, PAPER, mask=mask), expected_waad, expected_fai)


@pytest.mark.parametrize("closed", [False, -torch.inf])
def test_a_row_that_sees_nothing_is_no_row(closed):
    query, key, rows = random_case()
    causal = (CAUSAL == 0).expand(5, 1, 150, 150)
    mask = causal.clone() if closed is False else torch.zeros(causal.shape).masked_fill(~causal, closed)
    mask[1, :, 100] = closed
    without = rows.clone()
    without[1, 100] = False
    got = head_statistics(query, key, rows, PAPER, mask=mask)
    expected = head_statistics(query, key, without, PAPER)
    assert got.rows == expected.rows == rows.sum() - 1
    for name in ("distance", "waad", "fai"):
        close(getattr(got, name), getattr(expected, name), equal_nan=True)


def test_distances_at_far_positions_keep_their_digits():
    query, key = torch.zeros(1, 1, 4000, 4), torch.zeros(1, 1, 4000, 4)
    gaps = torch.arange(4000)[:, None] - torch.arange(4000)
    mask = ((gaps >= 0) & (gaps < 3))[None, None]  # a third each to the token itself and to the two before it
    rows = torch.arange(4000)[None] > 3900
    got = head_statistics(query, key, rows, SignalSettings(10, (0, 5)), mask=mask)
    close(got.distance / got.rows, torch.ones(1, dtype=torch.float64), rtol=0, atol=2e-6)


def test_half_precision_and_autocast_do_not_reach_the_softmax():
    query, key, rows = random_case()
    query, key = query.bfloat16(), key.bfloat16()
    _, distance, expected_waad, expected_fai, _ = dense(query, key, rows, PAPER)  # of the same rounded queries and keys
    with torch.autocast("cpu", torch.bfloat16):
        got = head_statistics(query, key, rows, PAPER)
    assert got.waad.dtype == torch.float32
    assert_signals(got, expected_waad, expected_fai)
    close(got.distance, distance.where(rows[:, None], 0).sum((0, 2)), rtol=1e-6, atol=1e-3)
