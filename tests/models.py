"""Tiny random models with peaked attention, and their attention signals by plain float64 loops over eager maps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


def tiny_model(kind: str, **changes) -> nn.Module:
    """A causal model of 3 layers of 4 heads: "qwen3", "llama" or "gpt2", with peaked attention, in eval mode."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=128, **changes)
    else:
        kinds = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}
        config = kinds[kind](**(SIZES | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    sharpen(model)
    return model


@torch.no_grad()
def sharpen(model: nn.Module) -> None:
    """Scale queries and keys until the median entropy of attention rows is under half of that of uniform rows.

    Random weights attend almost uniformly, and on uniform maps most errors of arithmetic would pass unseen.
    """
    ids = torch.arange(48)[None] % model.config.vocab_size
    for _ in range(12):
        if row_entropy(model, ids) < 0.5:
            break
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight *= 1.5
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                weight *= 2
            elif name.endswith("c_attn.weight"):
                weight[:, : 2 * model.config.hidden_size] *= 2
    assert row_entropy(model, ids) < 0.5, "attention stays flat"


def row_entropy(model: nn.Module, ids: Tensor) -> float:
    """Median entropy of attention rows, as a share of that of a uniform row."""
    maps = torch.stack(eager_maps(model, ids, torch.ones_like(ids)))[..., 1:, :]  # the first row has one entry
    uniform = torch.arange(2, ids.shape[1] + 1).log()
    return (torch.special.entr(maps).sum(-1) / uniform).median().item()


@torch.no_grad()
def eager_maps(model: nn.Module, ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
    """Attention of every layer, [B, H, S, S] each, from an eager copy of the model."""
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    output = eager(input_ids=ids, attention_mask=attention_mask, position_ids=positions, output_attentions=True)
    return list(output.attentions)


@dataclass
class Batch:
    input_ids: Tensor  # [B, S]
    attention_mask: Tensor  # [B, S]
    completion_mask: Tensor  # [B, S] bool

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.completion_mask[rows])


def ragged_batch(side: str = "right", prompts=(4, 9, 2), completions=(20, 7, 13)) -> Batch:
    """Random tokens with padding on one side; each row is its prompt and, right behind it, its completion."""
    generator = torch.Generator().manual_seed(1)
    width = max(p + c for p, c in zip(prompts, completions, strict=True))
    ids = torch.randint(1, 61, (len(prompts), width), generator=generator)
    tokens, responses = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = 0 if side == "right" else width - prompt - completion
        tokens[row, start : start + prompt + completion] = 1
        responses[row, start + prompt : start + prompt + completion] = 1
    return Batch(ids * tokens, tokens, responses.bool())


@dataclass
class Reference:
    """Per-head signals of every layer, by the definitions, one response token after the other."""

    distance: Tensor  # [L, H] sums over response rows
    rows: int
    waad: Tensor  # [L, H, B, S]
    fai: Tensor  # [L, H, B, S]


def reference(
    maps: list[Tensor], mask: Tensor, window: int, horizon: tuple[int, int | None], shift: int = 0
) -> Reference:
    """Eq. 7, 9 and 10 in float64. `shift` makes every t−s wrong by so much: what a test must notice."""
    attention = torch.stack(maps).double().transpose(1, 2)  # [L, H, B, S, S]
    low, high = horizon[0], math.inf if horizon[1] is None else horizon[1]
    shape = attention.shape[:-1]
    waad, fai = torch.full(shape, torch.nan, dtype=torch.float64), torch.full(shape, torch.nan, dtype=torch.float64)
    distance = torch.zeros(shape[:2], dtype=torch.float64)
    for b, row in enumerate(mask):
        response = row.nonzero().flatten().tolist()
        for t in response:
            gaps = [max(0, t - s + shift) for s in range(t + 1)]
            seen = attention[:, :, b, t, : t + 1]
            distance += (seen * torch.tensor(gaps)).sum(-1)
            waad[:, :, b, t] = (seen * torch.tensor([min(gap, window) for gap in gaps])).sum(-1)
            later = [u for u in response if low <= u - t + shift <= high]
            if later:
                fai[:, :, b, t] = attention[:, :, b, later, t].mean(-1)
    return Reference(distance, int(mask.sum()), waad, fai)
