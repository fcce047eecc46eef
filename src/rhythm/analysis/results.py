"""analysis.json."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(found: Any) -> str:
    """Dictionaries, lists and tuples as indented JSON; a number that is not finite, which JSON lacks, is null."""
    return json.dumps(_finite(found), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
