"""Ends of completions: several tokens, and text that tokens make together."""

import pytest
import torch

from rhythm.rollout import sample
from rhythm.stopping import Stopping, look_up
from tests.bases import KINDS, bpe_tokenizer
from tests.models import tiny_model
from tests.policies import WORDS, word_tokenizer
from tests.test_rollout import PAD, first_steps, greedily, peaked, ragged_prompts

BPE = bpe_tokenizer(KINDS["qwen3_base"])
SETTINGS = {"group_size": 1, "max_completion_tokens": 24, "temperature": 0}


def ids_of(text, tokenizer=BPE):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stops_at(stopping, ids):
    """The number of tokens after which a completion that goes on as `ids` is ended; None where it never is."""
    written, row = torch.tensor([ids]), torch.tensor([0])
    return next((t for t in range(1, len(ids) + 1) if stopping.ended(written[:, :t], row)), None)


def plainly(ids, strings, tokenizer=BPE):
    """The same by decoding everything after every token."""
    texts = [tokenizer.decode(ids[:t], skip_special_tokens=True) for t in range(1, len(ids) + 1)]
    return next((t for t, text in enumerate(texts, 1) if any(string in text for string in strings)), None)


@pytest.mark.parametrize("string", ["</answer>", "\n\n", "Question:", "é", "→", "s 22", ". <", "answer> 3"])
def test_a_string_ends_a_completion_with_the_token_that_completes_it(string):
    text = "so the answer is 1 + 2 naïve café → 12 equals 22. <answer> 3 </answer> \n\nQuestion: what"
    for ids in (ids_of(text), [token for c in text for token in ids_of(c)]):  # as few tokens as may be, and as many
        expected = plainly(ids, [string])
        assert expected is not None
        assert stops_at(Stopping(BPE, strings=[string]), ids) == expected


def test_random_tokens_are_stopped_where_decoding_everything_stops_them():
    draw = torch.Generator().manual_seed(0)
    strings = ["a", "é", " 1", "\n\n", "is"]
    stopping = Stopping(BPE, strings=strings)
    found = 0
    for _ in range(60):
        ids = torch.randint(4, len(BPE), (20,), generator=draw).tolist()
        ids = [token for token in ids if token not in stopping.token_ids]
        assert stops_at(stopping, ids) == plainly(ids, strings)
        found += plainly(ids, strings) is not None
    assert 20 < found < 60


def test_special_tokens_within_a_string_do_not_hide_it():
    start, turn = BPE.convert_tokens_to_ids("<|im_start|>"), BPE.convert_tokens_to_ids("<|im_end|>")
    first, *rest = ids_of("</answer>")
    ids = [*ids_of("so"), first, *[start, turn] * 9, *rest]
    assert stops_at(Stopping(BPE, strings=["</answer>"]), ids) == len(ids)


def test_words_are_read_with_the_spaces_between_them():
    tokenizer = word_tokenizer(WORDS)
    ids = ids_of("so my answer is 1 + 2", tokenizer)
    assert stops_at(Stopping(tokenizer, strings=["answer is"]), ids) == 4
    assert stops_at(Stopping(tokenizer, strings=["is my", "1 + 2"]), ids) == 7


def test_a_string_that_the_tokenizer_cannot_write_is_refused():
    for string in ("</answer>", ""):
        with pytest.raises(ValueError, match=r"policy.stop_strings: the tokenizer cannot write '.*'; leave it out"):
            Stopping(word_tokenizer(WORDS), strings=[string])


def test_ids_beyond_the_tokenizer_are_no_text():
    assert look_up(torch.tensor([True, False]), torch.tensor([0, 1, 2, 900])).tolist() == [True, False, False, False]


# ---- in sampling


def test_any_of_several_ends_ends_a_completion_and_belongs_to_it():
    model, prompts = peaked("qwen3"), ragged_prompts()
    free = greedily(model, prompts, None, 24)
    steps = {t: first_steps(free, t) for t in free.unique().tolist() if t != PAD}
    one, other = sorted(steps, key=lambda t: len(set(steps[t])))[-2:]
    tokenizer = word_tokenizer([f"w{i}" for i in range(61)], pad="w0", eos=f"w{one}")
    expected = [min(a, b) for a, b in zip(steps[one], steps[other], strict=True)]
    assert expected != steps[one]
    rollout = sample(model, tokenizer, prompts, **SETTINGS, stopping=Stopping(tokenizer, [other]))
    assert rollout.completion_mask.sum(1).tolist() == [min(end + 1, 24) for end in expected]
    assert rollout.truncated.tolist() == [end == 24 for end in expected]
    for row, end in enumerate(expected):
        if end < 24:
            assert int(rollout.completion_ids[row, end]) in (one, other)


def test_completions_stop_at_a_string_with_mask_and_text_up_to_its_last_token():
    model, prompts = peaked("qwen3"), ragged_prompts()
    free = greedily(model, prompts, None, 24)
    words = [f"w{i}" for i in range(61)]
    tokenizer = word_tokenizer(words, pad="w0", eos="w1")
    assert not (free == 1).any()
    texts = [tokenizer.decode(row, skip_special_tokens=True).split() for row in free.tolist()]
    string = " ".join(texts[0][4:6])  # of two words
    expected = [plainly(row, [string], tokenizer) for row in free.tolist()]
    assert expected[0] is not None
    assert None in expected
    rollout = sample(model, tokenizer, prompts, **SETTINGS, stopping=Stopping(tokenizer, strings=[string]))
    assert rollout.completion_mask.sum(1).tolist() == [24 if end is None else end for end in expected]
    assert rollout.truncated.tolist() == [end is None for end in expected]
    assert rollout.completions[0].endswith(string)
    for row, end in enumerate(expected):
        assert torch.equal(rollout.completion_ids[row, :end], free[row, :end])


def test_a_model_may_write_tokens_that_its_tokenizer_does_not_have():
    model = tiny_model("qwen3", vocab_size=len(BPE) + 8)
    draw = torch.Generator().manual_seed(0)
    prompts = ragged_prompts((3, 5))
    settings = {"group_size": 20, "max_completion_tokens": 12, "generator": draw}
    BPE.pad_token = "<|vision_pad|>"
    rollout = sample(model, BPE, prompts, **settings, stopping=Stopping(BPE, strings=["</answer>"]))
    assert (rollout.completion_ids >= len(BPE)).any()
