"""What tasks on given data share: their problems are read, cleaned and kept apart from the held-out ones."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Container
from functools import cached_property
from typing import ClassVar

import pyarrow
from datasets import Dataset

from rhythm.tasks.answers import last_boxed, last_match
from rhythm.tasks.base import Problem, Task
from rhythm.tasks.form import columns_named, compiled, filled
from rhythm.tasks.problem_set import ProblemSet, Row

UNFIT = (pyarrow.ArrowException, OverflowError, UnicodeEncodeError)  # values of two kinds, too large, or no text
log = logging.getLogger(__name__)


class DatasetTask(Task):
    r"""Problems of a dataset, asked by a template.

    Of problems with the same prompt the first is kept; training problems that are held-out ones too are left out; so
    are rows without a problem or an answer. How many is logged.

    Args:
        train: what trains.
        test: what evaluates; any other set whose columns have the same names, too.
        template: the prompt, with the columns' names in braces, {problem}; a brace itself is written twice.
        answer_pattern: a regular expression whose one group is the answer; its last match in a completion counts. None
            reads the last \boxed{...}.
    """

    reads: ClassVar[tuple[str, ...]] = ()  # columns that `read` takes, whatever the template names

    def __init__(self, *, train: ProblemSet, test: ProblemSet, template: str, answer_pattern: str | None = None):
        self.train = train
        self.test = test
        self.template = template
        self._asked = columns_named(template)
        self.answer_pattern = None if answer_pattern is None else compiled(answer_pattern)

    def read(self, row: Row) -> Row | None:
        """A problem as the verifier wants it, of a row of the data; None where the row cannot be one."""
        return row

    def origins(self) -> tuple[str, str]:
        return self.train.origin, self.test.origin

    def train_problems(self) -> Dataset:
        held_out = {self._key(problem) for problem in self._held_out.values()}
        return _table(self._problems(self.train, "train", held_out))

    def test_problems(self) -> Dataset:
        return _table(self._held_out)

    def prompt(self, problem: Problem) -> str:
        return filled(self.template, problem)

    def extract(self, completion: str) -> str | None:
        if self.answer_pattern is None:
            return last_boxed(completion)
        return last_match(self.answer_pattern, completion)

    @cached_property
    def _held_out(self) -> dict[str, Row]:
        return self._problems(self.test, "test")

    def _problems(self, source: ProblemSet, role: str, held_out: Container[str] = ()) -> dict[str, Row]:
        """The problems of a set by their places in it, in order."""
        kept: dict[str, Row] = {}
        keys: set[str] = set()
        incomplete = duplicates = shared = 0
        for place, row in source.placed_rows():
            self._check_columns(row, place, role)
            problem = None if any(row.get(name, "?") in (None, "") for name in self._asked) else self.read(row)
            if problem is None:
                incomplete += 1
            elif (key := self._placed_key(problem, place)) in held_out:
                shared += 1
            elif key in keys:
                duplicates += 1
            else:
                kept[place] = problem
                keys.add(key)
        left_out = {"without a problem or an answer": incomplete, "twice": duplicates, "held out": shared}
        rows = len(kept) + sum(left_out.values())
        counted = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none"
        summary = f"{len(kept)} problems of {rows} rows of {source.origin}; left out: {counted}"
        if not kept:
            raise ValueError(f"task.{role}: {summary}")
        log.info(f"task.{role}: {summary}")
        return kept

    def _check_columns(self, row: Row, place: str, role: str) -> None:
        for name in self.reads:
            if name not in row:
                raise ValueError(
                    f"{place}: there is no column {name}; there are {', '.join(row)}; say which it is by "
                    f"task.{role}.columns={{{name}: ..., ...}}"
                )

    def _placed_key(self, problem: Row, place: str) -> str:
        try:
            return self._key(problem)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def _key(self, problem: Problem) -> str:
        return " ".join(self.prompt(problem).split())


def _table(problems: dict[str, Row]) -> Dataset:
    """Problems by their places as a dataset; ValueError names the place and column that no column of it can hold."""
    rows = list(problems.values())
    try:
        return Dataset.from_list(rows)
    except UNFIT as error:
        for column in rows[0]:
            cells = [{column: row.get(column)} for row in rows]
            if _misfit(cells):
                first = bisect_left(range(len(rows)), True, key=lambda i: _misfit(cells[: i + 1]))
                held = f"{list(problems)[first]}: column {column} holds {ascii(cells[first][column])[:80]}"
                if _misfit(cells[first : first + 1]):
                    raise ValueError(
                        f"{held}, which no column can hold ({error}); mend the row, or leave it out"
                    ) from error
                raise ValueError(
                    f"{held}, which does not go with the rows before it ({error}); make every row's text, or every "
                    "row's a number"
                ) from error
        raise


def _misfit(rows: list[Row]) -> bool:
    try:
        Dataset.from_list(rows)
    except UNFIT:
        return True
    return False
