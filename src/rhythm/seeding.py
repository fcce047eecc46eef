"""Randomness is counted, not carried: every draw follows from (seed, purpose, iteration, rank).

A run resumed at iteration i therefore draws what it would have drawn, with no generator state restored.
"""

from __future__ import annotations

import torch
from numpy.random import SeedSequence

PURPOSES = (
    "prompts",
    "sampling",
    "minibatches",
    "credit",
    "evaluation",
    "adapter",
    "bootstrap",
    "permutation",
    "inspection",
)


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose; other purposes and counters give independent ones.

    Counters that are left out count as 0, so keep to one number of them within a purpose.
    """
    sequence = SeedSequence([seed, PURPOSES.index(purpose), *counters])
    return int(sequence.generate_state(1, "uint64")[0]) >> 1


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *counters))


def seed_adapter(seed: int) -> None:
    """Seeds torch's own generator, from which PEFT draws a new adapter."""
    torch.manual_seed(derive_seed(seed, "adapter"))
