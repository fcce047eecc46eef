"""Tiny base models with the special tokens, templates and generation configs of those on the hub.

Tokenizers are byte-level BPE, trained here on a few lines; models are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.models import tiny_model

TEXT = [
    "Using the numbers 3 5 7, make an equation that equals 22. <answer> 3 * 5 + 7 </answer>",
    "Please reason step by step, and put your final answer within \\boxed{}. naïve café → 12",
    "so the answer is 1 + 2\n\nQuestion: what is 4 - 1?\n\nAnswer: 3\n",
] * 4
# Qwen3's template without tools and thinking; huggingface.co/Qwen/Qwen3-4B-Base, tokenizer_config.json.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Llama-8B, tokenizer_config.json, without tools.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """What tells one family of base models from another."""

    architecture: str
    specials: list[str]
    eos: str
    bos: str | None = None  # written before every plain prompt
    pad: str | None = None
    template: str | None = None
    ends: tuple[str, ...] = ()  # of generation_config.json
    tied: bool = True


KINDS = {
    "qwen3_base": Kind(
        "qwen3",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        template=CHATML,
        ends=("<|endoftext|>",),
    ),
    "qwen3": Kind(  # after post-training it ends with either
        "qwen3",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=CHATML,
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "llama3": Kind(
        "llama",
        ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"],
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        ends=("<|end_of_text|>",),
        tied=False,
    ),
    "r1_distill_llama": Kind(
        "llama",
        [
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<|finetune_right_pad_id|>",
            "<｜User｜>",
            "<｜Assistant｜>",
        ],
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        pad="<｜end▁of▁sentence｜>",
        template=R1,
        ends=("<｜end▁of▁sentence｜>",),
        tied=False,
    ),
}


def bpe_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=kind.specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if kind.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, tokenizer.token_to_id(kind.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=kind.eos,
        bos_token=kind.bos,
        pad_token=kind.pad,
        chat_template=kind.template,
    )


def save_base(folder: Path, name: str, **changes) -> Path:
    """A random base of 3 layers in the folder, with more output columns than its tokenizer has tokens, as Qwen's."""
    kind = KINDS[name]
    tokenizer = bpe_tokenizer(kind)
    model = tiny_model(
        kind.architecture,
        vocab_size=len(tokenizer) + 8,
        tie_word_embeddings=kind.tied,
        num_key_value_heads=2,
        **changes,
    )
    ends = [tokenizer.convert_tokens_to_ids(end) for end in kind.ends]
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0], do_sample=True, temperature=0.6, top_p=0.95
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
