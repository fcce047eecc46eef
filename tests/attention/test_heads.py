import pytest
import torch
from torch import tensor

from rhythm.attention.heads import group_heads, resolve_layers


def test_groups_are_the_nearest_and_the_farthest_heads_of_all_layers():
    distance = {4: tensor([5.0, 1.0, 9.0, 4.0]), 2: tensor([3.0, 8.0, 2.0, 6.0])}
    groups = group_heads(distance, 0.3)  # round(0.3 · 8) = 2
    assert groups.local == [(4, 1), (2, 2)]
    assert groups.global_ == [(2, 1), (4, 2)]


def test_ties_go_by_layer_and_head():
    groups = group_heads({1: torch.ones(3), 0: torch.ones(3)}, 0.34)
    assert groups.local == [(0, 0), (0, 1)]
    assert groups.global_ == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("heads", "fraction", "size"), [(24, 0.3, 7), (4, 0.01, 1), (8, 0.5, 4), (7, 0.5, 3), (1, 0.3, 1)]
)
def test_group_size(heads, fraction, size):
    groups = group_heads({0: torch.arange(heads).double()}, fraction)
    assert len(groups.local) == len(groups.global_) == size


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_fractions_that_leave_no_two_groups_are_refused(fraction):
    with pytest.raises(ValueError, match="head_fraction"):
        group_heads({0: torch.arange(4.0)}, fraction)


def test_heads_without_a_response_are_not_grouped():
    with pytest.raises(ValueError, match="finite"):
        group_heads({0: tensor([1.0, float("nan")])}, 0.3)


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("middle", 36, [12, 15, 18, 21, 24]),
        ("middle", 28, [9, 11, 14, 16, 18]),
        ("middle", 6, [2, 3, 4]),
        ("middle", 1, [0]),
        ("bottom", 36, [0, 3, 6, 8, 11]),
        ("top", 36, [24, 27, 29, 32, 35]),
        ("bottom", 6, [0, 1, 2]),
        ("top", 6, [3, 4, 5]),
        ("top", 1, [0]),
        ("all", 3, [0, 1, 2]),
        ([5, 0, 5], 6, [0, 5]),
    ],
)
def test_layers(layers, count, expected):
    assert resolve_layers(layers, count) == expected


@pytest.mark.parametrize("count", range(1, 81))
def test_every_third_is_read_in_as_many_layers(count):
    named = [resolve_layers(name, count) for name in ("bottom", "middle", "top")]
    assert len({len(layers) for layers in named}) == 1
    assert all(0 <= layer < count for layers in named for layer in layers)


@pytest.mark.parametrize("layers", ["centre", [6], [-1], [], [1.5]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ValueError, match="layers="):
        resolve_layers(layers, 6)
