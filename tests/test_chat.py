import pytest

from rhythm.chat import Chat
from rhythm.data import collate_prompts
from tests.bases import KINDS, bpe_tokenizer
from tests.training import countdown

PROBLEM = {"numbers": [3, 5, 7], "target": 22}
TASK = countdown(template="Using the numbers {numbers}, make {target}.")


def prompt_of(name, **settings):
    """The text of a prompt's tokens, special ones shown."""
    tokenizer = bpe_tokenizer(KINDS[name])
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    chat = Chat(tokenizer, **settings) if settings or KINDS[name].template else None
    prompts = collate_prompts(TASK, tokenizer, [PROBLEM], chat)
    return tokenizer.decode(prompts.input_ids[0])


def test_a_prompt_is_the_users_turn_and_the_assistants_is_opened():
    assert prompt_of("qwen3_base") == (
        "<|im_start|>user\nUsing the numbers 3 5 7, make 22.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_prompt_comes_before():
    assert prompt_of("qwen3_base", system_prompt="Think.").startswith(
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n"
    )


def test_the_beginning_of_sequence_is_written_once():
    assert prompt_of("r1_distill_llama") == (
        "<｜begin▁of▁sentence｜><｜User｜>Using the numbers 3 5 7, make 22.<｜Assistant｜><think>\n"
    )
    assert prompt_of("llama3") == "<|begin_of_text|>Using the numbers 3 5 7, make 22."  # plain


@pytest.mark.parametrize(("name", "end"), [("qwen3_base", "<|im_end|>"), ("r1_distill_llama", "<｜end▁of▁sentence｜>")])
def test_the_end_of_turn_is_the_special_token_behind_the_assistants_text(name, end):
    tokenizer = bpe_tokenizer(KINDS[name])
    assert Chat(tokenizer).end_of_turn() == tokenizer.convert_tokens_to_ids(end)


def test_a_template_that_ends_turns_with_text_has_no_end_of_turn():
    tokenizer = bpe_tokenizer(KINDS["qwen3_base"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    assert Chat(tokenizer).end_of_turn() is None


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"policy.chat_template=true: the tokenizer comes without a chat template"):
        Chat(bpe_tokenizer(KINDS["llama3"]))
