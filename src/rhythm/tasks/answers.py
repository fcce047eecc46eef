"""Finding an answer in a text, and what can be said of two answers without algebra. Strings alone: any text is safe."""

from __future__ import annotations

import re
from string import ascii_lowercase

MAX_COMPLETION_LENGTH = 100_000  # characters, from the end; what stands before is not read for an answer
MAX_ANSWER_LENGTH = 300  # characters; the longest answer in MATH-500 has 159 (verl, reward_score/math_dapo.py)

_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed\s+(?=[^\s{$])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"([+-]?)(?=\.?\d)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,300}))?", re.ASCII)
_POWER_OF_TEN = re.compile(r"(?:(.+)(?:\\times|\\cdot|[×·*])|([+-]?))10\^\{?([+-]?\d+)\}?", re.ASCII)
_NO_DIGIT = re.compile(r"[\s$]|\\!")  # of a number, white space among it
_COMMA = re.compile(r"\{,\}|\\,")
_WORD = re.compile(r"[A-Za-z][a-z]+", re.ASCII)
_PERCENT = re.compile(r"(?:\\?%|(?<![\\A-Za-z])percent)(?!\s*\w)")
_LETTER = re.compile(r"\(?([a-z])(?:\)[.:]?|[.:])?(?:(?<=[).:]) (.*))?")
_OPTION = re.compile(r"(?<!\w)[(\[]?([a-z])(?:[)\]][.:]?|[.:]) ?")
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
    r"""Whether two answers are equal where that is plain: the same characters, words or numbers. Else None.

    Numbers are 72, 1,000, -.5, 6.6e-34, 6.6 \times 10^{-34} and 10^{-34}, and are equal where every digit is. In words
    a capital at the beginning does not count.
    """
    if "".join(reference.split()) == "".join(answer.split()):
        return True
    if _WORD.fullmatch(reference) and _WORD.fullmatch(answer) and reference.casefold() == answer.casefold():
        return True
    numbers = _number(reference), _number(answer)
    return None if None in numbers else numbers[0] == numbers[1]


def without_percent(text: str) -> str:
    """An answer without its percent signs: 20% is 20, as in Hendrycks et al., 2021, math_equivalence.py."""
    return _PERCENT.sub("", text)


def lettered(text: str) -> tuple[str, str] | None:
    r"""The letter of a choice, small, and the words behind it, plain: of `B`, `(B)`, `b.`, `\text{B}`, `B) Paris`.

    None for anything else. Whether it is a choice or a name, such as E. coli, only the problem can say: `is_option`.
    """
    found = _LETTER.fullmatch(plain_text(text))
    return (found[1], found[2] or "") if found else None


def is_option(problem: str, letter: str, words: str) -> bool:
    """Whether a problem lists an option of that letter whose text begins with the words.

    A list has A., A), (A), [A] or A:, then B and so on without a gap up to the letter: an E. alone, or that of
    "B. E. coli", begins a name.
    """
    problem = plain_text(problem)
    places = _marks(problem)
    up_to_it = ascii_lowercase[: max(2, ascii_lowercase.index(letter) + 1)]
    listed = {found for found, _ in places}.issuperset(up_to_it)
    return listed and any(found == letter and _stand_at(place, words, problem) for found, place in places)


def lists_options(problem: str) -> bool:
    """Whether a problem lists options A and B at least, in one of the forms of `is_option`."""
    return {found for found, _ in _marks(plain_text(problem))} >= {"a", "b"}


def _marks(problem: str) -> list[tuple[str, int]]:
    """The letters that may begin an option, each with the place behind its mark."""
    marks = list(_OPTION.finditer(problem))
    ends = {mark.end() for mark in marks}
    return [(mark[1], mark.end()) for mark in marks if mark.start() not in ends]


def plain_text(text: str) -> str:
    r"""An answer in words without what does not count: case, spaces, a full stop, \text{...}, $ and **."""
    return " ".join(_unwrapped(text).rstrip(".").casefold().split())


def _unwrapped(text: str) -> str:
    return _TEXT.sub(r"\1", text).replace("$", "").replace("**", "").strip()


def _stand_at(place: int, words: str, text: str) -> bool:
    end = place + len(words)
    return not words or (text.startswith(words, place) and not text[end : end + 1].isalnum())


def _number(text: str) -> tuple[str, str, int] | None:
    """Sign, digits from the first to the last that is no zero, and the power of ten behind them; None for no number.

    Equal numbers are equal here, and the length of an exponent's value costs nothing.
    """
    if re.search(r",\s", text):  # two numbers, and no thousands
        return None
    text = _COMMA.sub(",", _NO_DIGIT.sub("", text))
    if power := _POWER_OF_TEN.fullmatch(text):
        text = f"{power[1] or power[2] + '1'}e{power[3]}"
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, whole, part, exponent = found.groups(default="")
    digits = (whole.replace(",", "") + part).lstrip("0")
    shortest = digits.rstrip("0")
    if not shortest:
        return "", "", 0
    return sign.strip("+"), shortest, int(exponent or 0) - len(part) + len(digits) - len(shortest)
