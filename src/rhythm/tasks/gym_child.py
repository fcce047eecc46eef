"""The scorer of a reasoning-gym task: this runs in a child process with a deadline.

A problem carries what it takes to make it again, so that the generator's metadata, which is no plain data, never
travels.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import reasoning_gym


def score(problem: Mapping[str, Any], answer: str) -> float:
    """The task's own score of an answer, between 0 and 1."""
    return _generated(*_recipe(problem)).score_answer(answer, entry_of(problem))


def entry_of(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's question, answer and metadata."""
    return _generated(*_recipe(problem))[problem["index"]]


def questions(name: str, size: int, seed: int, settings: str) -> list[str]:
    """What a generator asks with some settings, which are JSON."""
    return [entry["question"] for entry in _generated(name, size, seed, settings)]


def _recipe(problem: Mapping[str, Any]) -> list[Any]:
    return [problem[key] for key in ("name", "size", "seed", "settings")]


@functools.lru_cache(maxsize=8)
def _generated(name: str, size: int, seed: int, settings: str) -> Any:
    return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(settings))
