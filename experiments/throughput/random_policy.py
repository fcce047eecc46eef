"""A random Qwen3 of 30 million parameters: `python experiments/throughput/random_policy.py FOLDER`.

It has the embedded policy's words. Its tokenizer's end of sequence lies beyond the model's vocabulary, so that every
completion runs to the limit.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

EMBEDDED = Path(__file__).parents[2] / "src/rhythm/assets/tiny_countdown"


def main(folder: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, padding_side="left")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=len(tokenizer),
    )
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main(sys.argv[1])
