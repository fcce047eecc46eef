import dataclasses

import pytest
import torch

from rhythm import attention_signals
from rhythm.attention.definitions import SignalSettings
from rhythm.inspection.maps import mean_maps
from rhythm.types import HeadGroups
from tests.models import eager_maps, tiny_model

HEADS = HeadGroups(local=[(0, 3), (2, 1)], global_=[(1, 0), (1, 2), (2, 2)])


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gpt2"])  # grouped keys, a sliding window, neither
def test_mean_maps_are_the_means_of_eager_maps(kind):
    model, ids = tiny_model(kind), torch.arange(3, 33) % 61
    maps = eager_maps(model, ids[None], torch.ones(1, 30, dtype=torch.long))
    for most, stop in ((200, 30), (12, 22)):
        found = mean_maps(model, ids, 10, HEADS, SignalSettings(), most=most)
        for got, group in zip(found, (HEADS.local, HEADS.global_), strict=True):
            expected = torch.stack([maps[layer][0, head] for layer, head in group]).mean(0)[10:stop, 10:stop]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny_model("qwen3").train()
    mean_maps(model, torch.arange(20), 5, HEADS, SignalSettings())
    assert model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("sink", ["keep", "drop"])
@pytest.mark.parametrize("row", ["token", "predictor"])
def test_the_maps_are_those_that_the_signals_are_read_from(row, sink):
    """WAAD is a sum over a row of Ā^loc, what it lacks being the prompt's, and FAI a mean over a column of Ā^glob."""
    model, ids, prompt = tiny_model("qwen3"), torch.arange(3, 33)[None] % 61, 6
    settings = SignalSettings(window=8, horizon=(2, None), row=row, sink=sink)
    response = (torch.arange(30) >= prompt)[None]
    known = attention_signals(model, ids, torch.ones_like(ids), response, heads=HEADS, layers="all", **vars(settings))
    near, far = mean_maps(model, ids[0], prompt, HEADS, settings)
    n, before = len(near), int(row == "predictor")
    gaps = torch.arange(n)[:, None] - before - torch.arange(n)
    waad = known.waad[0, prompt:]
    inside, outside = (near * gaps.clamp(0, 8)).sum(1), 1 - near.sum(1)
    late = slice(8 + before, None)  # all that such a row sees of the prompt is a whole window away
    torch.testing.assert_close((inside + 8 * outside)[late], waad[late], atol=1e-5, rtol=1e-4)
    counted = gaps + before >= 2
    fai = (far * counted).sum(0) / counted.sum(0)
    torch.testing.assert_close(fai, known.fai[0, prompt:], atol=1e-6, rtol=1e-4, equal_nan=True)
    kept = dataclasses.replace(settings, row="token", sink="keep")
    assert (mean_maps(model, ids[0], prompt, HEADS, kept)[0] - near).abs().max() > 0.01 or kept == settings


def test_a_row_that_sees_nothing_but_a_dropped_sink_is_undefined():
    near, far = mean_maps(tiny_model("qwen3"), torch.arange(9), 1, HEADS, SignalSettings(row="predictor", sink="drop"))
    assert near.isnan().all(1).tolist() == [True, *[False] * 7]
    assert not far.isnan().any()
