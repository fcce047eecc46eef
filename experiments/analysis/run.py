"""How long the default analysis takes: `python experiments/analysis/run.py`.

`python analyze.py` some times, one after the other, each a process of its own from its start to its end.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIELDS = ("threads", "seconds", "peak_mb")
LIMIT = 240  # seconds, on two cores


def once(threads: int) -> dict[str, int]:
    """A row: whole seconds, and the largest resident memory of any of these processes so far."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src")}
        started = perf_counter()
        command = [sys.executable, ROOT / "analyze.py", f"output={folder}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"threads": threads, "seconds": round(seconds), "peak_mb": peak}


def read(path: Path) -> list[dict[str, int]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]


def report(rows: list[dict[str, int]]) -> str:
    """Markdown."""
    lines = ["| threads | seconds, median | range | n | peak memory, MB |", "|---|---|---|---|---|"]
    for threads in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == threads]
        seconds = [row["seconds"] for row in mine]
        spread = f"{min(seconds)} to {max(seconds)}"
        peak = max(row["peak_mb"] for row in mine)
        lines.append(f"| {threads} | {median(seconds):.0f} | {spread} | {len(mine)} | {peak} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    given = parser.parse_args()
    rows = [once(threads) for _ in range(given.times) for threads in given.threads]
    with given.results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(report(rows))
