"""Reinforcement learning of LoRA-adapted language models in which attention says where the credit goes.

Importing the package loads neither Lightning nor Hydra: each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "attention_signals": "rhythm.attention",
    "AttentionSignals": "rhythm.types",
    "HeadGroups": "rhythm.types",
    "CreditStrategy": "rhythm.credit",
    "UniformCredit": "rhythm.credit",
    "RandomCredit": "rhythm.credit",
    "EntropyCredit": "rhythm.credit",
    "PreplanCredit": "rhythm.credit",
    "AnchorCredit": "rhythm.credit",
    "CoupledCredit": "rhythm.credit",
    "ShuffledCredit": "rhythm.credit",
    "MeanMatchedCredit": "rhythm.credit",
    "GRPOModule": "rhythm.module",
    "Policy": "rhythm.policy",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rhythm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
