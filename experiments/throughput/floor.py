"""What an iteration cannot be faster than on this machine: its floating point operations by a measured matmul rate."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from rhythm.attention.implementation import decoder
from rhythm.types import Rollout


def flops(model: nn.Module, rollout: Rollout, group_size: int) -> dict[str, float]:
    """Operations of the products that each stage needs, nothing padded and nothing computed twice.

    A token costs 2 a weight, its attention 4 a channel and key seen; a backward pass as much again for the input and
    twice as much for attention; the gradients of A and B four products of rank r.
    """
    config = decoder(model).config
    linear = [module for module in model.get_base_model().modules() if isinstance(module, nn.Linear)]
    adapters = [layer for module in model.modules() if isinstance(module, LoraLayer) for layer in adapter(module)]
    weights = sum(layer.weight.numel() for layer in linear if layer not in adapters)
    channels = config.num_hidden_layers * config.num_attention_heads * config.head_dim

    prompts = rollout.prompt_lengths.double()
    completions = rollout.completion_mask.sum(1).double()
    tokens = prompts + completions
    attention = 2 * channels * tokens**2
    once = torch.zeros_like(tokens)
    once[::group_size] = prompts[::group_size]  # a prompt is read once for its group
    learning = (rollout.advantages != 0).double()
    gradients = 4 * sum(layer.weight.numel() for layer in adapters)
    found = {
        "sample": 2 * weights * (once + completions) + attention,
        "score": 2 * weights * tokens + attention,
        "update": learning * ((4 * weights + gradients) * tokens + 3 * attention),
    }
    return {stage: float(each.sum()) for stage, each in found.items()}


def adapter(layer: LoraLayer) -> list[nn.Module]:
    return [*layer.lora_A.values(), *layer.lora_B.values()]


def matmul_rate(device: str = "cpu", repeats: int = 30) -> float:
    """Operations a second of square float32 products, on a CPU with as many threads as torch has now."""
    size = 1024 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - started)
    return 2 * size**3 / median(seconds)
