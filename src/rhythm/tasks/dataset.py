"""What tasks on given data share: their problems are read, cleaned and kept apart from the held-out ones."""

from __future__ import annotations

import logging
from functools import cached_property

from datasets import Dataset

from rhythm.tasks.answers import last_boxed, last_match
from rhythm.tasks.base import Problem, Task
from rhythm.tasks.form import columns_named, compiled, filled
from rhythm.tasks.problem_set import ProblemSet, Row

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
        problems = self._problems(self.train, "train", held_out={self._key(problem) for problem in self._held_out})
        return Dataset.from_list(problems)

    def test_problems(self) -> Dataset:
        return Dataset.from_list(self._held_out)

    def prompt(self, problem: Problem) -> str:
        return filled(self.template, problem)

    def extract(self, completion: str) -> str | None:
        if self.answer_pattern is None:
            return last_boxed(completion)
        return last_match(self.answer_pattern, completion)

    @cached_property
    def _held_out(self) -> list[Row]:
        return self._problems(self.test, "test")

    def _problems(self, source: ProblemSet, role: str, held_out: frozenset[str] | set[str] = frozenset()) -> list[Row]:
        rows = source.rows()
        kept: dict[str, Row] = {}
        incomplete = duplicates = shared = 0
        for row in rows:
            problem = None if any(row.get(name, "?") in (None, "") for name in self._asked) else self.read(row)
            if problem is None:
                incomplete += 1
            elif (key := self._key(problem)) in held_out:
                shared += 1
            elif key in kept:
                duplicates += 1
            else:
                kept[key] = problem
        left_out = {"without a problem or an answer": incomplete, "twice": duplicates, "held out": shared}
        counted = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none"
        summary = f"{len(kept)} problems of {len(rows)} rows of {source.origin}; left out: {counted}"
        if not kept:
            raise ValueError(f"task.{role}: {summary}")
        log.info(f"task.{role}: {summary}")
        return list(kept.values())

    def _key(self, problem: Problem) -> str:
        return " ".join(self.prompt(problem).split())
