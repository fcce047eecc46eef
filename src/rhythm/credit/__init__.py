"""Which tokens of a response deserve its advantage, and how much of it."""

from rhythm.credit.anchor import AnchorCredit
from rhythm.credit.base import CreditStrategy, SelectiveCredit, amplify, row_noise, top_tokens
from rhythm.credit.controls import MeanMatchedCredit, ShuffledCredit
from rhythm.credit.coupled import CoupledCredit
from rhythm.credit.entropy import EntropyCredit
from rhythm.credit.preplan import PreplanCredit
from rhythm.credit.random import RandomCredit
from rhythm.credit.uniform import UniformCredit

__all__ = [
    "AnchorCredit",
    "CoupledCredit",
    "CreditStrategy",
    "EntropyCredit",
    "MeanMatchedCredit",
    "PreplanCredit",
    "RandomCredit",
    "SelectiveCredit",
    "ShuffledCredit",
    "UniformCredit",
    "amplify",
    "row_noise",
    "top_tokens",
]
