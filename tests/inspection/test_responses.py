import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rhythm.credit import AnchorCredit, EntropyCredit, MeanMatchedCredit, ShuffledCredit, UniformCredit
from rhythm.inspection.responses import Response, describe, marked_fraction, token_texts
from rhythm.types import AttentionSignals, Rollout
from tests.policies import word_tokenizer

NAN = torch.nan


def byte_tokenizer():
    """One token for each byte: characters beyond ASCII are several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<eos>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_texts_of_tokens_join_to_the_completion():
    words = word_tokenizer(["<pad>", "<eos>", "<unk>", "so", "a", "."])
    assert token_texts([3, 4, 4, 5, 1], words) == ["so", " a", " a", " .", " <eos>"]
    letters = byte_tokenizer()
    assert token_texts(letters("a  b\n$</pre>").input_ids, letters) == list("a  b\n$</pre>")
    assert token_texts([], letters) == []


def test_a_token_of_part_of_a_character_is_not_silently_left_out():
    letters = byte_tokenizer()
    assert "\ufffd" in "".join(token_texts(letters("é").input_ids, letters))


def test_a_row_is_described_up_to_its_length():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rollout = Rollout(
        problems=[{"numbers": [1, 2], "target": 3}] * 2,
        completions=["so a", "a"],
        input_ids=torch.zeros(2, 4, dtype=torch.long),
        attention_mask=torch.ones(2, 4, dtype=torch.bool),
        prompt_lengths=torch.ones(2, dtype=torch.long),
        completion_ids=torch.tensor([[3, 4, 1], [4, 1, 0]]),
        completion_mask=mask,
        truncated=torch.tensor([False, True]),
        rewards=torch.tensor([1.0, 0.0]),
        advantages=torch.tensor([0.5, -0.5]),
        signals=AttentionSignals(
            entropy=torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, NAN]]),
            waad_drop=torch.tensor([[1.0, 3.0, NAN], [2.0, NAN, NAN]]),
            fai=torch.tensor([[0.4, 0.1, NAN], [0.3, NAN, NAN]]),
        ),
        credit=torch.tensor([[1.5, 1.0, 1.0], [1.5, 1.0, 1.0]]),
    )
    words = word_tokenizer(["<pad>", "<eos>", "<unk>", "so", "a"])
    first, second = describe(rollout, words, [0, 1], group_size=2, fraction=0.5)
    assert list(first.values) == ["fai", "entropy", "credit", "waad_drop"]  # WAAD itself was not there
    assert first.preplan.tolist() == [False, True, False]  # half of the two defined drops
    assert first.anchor.tolist() == [True, False, False]
    assert second.tokens == ["a", " <eos>"]
    np.testing.assert_allclose(second.values["entropy"], [0.4, 0.5])
    assert np.isnan(second.values["fai"]).tolist() == [False, True]
    assert second.problem == "numbers [1, 2], target 3"
    assert first.headline() == "reward 1, advantage +0.50, 3 tokens"
    assert second.headline() == "reward 0, advantage -0.50, 2 tokens, truncated"
    eligible = torch.tensor([[False, True, True], [True, True, False]])
    (spared,) = describe(rollout, words, [0], group_size=2, fraction=0.5, eligible=eligible)
    assert spared.anchor.tolist() == [False, True, False]


def test_values_belong_to_tokens():
    with pytest.raises(ValueError, match="fai has 2 values for 1 tokens"):
        Response("", ["a"], values={"fai": np.zeros(2)})
    with pytest.raises(ValueError, match="anchor has 2 values"):
        Response("", ["a"], anchor=np.zeros(2, dtype=bool))


def test_marks_are_as_many_as_the_strategy_selects():
    assert marked_fraction(AnchorCredit(top_fraction=0.2)) == 0.2
    assert marked_fraction(ShuffledCredit(of=MeanMatchedCredit(of=EntropyCredit(top_fraction=0.3)))) == 0.3
    assert marked_fraction(UniformCredit()) == 0.4
