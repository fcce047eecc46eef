"""ZebraLogic (Lin et al., 2025, arXiv:2502.01100): who lives in which house, from clues in words.

The answer is the benchmark's: JSON that gives each house its value of each attribute, right where every cell is
(github.com/WildEval/ZeroEval, ZEBRA_GRID). The benchmark asks for the reasoning inside that JSON and shows a worked
example; here the policy reasons in plain text before it, so that the reasoning has no quoting to learn.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rhythm.tasks.answers import MAX_COMPLETION_LENGTH
from rhythm.tasks.base import Problem
from rhythm.tasks.dataset import DatasetTask
from rhythm.tasks.problem_set import ProblemSet, Row

BLANK = "___"  # the public copy of the benchmark hides its solutions so
MAX_OBJECTS = 64  # braces tried, from the end; a solution of six houses has eight
_DECODER = json.JSONDecoder()


class ZebraLogic(DatasetTask):
    """Puzzles with columns `puzzle` and `solution`, a table of `header` and `rows`; the template may name `{form}`."""

    reads = ("puzzle", "solution")

    def __init__(
        self,
        *,
        train: ProblemSet,
        test: ProblemSet,
        template: str = "{puzzle}\n\nSolve the puzzle step by step. Then give the solution as JSON, exactly in this "
        "form, every ___ replaced:\n{form}",
    ):
        super().__init__(train=train, test=test, template=template)

    def read(self, row: Row) -> Row | None:
        if row["solution"] is None:
            return None
        header, rows = row["solution"]["header"], row["solution"]["rows"]
        if any(cell in (BLANK, None) for cells in rows for cell in cells):
            return None
        # The first column counts the houses; a number is compared as text.
        values = [dict(zip(header[1:], map(str, cells[1:]), strict=True)) for cells in rows]
        houses = {f"House {number}": cells for number, cells in enumerate(values, 1)}
        blanks = {house: dict.fromkeys(cells, BLANK) for house, cells in houses.items()}
        return {
            "puzzle": row["puzzle"],
            "solution": json.dumps({"solution": houses}),
            "form": json.dumps({"solution": blanks}, indent=2),
        }

    def extract(self, completion: str) -> str | None:
        table = last_solution(completion)
        return None if table is None else json.dumps(table)

    def reward(self, problem: Problem, completion: str) -> float:
        table = last_solution(completion)
        houses = json.loads(problem["solution"])["solution"]
        return float(table is not None and all(_same(cells, table.get(house)) for house, cells in houses.items()))

    def known_answers(self) -> list[tuple[Problem, str, float]]:
        right = json.dumps({"solution": {"House 1": {"Name": "Eric"}}})
        wrong = json.dumps({"solution": {"House 1": {"Name": "Arnold"}}})
        return [({"solution": right}, text, reward) for text, reward in ((right, 1.0), (wrong, 0.0), ("Eric", 0.0))]


def last_solution(text: str) -> dict[str, Any] | None:
    """The `solution` of the last JSON object in a text that has one; None where there is none."""
    text = text[-MAX_COMPLETION_LENGTH:]
    found, end = None, 0
    for start in [brace.start() for brace in re.finditer("{", text)][-MAX_OBJECTS:]:
        if start < end:  # inside an object that was read
            continue
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value.get("solution"), dict):
            found = value["solution"]
    return found


def _same(cells: dict[str, str], answer: Any) -> bool:
    if not isinstance(answer, dict):
        return False
    return all(
        isinstance(answer.get(name), str | int) and str(answer[name]).strip().lower() == value.strip().lower()
        for name, value in cells.items()
    )
