"""Local files with the rows and columns that datasets of the hub have."""

import json

import pyarrow
import pyarrow.parquet

from rhythm.tasks.problem_set import ProblemSet


def write(path, rows):
    """A JSONL or Parquet file of rows, by its suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def problem_set(path, rows, **settings):
    return ProblemSet(files=str(write(path, rows)), **settings)
