"""How a task asks and how it is answered, by the user's template and pattern: both are checked when a task is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any


def columns_named(template: str) -> set[str]:
    """The names in braces of a template; ValueError where a brace is left open."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name}
    except ValueError as error:
        raise ValueError(f"task.template: {error}; a brace itself is written twice") from error


def filled(template: str, columns: Mapping[str, Any]) -> str:
    """A template with columns in the place of their names; ValueError names the columns where it asks for another."""
    try:
        return template.format(**columns)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"task.template cannot be filled ({error!r}): the columns are {', '.join(columns)}; a brace itself is "
            "written twice"
        ) from error


def check_template(template: str, **columns: Any) -> None:
    """Fills the template of a task whose columns are known, with examples; ValueError also where one is not named."""
    missing = columns.keys() - columns_named(template)
    filled(template, columns)
    if missing:
        raise ValueError(f"task.template: must hold {' and '.join(f'{{{name}}}' for name in sorted(missing))}")


def compiled(answer_pattern: str) -> re.Pattern[str]:
    """A pattern with one group, around the answer; ValueError for any other."""
    try:
        pattern = re.compile(answer_pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"task.answer_pattern={answer_pattern}: is no regular expression ({error})") from error
    if pattern.groups != 1:
        raise ValueError(f"task.answer_pattern={answer_pattern}: must have one group, around the answer")
    return pattern


def check_sizes(**sizes: int) -> None:
    """ValueError where a number of problems is not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"task.{name}={size}: must be at least 1")
