"""Rows of a dataset, from the hub or from local files, under the names that a task reads them by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow
import pyarrow.parquet

Row = dict[str, Any]


class ProblemSet:
    """One split of a dataset of problems.

    Args:
        path: its name on the hub.
        name: its configuration there, where it has several.
        split: its split there.
        columns: the task's name of a column to where the dataset has it: a column, or a path into one, such as
            `reward_model.ground_truth` or `prompt.0.content`. None keeps the dataset's own columns and names.
        files: JSONL or Parquet files with the dataset's columns, read instead of the hub.
        part: of a dataset that has a single split, the rows that train or those that are held out. A hash of the mapped
            row decides, so the parts are disjoint and the same in every run, from the hub and from files.
        test_share: of the rows that are held out by `part`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        name: str | None = None,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        files: str | Sequence[str] | None = None,
        part: Literal["all", "train", "test"] = "all",
        test_share: float = 0.1,
    ):
        if path is None and not files:
            raise ValueError(
                "task.train and task.test need a dataset each: path=<its name on the hub> or files=<JSONL or Parquet>"
            )
        if part not in ("all", "train", "test"):
            raise ValueError(f"part={part}: use all, train or test")
        if not 0 < test_share < 1:
            raise ValueError(f"test_share={test_share}: must lie between 0 and 1")
        self.path = path
        self.name = name
        self.split = split
        self.columns = columns
        self.files = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
        self.part = part
        self.test_share = test_share

    @property
    def origin(self) -> str:
        """What a message calls it."""
        part = "" if self.part == "all" else f" ({self.part} part)"
        if self.files:
            return ", ".join(map(str, self.files)) + part
        return " ".join(filter(None, (self.path, self.name, self.split))) + part

    def rows(self) -> list[Row]:
        """All rows of the part; see `placed_rows`."""
        return [row for _, row in self.placed_rows()]

    def placed_rows(self) -> Iterator[tuple[str, Row]]:
        """All rows of the part, each with its place in words: the file and line, or the dataset and row.

        Raises:
            OSError: a file is not there, or the hub cannot be reached.
            ValueError: a line is broken, or a column is missing; names the file and line, or the columns there are.
        """
        for place, given in self._read():
            row = self._mapped(place, given)
            if self.part == "all" or (self.part == "test") == self._is_held_out(row):
                yield place, row

    def _read(self) -> Iterator[tuple[str, Row]]:
        """Rows as they stand, each with its place in words."""
        if not self.files:
            dataset = self._from_hub()
            return ((f"{self.origin}, row {number}", row) for number, row in enumerate(dataset))
        return (pair for file in self.files for pair in _read_file(file))

    def _from_hub(self) -> datasets.Dataset:
        try:
            return datasets.load_dataset(self.path, self.name, split=self.split)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise OSError(
                f"{self.origin} cannot be loaded from the hub ({reason}); with a local copy, JSONL or Parquet, set "
                "task.train.files= or task.test.files="
            ) from error

    def _mapped(self, place: str, row: Row) -> Row:
        if self.columns is None:
            return row
        return {name: _find(place, row, path) for name, path in self.columns.items()}

    def _is_held_out(self, row: Row) -> bool:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        return int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:8], "big") < self.test_share * 2**64


def _read_file(file: Path) -> Iterator[tuple[str, Row]]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    if file.suffix in (".jsonl", ".json"):
        return _read_lines(file)
    if file.suffix == ".parquet":
        return _read_parquet(file)
    raise ValueError(f"{file}: must be .jsonl, one JSON object a line, or .parquet")


def _read_lines(file: Path) -> Iterator[tuple[str, Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of depth
                raise ValueError(f"{place}: is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: holds a {type(row).__name__}, not an object with named columns")
            yield place, row


def _read_parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file}: is no whole Parquet file ({' '.join(str(error).split())[:120]})") from error
    for number, row in enumerate(table.to_pylist()):
        yield f"{file}, row {number}", row


def _find(place: str, row: Row, path: str) -> Any:
    """The value at a path; a column whose own name has a dot is found by it."""
    if path in row:
        return row[path]
    found: Any = row
    for step in path.split("."):
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            raise ValueError(f"{place}: there is no column {path}; there are {', '.join(row)}")
    return found
