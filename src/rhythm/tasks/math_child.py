"""Whether two mathematical answers are equal, by math-verify: this runs in a child process with a deadline.

Its imports are made when the child starts, so that the deadline of an answer is spent on the answer. math-verify's own
deadlines use `signal.alarm`, which fails off the main thread and cannot end a power that is computed in C.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import LatexExtractionConfig, parse, parser, verify
from math_verify.grader import take_last_relation
from sympy import Expr, FiniteSet, Interval, Number, Symbol, Tuple
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

# LaTeX alone: what math-verify takes for a plain expression goes to sympy.parse_expr, which evaluates it as Python.
LATEX = (LatexExtractionConfig(boxed_match_priority=0),)
DIGITS = 5  # in which two numbers agree at least, however small they are
ZERO = 1e-90  # what evalf leaves of a sum that is zero is smaller: it works with a hundred digits
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own deadlines are off
# `parse` has no option for it, and would read R as r.
parser.latex2sympy = partial(parser.latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False))


def equal(problem: Mapping[str, Any], answer: str) -> float:
    r"""1.0 where an answer equals `problem["answer"]`, both in LaTeX and without \boxed, else 0.0."""
    reference, given = _read(problem["answer"]), _read(answer)
    if not verify(reference, given, timeout_seconds=None):
        return 0.0
    return float(not _differ_in_case(reference, given) and not _differ_as_numbers(reference[0], given[0]))


def _read(text: str) -> list[Any]:
    """An answer as an expression, where it is one, and as LaTeX."""
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)  # Minerva's 4.5e33 is else read as 4.5 · e · 33
    return parse(f"\\boxed{{{text}}}", extraction_config=LATEX, parsing_timeout=None)


def _differ_in_case(reference: list[Any], given: list[Any]) -> bool:
    r"""Whether two are symbols of other names, R_1 and r_1, of which `verify` takes case for nothing, and no words."""
    symbols = isinstance(reference[0], Symbol) and isinstance(given[0], Symbol)
    words = reference[-1].startswith("\\text") and given[-1].startswith("\\text")
    return symbols and not words and reference[0].name != given[0].name


def _differ_as_numbers(reference: Any, given: Any) -> bool:
    """Whether two numbers, or as many in a set, a tuple or an interval, are equal to `verify` for being small alone.

    It compares decimals at the sixth place and takes a difference under 1e-15 for none.
    """
    reference, given = _right_sides(reference, given)
    left, right = _numbers(reference), _numbers(given)
    if len(left) != len(right):
        return False
    return any(abs(a - b) > max(abs(a), abs(b)) * 10**-DIGITS for a, b in zip(left, right, strict=True))


def _right_sides(*expressions: Any) -> list[Any]:
    """Of x = 2 beside 2, or beside another x = 3, the right sides; anything else as it is."""
    relations = [take_last_relation(each) if isinstance(each, Boolean) else None for each in expressions]
    named = {each.lhs for each in relations if isinstance(each, Relational)}
    if len(named) > 1:
        return list(expressions)
    return [
        relation.rhs if isinstance(relation, Relational) else each
        for each, relation in zip(expressions, relations, strict=True)
    ]


def _numbers(expression: Any) -> list[Number]:
    """The real numbers in a set, a tuple or an interval, or the one that the expression is, in order of size."""
    parts = [expression]
    if isinstance(expression, Interval):
        parts = [expression.start, expression.end]
    elif isinstance(expression, (FiniteSet, Tuple)):
        parts = expression.args
    values = [part.evalf(2 * DIGITS) for part in parts if isinstance(part, Expr) and part.is_number]
    values = [value for value in values if isinstance(value, Number) and value.is_finite]
    return sorted(value if abs(value) > ZERO else Number(0) for value in values)
