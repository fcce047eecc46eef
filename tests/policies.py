"""A tiny policy in a folder, as a user would bring one: a random peaked model and a real word-level tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rhythm.policy import Policy
from tests.models import tiny_model

SPECIALS = ["<pad>", "<eos>", "<unk>"]
WORDS = [*SPECIALS, *map(str, range(40)), *"+-*/():.", "numbers", "target", "my", "answer", "is", "so", "then", "a"]


def word_tokenizer(words: Sequence[str], *, pad: str | None = "<pad>", eos: str = "<eos>") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; the id of a word is its place."""
    unknown = "<unk>" if "<unk>" in words else words[0]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unknown, padding_side="left"
    )


@torch.no_grad()
def save_tiny_policy(folder: Path, kind: str = "qwen3", **changes) -> Path:
    """A model of 3 layers whose next token is not near uniform either, with its tokenizer."""
    tokenizer = word_tokenizer(WORDS)
    model = tiny_model(
        kind, vocab_size=len(WORDS), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **changes
    )
    model.get_output_embeddings().weight *= 10
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def perturb(policy: Policy, scale: float = 0.03, seed: int = 0) -> Policy:
    """Moves the adapter away from zero: B starts there, so a fresh adapter changes nothing."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return policy
