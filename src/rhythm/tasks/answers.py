"""Finding an answer in a text, and what can be said of two answers without algebra. Strings alone: any text is safe."""

from __future__ import annotations

import re

MAX_COMPLETION_LENGTH = 100_000  # characters, from the end; what stands before is not read for an answer
MAX_ANSWER_LENGTH = 300  # characters; the longest answer in MATH-500 has 159 (verl, reward_score/math_dapo.py)

_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed\s+(?=[^\s{$])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"([+-]?)(?=\.?\d)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,300}))?", re.ASCII)
_POWER_OF_TEN = re.compile(r"(?:(.+)(?:\\times|\\cdot|[×·*])|([+-]?))10\^\{?([+-]?\d+)\}?", re.ASCII)
_SPACE = re.compile(r"(?<!\d) | (?!\d)| (?=\d{3}(?!\d))", re.ASCII)  # 1 1/2 is not 11/2, but 1 000 is 1000
_NO_DIGIT = re.compile(r"\$|\\!")
_COMMA = re.compile(r"\{,\}|\\,")
_WORD = re.compile(r"(?=.*[AEIOUYaeiouy])[A-Za-z][a-z]+", re.ASCII)  # mgh is a product
_PERCENT = re.compile(r"(?:\\?%|(?<![\\A-Za-z])percent)(?!\s*\w)")
_LETTER = re.compile(r"[(\[]?([a-z])(?:[)\]][.:]?|[.:])?(?:(?:(?<=[)\]]) ?|(?<=[.:]) )(.*))?")
_MARK = re.compile(r"(?<![\w(\[])([(\[]?)([a-z])([)\]][.:]?|[.:])[^\S\n]*")
_STYLED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
_BOLD = re.compile(r"(?<!\w)\*\*([^*\n]+)\*\*(?!\w)")
_ESCAPE = re.compile(r"\\([%&#_])|\\?\$|\\!")
_GAP = re.compile(r"~|\\[ ,;:]|\\quad(?![a-z])")


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
    if _close(reference) == _close(answer):
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

    None for anything else. Whether it is a choice or a name, such as E. coli, only the problem can say: `options`.
    """
    found = _LETTER.fullmatch(plain_text(text))
    return (found[1], found[2] or "") if found else None


def options(problem: str) -> list[dict[str, str]]:
    """The lists of options that a problem can be read to have, each from small letters to plain texts.

    A list has A., A), (A), [A] or A:, then B in the same form and so on without a gap, wherever they stand or each at
    the beginning of a line. The E. of "B. E. coli" is none of them, and neither is one that stands alone.
    """
    problem = _unwrapped(problem).casefold()
    forms: dict[tuple[str, str, bool], list[re.Match[str]]] = {}
    ends: dict[tuple[str, str], int] = {}
    for mark in _MARK.finditer(problem):
        form = mark[1], mark[3]
        if ends.get(form) != mark.start():  # else an initial behind a mark
            begins = not problem[problem.rfind("\n", 0, mark.start()) + 1 : mark.start()].strip()
            for of_lines in {False, begins}:
                forms.setdefault((*form, of_lines), []).append(mark)
        ends[form] = mark.end()
    starts = [marks[i:] for marks in forms.values() for i, mark in enumerate(marks) if mark[2] == "a"]
    return [listed for marks in starts if len(listed := _list(problem, marks)) > 1]


def is_option(listed: dict[str, str], letter: str, words: str) -> bool:
    """Whether a list has an option of that letter whose text begins with the words."""
    text = listed.get(letter, "")
    return letter in listed and text.startswith(words) and not (words and text[len(words) : len(words) + 1].isalnum())


def _list(problem: str, marks: list[re.Match[str]]) -> dict[str, str]:
    """The options from the first mark on, each marked by the next letter."""
    chain = marks[:1]
    for mark in marks[1:]:
        if ord(mark[2]) == ord(chain[-1][2]) + 1:
            chain.append(mark)
    ends = [mark.start() for mark in chain[1:]] + [len(problem)]
    return {mark[2]: plain_text(problem[mark.end() : end]) for mark, end in zip(chain, ends, strict=True)}


def plain_text(text: str) -> str:
    r"""An answer in words without what does not count: case, spaces, a full stop, \text{...}, $ and **, and escapes."""
    return " ".join(_unwrapped(text).strip().rstrip(".").casefold().split())


def _unwrapped(text: str) -> str:
    r"""A text without its LaTeX of style, where two are nested at most: \text{\textbf{(B)}}\ 20\% is (B) 20%."""
    text = _STYLED.sub(r"\1", _STYLED.sub(r"\1", text))
    text = _GAP.sub(" ", _ESCAPE.sub(r"\1", _BOLD.sub(r"\1", text)))
    return text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")


def _close(text: str) -> str:
    """A text without white space, but between numbers."""
    return _SPACE.sub("", " ".join(text.split()))


def _number(text: str) -> tuple[str, str, int] | None:
    """Sign, digits from the first to the last that is no zero, and the power of ten behind them; None for no number.

    Equal numbers are equal here, and the length of an exponent's value costs nothing.
    """
    if re.search(r",[\s$]", text):  # two numbers, and no thousands
        return None
    text = _COMMA.sub(",", _NO_DIGIT.sub("", _close(text)))
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
