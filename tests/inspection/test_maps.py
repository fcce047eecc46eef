import pytest
import torch

from rhythm.inspection.maps import mean_maps
from rhythm.types import HeadGroups
from tests.models import eager_maps, tiny_model

HEADS = HeadGroups(local=[(0, 3), (2, 1)], global_=[(1, 0), (1, 2), (2, 2)])


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gpt2"])  # grouped keys, a sliding window, neither
def test_mean_maps_are_the_means_of_eager_maps(kind):
    model, ids = tiny_model(kind), torch.arange(3, 33) % 61
    maps = eager_maps(model, ids[None], torch.ones(1, 30, dtype=torch.long))
    for most, stop in ((200, 30), (12, 22)):
        found = mean_maps(model, ids, 10, HEADS, most=most)
        for got, group in zip(found, (HEADS.local, HEADS.global_), strict=True):
            expected = torch.stack([maps[layer][0, head] for layer, head in group]).mean(0)[10:stop, 10:stop]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny_model("qwen3").train()
    mean_maps(model, torch.arange(20), 5, HEADS)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
