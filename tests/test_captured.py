"""Decoding in fixed room, which a GPU captures as a graph; here its steps run as they are, and on a GPU as captured."""

import pytest
import torch

from rhythm import rollout
from rhythm.captured import CapturedDecoding, can_capture, is_plain
from rhythm.decoding import make_cache
from rhythm.rollout import sample
from tests.models import tiny_model
from tests.policies import word_tokenizer
from tests.test_rollout import PAD, SLIDING, WORDS, first_steps, greedily, often_ending, peaked, put_on, ragged_prompts

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


@pytest.fixture
def steps(monkeypatch):
    """How many rows and how much room each step had; a small cache, so that it is soon full."""
    seen = []
    step = CapturedDecoding.step

    def counted(self, tokens):
        logits = step(self, tokens)
        seen.append((len(tokens), self.room))
        return logits

    monkeypatch.setattr(CapturedDecoding, "step", counted)
    monkeypatch.setattr("rhythm.captured.ROOM", 16)
    monkeypatch.setattr(rollout, "can_capture", lambda model, cache: True)
    return seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "shared"), [("qwen3", 2), ("qwen3", 4), ("llama", 2)])
@pytest.mark.parametrize("group_size", [1, 3])
def test_greedy_completions_are_those_of_generate(kind, shared, group_size, device, steps):
    model, prompts = peaked(kind, num_key_value_heads=shared).to(device), put_on(device, ragged_prompts())
    eos = often_ending(greedily(model, prompts, None, 50))
    expected = greedily(model, prompts, eos, 50)
    assert len(set(first_steps(expected, eos))) >= 4
    tokenizer = word_tokenizer(WORDS, pad=f"w{PAD}", eos=f"w{eos}")
    found = sample(model, tokenizer, prompts, group_size=group_size, max_completion_tokens=50, temperature=0)
    assert torch.equal(found.completion_ids, expected.repeat_interleave(group_size, 0))
    rooms = [room for _, room in steps]
    assert sorted(set(rooms)) == [24, 64]  # twice the longest prompt; 11 + 50, as it is less than twice as much again
    rows = [count for count, _ in steps]
    assert rows[0] == 6 * group_size > rows[-1]  # finished rows were dropped where the cache grew


def test_room_is_asked_for_with_the_rows_that_are_left():
    model = tiny_model("qwen3")
    ids = torch.ones(4, 16, dtype=torch.long)
    cache = make_cache(model.config)
    model(input_ids=ids, past_key_values=cache)
    decoding = CapturedDecoding(model, cache, torch.ones(4, 16, dtype=torch.bool), torch.full((4, 1), 16), limit=600)
    assert [decoding.should_drop(count) for count in (4, 3, 1)] == [False, False, False]
    decoding.written = decoding.room
    assert [decoding.should_drop(count) for count in (4, 3)] == [False, True]  # it will be captured anew anyway


@pytest.mark.parametrize(
    ("kind", "changes", "plain"),
    [
        ("qwen3", {}, True),
        ("llama", {}, True),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, False),
        ("qwen3", SLIDING, False),
        ("gpt2", {}, False),
    ],
)
def test_what_a_graph_could_not_hold_is_left_to_plain_steps(kind, changes, plain):
    model = tiny_model(kind, **changes)
    cache = make_cache(model.config)
    assert is_plain(model, cache) == plain
    assert not can_capture(model, cache)  # on a CPU
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert not is_plain(model, cache)


def test_another_attention_than_sdpa_is_left_to_plain_steps():
    """Eager attention adds the mask to the scores, and a captured step's is True and False."""
    model = tiny_model("qwen3")
    model.set_attn_implementation("eager")
    assert not is_plain(model, make_cache(model.config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_a_gpu_it_is_chosen_where_it_can_be():
    for kind, changes, expected in (("qwen3", {}, True), ("llama", {}, True), ("qwen3", SLIDING, False)):
        model = tiny_model(kind, **changes).to("cuda")
        assert can_capture(model, make_cache(model.config)) == expected
