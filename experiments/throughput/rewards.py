"""The verifiers, the same on both sides. They need torch and datasets alone, as TRL's environment has them."""

from __future__ import annotations

from rhythm.tasks.base import Problem
from rhythm.tasks.countdown import Countdown


class Parity(Countdown):
    """Whether the text has an odd number of characters: a random policy would never be right, and learn nothing."""

    def reward(self, problem: Problem, completion: str) -> float:
        return float(len(completion) % 2)


REWARDS = {"countdown": Countdown, "parity": Parity}
