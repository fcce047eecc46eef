import pytest
import torch
from torch import nan, tensor

from rhythm.attention.definitions import (
    SignalSettings,
    excess_kurtosis,
    fai,
    head_distance,
    received,
    waad,
    waad_drop,
)

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


def test_what_a_token_receives_is_scaled_by_the_choices_of_each_row():
    # Rows 2 and 3 are one or two tokens behind columns 0 and 1: row 2 chooses from one of them, row 3 from two.
    rows = torch.ones(4, dtype=torch.bool)
    got = received(ATTENTION, rows, gap=2)
    close(got, tensor([(0.2 * 1 + 0.1 * 2) / 2, 0.4 * 2 / 1, nan, nan]), equal_nan=True)
    rows[0] = False  # a prompt: column 0 is no choice any more
    close(received(ATTENTION, rows, gap=2), tensor([nan, 0.4, nan, nan]), equal_nan=True)


def test_even_rows_count_one_at_every_depth():
    even = torch.tril(torch.ones(20, 20))
    even /= even.sum(-1, keepdim=True)
    got = received(even, slice(0, 20), gap=4)
    depth = torch.arange(1.0, 17.0)  # a row t sees t + 1 keys evenly and chooses from t − 3
    close(got[:16], torch.stack([(depth[i:] / (depth[i:] + 4)).mean() for i in range(16)]))
    assert got[16:].isnan().all()


def test_excess_kurtosis():
    close(excess_kurtosis(tensor([0.0, 0.0, 0.0, 0.0, 5.0])), tensor(0.25, dtype=torch.float64))  # 52/4² − 3
    close(excess_kurtosis(tensor([[-1.0, 1.0, nan, -1.0, 1.0]])), tensor([-2.0], dtype=torch.float64))
    assert excess_kurtosis(tensor([[1.0, 2.0, 3.0, nan], [2.0, 2.0, 2.0, 2.0]])).isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"horizon": (-1, 5)},
        {"horizon": (6, 5)},
        {"horizon": (6,)},
        {"horizon": (0.5, None)},
        {"horizon": (None, 5)},
        {"window": 2.5},
        {"receiver_gap": -1},
        {"min_rows": 0},
        {"row": "next"},
        {"sink": "half"},
    ],
    ids=str,
)
def test_settings_that_define_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        SignalSettings(**wrong)
