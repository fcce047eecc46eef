"""CONTRIBUTING.md says what is promised and names the test that holds each line: every one of them must be there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
SECTION = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## What is promised")[2]


def functions(file):
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test_that_is_there():
    rows = [line for line in SECTION.splitlines() if line.startswith("| ") and "| held by |" not in line]
    assert len(rows) > 50
    for row in rows:
        named = re.search(r" \| `([\w/]+\.py)::(test_\w+)` \|$", row)
        assert named, row
        assert named[2] in functions(TESTS / named[1]), row
    assert len(set(rows)) == len(rows)
