"""Finding an answer in a text, and what can be said of two answers without algebra. Strings alone: any text is safe."""

from __future__ import annotations

import re

MAX_COMPLETION_LENGTH = 100_000  # characters, from the end; what stands before is not read for an answer
MAX_ANSWER_LENGTH = 300  # characters; the longest answer in MATH-500 has 159 (verl, reward_score/math_dapo.py)

_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed\s+(?=[^\s{$])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_INTEGER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)?", re.ASCII)
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:)](?:\s.*)?)?", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol)\s*\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of a text holds, stripped; None where there is none, or it is empty or left open.

    Braces nest; escaped ones, as in \{1, 2\}, are characters like any other. MATH's solutions also write `\boxed 2`
    and \fbox{2} (Hendrycks et al., 2021, math_equivalence.py).
    """
    text = text[-MAX_COMPLETION_LENGTH:]
    last = None
    for last in _BOX.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    if text[last.end()] != "{":
        return text[last.end() :].split("$")[0].split()[0].rstrip(".")
    depth = 0
    for brace in _BRACE.finditer(text, last.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[last.end() + 1 : brace.start()].strip() or None
    return None


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The one group of a pattern's last match in a text, stripped; None where there is none or it is empty."""
    matches = pattern.findall(text[-MAX_COMPLETION_LENGTH:])
    return (matches[-1].strip() or None) if matches else None


def reference_answer(text: str) -> str | None:
    r"""The answer of a worked solution, in its last \boxed{...} or behind GSM8K's `####`; else the text itself."""
    if "\\boxed" in text or "\\fbox" in text:
        return last_boxed(text)
    return text.rpartition("####")[2].strip().strip("$").strip() or None


def compare(reference: str, answer: str) -> bool | None:
    """Whether two answers are equal where that is plain: the same characters, or two integers. Else None."""
    if "".join(reference.split()) == "".join(answer.split()):
        return True
    if _INTEGER.fullmatch(reference) and _INTEGER.fullmatch(answer):
        return _integer(reference) == _integer(answer)
    return None


def choice_letter(text: str) -> str | None:
    r"""The letter of a choice, in capitals: of `B`, `(B)`, `b.`, `B) Paris`, `\text{B}`; None for anything else."""
    found = _LETTER.fullmatch(_unwrapped(text))
    return found[1].upper() if found else None


def plain_text(text: str) -> str:
    r"""An answer in words without what does not count: case, spaces, a full stop, \text{...} and dollar signs."""
    return " ".join(_unwrapped(text).rstrip(".").casefold().split())


def _unwrapped(text: str) -> str:
    return _TEXT.sub(r"\1", text).strip().strip("$").strip()


def _integer(text: str) -> int:
    return int(text.replace(",", "").partition(".")[0])
