"""Runs the demo from several seeds and draws what they learned: `python experiments/demo/run.py`.

Each seed is `python train.py experiment=anchor`, timed from outside with its peak memory, one after the other. A
finished seed stands in results.csv and is not run again. The runs themselves stay in --logs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TAGS = (
    "eval/pass@1",
    "eval/pass@8",
    "eval/pass@1_well_formed",
    "eval/well_formed",
    "eval/parsed",
    "eval/truncated",
    "eval/mean_length",
)
FIELDS = ("seed", "iteration", *TAGS, "low", "high", "seconds", "peak_mb")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito: safe for colour-blind readers


def run_seed(seed: int, logs: Path) -> list[dict[str, object]]:
    """Trains one seed; a row for each evaluation, seconds and memory of the whole process on each."""
    folder = logs / f"seed-{seed}"
    command = [sys.executable, str(ROOT / "train.py"), "experiment=anchor", f"seed={seed}", f"output_dir={folder}"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"seed {seed} ended with exit code {os.waitstatus_to_exitcode(status)}")
    whole = {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak_mb(usage))}
    events = EventAccumulator(str(folder)).Reload()
    values = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in TAGS}
    outcome = json.loads((folder / "metrics.json").read_text())
    intervals = {outcome[at]["iteration"]: outcome[at]["intervals"]["eval/pass@1"] for at in ("first", "last")}
    rows = []
    for iteration in sorted(values["eval/pass@1"]):
        low, high = intervals.get(iteration, ("", ""))
        measured = {tag: round(values[tag][iteration], 4) for tag in TAGS}
        rows.append({"seed": seed, "iteration": iteration, **measured, "low": low, "high": high, **whole})
    return rows


def peak_mb(usage: resource.struct_rusage) -> float:
    """ru_maxrss is in KiB on Linux and in bytes on macOS."""
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: the first and the last evaluation of each seed."""
    lines = [
        "| seed | pass@1 before | after | gain | gain among well-formed | well-formed before | after "
        "| pass@8 before | after | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in sorted({row["seed"] for row in rows}, key=int):
        mine = [row for row in rows if row["seed"] == seed]
        first, last = mine[0], mine[-1]
        gain, well_formed = (
            f"{float(last[tag]) - float(first[tag]):+.3f}" for tag in ("eval/pass@1", "eval/pass@1_well_formed")
        )
        passes = [
            f"{float(row['eval/pass@1']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"
            for row in (first, last)
        ]
        others = [f"{float(row[tag]):.3f}" for tag in ("eval/well_formed", "eval/pass@8") for row in (first, last)]
        cells = [seed, *passes, gain, well_formed, *others, f"{float(last['seconds']):.0f}", last["peak_mb"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Held-out pass@1 and pass@8 by iteration, a line for each seed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, layout="constrained")
    for axis, tag, name in zip(axes, ("eval/pass@1", "eval/pass@8"), ("pass@1", "pass@8"), strict=True):
        for colour, seed in zip(COLOURS, sorted({row["seed"] for row in rows}, key=int), strict=False):
            mine = [row for row in rows if row["seed"] == seed]
            x, y = [int(row["iteration"]) for row in mine], [float(row[tag]) for row in mine]
            axis.plot(x, y, marker="o", markersize=3.5, color=colour, label=f"seed {seed}")
        axis.set(xlabel="iteration", title=f"held-out {name}", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--logs", type=Path, default=ROOT / "logs" / "demo")
    args = parser.parse_args()
    results = HERE / "results.csv"
    rows = list(csv.DictReader(results.open())) if results.exists() else []
    for seed in args.seeds:
        if str(seed) not in {row["seed"] for row in rows}:
            rows += [{key: str(value) for key, value in row.items()} for row in run_seed(seed, args.logs)]
            with results.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
    print(table(rows))
    draw(rows, HERE / "pass.png")


if __name__ == "__main__":
    main()
