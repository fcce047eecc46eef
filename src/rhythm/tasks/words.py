"""Which words of a text say something."""

from __future__ import annotations

import re

# English words of grammar: articles, pronouns, prepositions, conjunctions, auxiliaries and the adverbs that tie a text.
_GRAMMAR = """
a an the this that these those i me my mine we us our you your he him his she her it its they them their who whom
whose which what where when why how there here about above across after again against all along also although am
among and another any are as at back be because been before being below between both but by can cannot could did do
does doing done down during each either else even ever every few first for from further get got had has have having
if in into is just last least less let like may maybe might more most much must neither next no nor not now of off
okay on once one only onto or other others ought out over own perhaps per rather said same second shall should since
so some still such than then thence therefore third though through thus to too toward under until up upon very was
way were while will with within without would yes yet
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # letters and digits of any script


def numbers_in(text: str) -> set[str]:
    """The distinct numbers of a text as they are written, without signs."""
    return set(_NUMBER.findall(text))


def content_words(text: str) -> set[str]:
    """The distinct words and numbers of a text in lower case, without English function words."""
    return {word.lower() for word in _WORD.findall(text)} - FUNCTION_WORDS
