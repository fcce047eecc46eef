"""Whether two mathematical answers are equal, by math-verify: this runs in a child process with a deadline.

Its imports are made when the child starts, so that the deadline of an answer is spent on the answer. math-verify's own
deadlines use `signal.alarm`, which fails off the main thread and cannot end a power that is computed in C.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

# LaTeX alone: what math-verify takes for a plain expression goes to sympy.parse_expr, which evaluates it as Python.
LATEX = (LatexExtractionConfig(boxed_match_priority=0),)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own deadlines are off


def equal(problem: Mapping[str, Any], answer: str) -> float:
    r"""1.0 where an answer equals `problem["answer"]`, both in LaTeX and without \boxed, else 0.0."""
    return float(verify(_read(problem["answer"]), _read(answer), timeout_seconds=None))


def _read(text: str) -> list[Any]:
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)  # Minerva's 4.5e33 is else read as 4.5 · e · 33
    return parse(f"\\boxed{{{text}}}", extraction_config=LATEX, parsing_timeout=None)
