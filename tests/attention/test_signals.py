import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nan

from rhythm.attention.definitions import SignalSettings
from rhythm.attention.probe import IMPLEMENTATION, attention_probe
from rhythm.attention.signals import SignalCollector, attention_signals
from rhythm.types import HeadGroups
from tests.models import assert_agree, eager_maps, ragged_batch, reference, tiny_model

close = torch.testing.assert_close
PAPER = SignalSettings()
SETTINGS = {"layers": "all", "window": 3, "horizon": (2, 6)}


def inputs(batch):
    return batch.input_ids, batch.attention_mask, batch.completion_mask


@pytest.fixture(scope="module", params=["qwen3", "llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def qwen3():
    return tiny_model("qwen3")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("window", "horizon"), [(3, (2, 6)), (10, (10, None)), (50, (0, 100)), (1, (30, 40))])
def test_signals_equal_arithmetic_on_eager_maps(model, side, window, horizon):
    batch = ragged_batch(side)
    signals = attention_signals(model, *inputs(batch), layers="all", window=window, horizon=horizon)
    maps = eager_maps(model, batch.input_ids, batch.attention_mask)
    assert_agree(signals, reference(maps, batch.completion_mask, window, horizon), batch.completion_mask)
    assert signals.entropy is None


def test_one_sequence_without_padding(model):
    batch = ragged_batch(prompts=[5], completions=[11])
    maps = eager_maps(model, batch.input_ids, batch.attention_mask)
    expected = reference(maps, batch.completion_mask, 3, (2, 6))
    assert_agree(attention_signals(model, *inputs(batch), **SETTINGS), expected, batch.completion_mask)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_reference_that_is_off_by_one_is_noticed(model, shift):
    batch = ragged_batch()
    signals = attention_signals(model, *inputs(batch), **SETTINGS)
    expected = reference(
        eager_maps(model, batch.input_ids, batch.attention_mask), batch.completion_mask, 3, (2, 6), shift=shift
    )
    with pytest.raises(AssertionError):
        assert_agree(signals, expected, batch.completion_mask)
    expected.waad = reference(eager_maps(model, *inputs(batch)[:2]), batch.completion_mask, 3, (2, 6)).waad
    with pytest.raises(AssertionError):  # FAI alone gives it away too
        assert_agree(signals, expected, batch.completion_mask)


def test_a_scaling_of_the_layer_itself_is_followed():
    model, batch = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True), ragged_batch("left")
    maps = eager_maps(model, batch.input_ids, batch.attention_mask)
    expected = reference(maps, batch.completion_mask, 3, (2, 6))
    assert_agree(attention_signals(model, *inputs(batch), **SETTINGS), expected, batch.completion_mask)


def test_sliding_window_layers_see_their_window():
    model = tiny_model("qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
    for batch in (ragged_batch("left"), ragged_batch(prompts=[5], completions=[11])):
        maps = eager_maps(model, batch.input_ids, batch.attention_mask)
        expected = reference(maps, batch.completion_mask, 3, (2, 6))
        assert_agree(attention_signals(model, *inputs(batch), **SETTINGS), expected, batch.completion_mask)


def test_nan_means_undefined(qwen3):
    batch = ragged_batch()
    signals = attention_signals(qwen3, *inputs(batch), layers="middle", window=10, horizon=(10, 100))
    mask = batch.completion_mask
    assert list(signals.distance) == [1, 2]
    close(~signals.waad.isnan(), mask)
    later = torch.nn.functional.pad(mask, (0, 10))[:, 10:]
    close(~signals.fai.isnan(), mask & later)  # a token less than ten from the end has no row in its horizon
    close((~signals.waad_drop.isnan()).sum(1), mask.sum(1) - 1)


def collect(model, batch, slices, heads):
    collector = SignalCollector(model, SignalSettings(3, (2, 6)), layers="all", heads=heads)
    for rows in slices:
        part = batch[rows]
        width = int(part.attention_mask.sum(1).max())  # each micro-batch is as wide as its longest row
        with collector.reading(part.completion_mask[:, :width]):
            model(input_ids=part.input_ids[:, :width], attention_mask=part.attention_mask[:, :width])
    return collector.finish()


@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_micro_batches_equal_one_batch(qwen3, given):
    batch = ragged_batch()
    whole = attention_signals(qwen3, *inputs(batch), **SETTINGS)
    heads = whole.heads if given else None
    got = collect(qwen3, batch, [slice(0, 1), slice(1, 3)], heads)
    assert got.heads == whole.heads
    assert got.sums.rows == batch.completion_mask.sum()
    close(got.sums.mean_distance(), whole.distance, rtol=1e-5, atol=1e-5)
    assert [tuple(waad.shape) for waad, _ in got.batches] == [(1, 24), (2, 16)]
    waad, fai = torch.full((3, 24), nan), torch.full((3, 24), nan)
    for rows, (part_waad, part_fai) in zip((slice(0, 1), slice(1, 3)), got.batches, strict=True):
        waad[rows, : part_waad.shape[1]], fai[rows, : part_fai.shape[1]] = part_waad, part_fai
    close(waad, whole.waad, equal_nan=True)
    close(fai, whole.fai, equal_nan=True)


def test_given_heads_equal_the_same_heads_found(qwen3):
    batch = ragged_batch()
    found = attention_signals(qwen3, *inputs(batch), **SETTINGS)
    given = attention_signals(qwen3, *inputs(batch), **SETTINGS, heads=found.heads)
    assert given.heads == found.heads
    for name in ("waad", "fai", "waad_drop"):
        close(getattr(given, name), getattr(found, name), equal_nan=True)
    close(given.distance, found.distance)
    swapped = HeadGroups(local=found.heads.global_, global_=found.heads.local)
    other = attention_signals(qwen3, *inputs(batch), **SETTINGS, heads=swapped)
    assert other.waad.nanmean() > found.waad.nanmean()


def lora(model):
    torch.manual_seed(3)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


def test_adapters_are_part_of_what_is_read(qwen3):
    adapted, batch = lora(qwen3), ragged_batch()
    expected = reference(
        eager_maps(adapted.merge_and_unload(), batch.input_ids, batch.attention_mask), batch.completion_mask, 3, (2, 6)
    )
    adapted = lora(qwen3).train()
    adapted.base_model.model.model.layers[1].eval()
    modes = [module.training for module in adapted.modules()]
    signals = attention_signals(adapted, *inputs(batch), **SETTINGS)
    assert_agree(signals, expected, batch.completion_mask)
    assert [module.training for module in adapted.modules()] == modes
    base = attention_signals(qwen3, *inputs(batch), **SETTINGS, heads=signals.heads)
    assert (base.waad - signals.waad).abs().nan_to_num().max() > 1e-2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_the_model_is_left_as_it_was(model, implementation):
    batch = ragged_batch("left")
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    ids, tokens, mask = inputs(batch)
    before = model(input_ids=ids, attention_mask=tokens).logits
    collector = SignalCollector(model, PAPER, layers="all")
    with collector.reading(mask):
        assert model.config._attn_implementation == IMPLEMENTATION
        during = model(input_ids=ids, attention_mask=tokens).logits
    close(during[mask], before[mask], rtol=0, atol=1e-5)
    with pytest.raises(IndexError), collector.reading(mask):
        model(input_ids=ids, attention_mask=tokens).logits[99]
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(input_ids=ids, attention_mask=tokens).logits, before)
    assert len(collector.finish().batches) == 1  # the pass that failed is not counted


def test_gradients_pass_a_probe_untouched(qwen3):
    batch = ragged_batch()
    gradients = []
    for layers in ([], [0, 1, 2]):
        seen = []
        model = copy.deepcopy(qwen3)
        with attention_probe(model, layers, seen.append):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.sum().backward()
        assert [layer.layer for layer in seen] == layers
        assert not any(layer.query.requires_grad or layer.key.requires_grad for layer in seen)
        gradients.append([weight.grad for weight in model.parameters()])
    close(gradients[0], gradients[1], rtol=0, atol=0)


@torch.no_grad()
def test_a_probe_hears_its_own_model_only(qwen3):
    other, seen = type(qwen3)(qwen3.config), []
    assert other.model.layers[1].self_attn.config is qwen3.config  # so both are switched
    ids = ragged_batch().input_ids
    with pytest.raises(ValueError, match=r"layers \[1\]"), attention_probe(qwen3, [1], seen.append):
        other(input_ids=ids)
    assert not seen


@pytest.mark.parametrize("own", [{"sink": "drop"}, {"horizon": (2, None)}, {"window": 40}])
@pytest.mark.parametrize("banded_first", [True, False])
@torch.no_grad()
def test_a_collector_reads_by_its_own_settings_beside_one_that_reads_a_band(qwen3, own, banded_first, monkeypatch):
    batch = ragged_batch(prompts=[5], completions=[40])
    alone = attention_signals(qwen3, *inputs(batch), **SETTINGS | own)
    monkeypatch.setattr("rhythm.attention.signals.BAND_FROM", 16)
    band = SignalCollector(qwen3, SignalSettings(window=3, horizon=(2, 6)), layers="all")
    plain = {name: value for name, value in (SETTINGS | own).items() if name != "layers"}
    whole = SignalCollector(qwen3, SignalSettings(**plain), layers="all")
    first, second = (band, whole) if banded_first else (whole, band)
    with first.reading(batch.completion_mask), second.reading(batch.completion_mask):
        qwen3(input_ids=batch.input_ids)
    ((waad, fai),) = whole.finish().batches
    close(waad, alone.waad, equal_nan=True)
    close(fai, alone.fai, equal_nan=True)
    expected = attention_signals(qwen3, *inputs(batch), **SETTINGS)  # the band's own, read from a band too
    close(band.finish().batches[0][1], expected.fai, equal_nan=True, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_that_is_never_reached_is_an_error(qwen3):
    batch = ragged_batch()
    model = copy.deepcopy(qwen3)
    model.model.layers = model.model.layers[:2]  # as a hybrid's other layers, the third computes no attention
    with pytest.raises(ValueError, match=r"Qwen3Model \(model type 'qwen3'\): layers \[2\]"):
        attention_signals(model, *inputs(batch), layers=[1, 2])
    with pytest.raises(ValueError, match="layers"), SignalCollector(qwen3, PAPER).reading(batch.completion_mask):
        pass
    with pytest.raises(ValueError, match="ran twice"), SignalCollector(qwen3, PAPER).reading(batch.completion_mask):
        [qwen3(input_ids=batch.input_ids) for _ in range(2)]
    with (
        pytest.raises(ValueError, match="whole sequences"),
        SignalCollector(qwen3, PAPER).reading(batch.completion_mask),
    ):
        qwen3.generate(batch.input_ids, max_new_tokens=2, do_sample=False)
    assert qwen3.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"window": 0}, "window=0"),
        ({"horizon": (5, 4)}, r"horizon=\(5, 4\)"),
        ({"head_fraction": 0.6}, "head_fraction=0.6"),
        ({"layers": [3]}, "layers="),
        ({"heads": HeadGroups(local=[(0, 0)], global_=[(2, 0)]), "layers": [0, 1]}, r"layers \[2\]"),
        ({"heads": HeadGroups(local=[(0, 4)], global_=[(1, 0)]), "layers": "all"}, "heads 0 to 3"),
        ({"heads": HeadGroups(local=[], global_=[(1, 0)]), "layers": "all"}, "both groups"),
        ({"completion_mask": torch.ones(3, 24)}, "leaves out"),
        ({"completion_mask": torch.zeros(3, 24)}, "no token"),
        ({"completion_mask": torch.ones(3, 9)}, "different shapes"),
        ({"completion_mask": torch.ones(24)}, "completion_mask is"),
    ],
)
def test_bad_settings_are_refused_in_one_line(qwen3, changes, match):
    batch = ragged_batch()
    with pytest.raises(ValueError, match=match) as error:
        attention_signals(qwen3, **(vars(batch) | changes))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_mask_of_another_shape_is_refused(qwen3):
    with pytest.raises(ValueError, match="was given"), SignalCollector(qwen3, PAPER).reading(torch.ones(3, 5).bool()):
        qwen3(input_ids=ragged_batch().input_ids)
    with pytest.raises(ValueError, match="no forward pass"):
        SignalCollector(qwen3, PAPER).finish()
