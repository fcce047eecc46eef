"""Tokens a second against processes: `python experiments/scaling/run.py`, about four minutes on two cores.

The same iteration, 16 prompts × 8 completions with anchor credit, by one process and by several (trainer=ddp), one
thread each, so that a process is what a device would be. Runs alternate; the medians go to results.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUN = ["experiment=anchor", "learning_rate=1e-6", "eval_every=1000", "inspect_every=1000", "checkpoint_every=1000"]
RUN += ["callbacks.evaluation.problems=8", "callbacks.evaluation.samples=1"]  # once before the first and at the end
STAGES = ("iteration", "sample", "score", "signals", "update")
COMPLETIONS = 128  # of an iteration
WARMUP = 2  # iterations that do not count
FIELDS = ("processes", "pair", *STAGES, "mean_length", "tokens_per_second")


def train(processes: int, seed: int, iterations: int) -> dict[str, float]:
    """Medians of a run's stages in seconds, as rank 0 saw them, and its tokens a second over all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"seed={seed}", f"iterations={iterations + WARMUP}", f"output_dir={folder}/run"]
        own += ["trainer=ddp", f"trainer.devices={processes}"] if processes > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "train.py", *RUN, *own]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        events = EventAccumulator(f"{folder}/run", size_guidance={"scalars": 0}).Reload()
    tags = {stage: f"time/{stage}" for stage in STAGES} | {"mean_length": "completions/mean_length"}
    series = {name: [event.value for event in events.Scalars(tag)][WARMUP:] for name, tag in tags.items()}
    rates = zip(series["mean_length"], series["iteration"], strict=True)
    speed = median(COMPLETIONS * length / seconds for length, seconds in rates)
    return {name: round(median(values), 4) for name, values in series.items()} | {"tokens_per_second": round(speed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, every one from its own seed")
    parser.add_argument("--iterations", type=int, default=6, help="of a run that count")
    args = parser.parse_args()
    rows = []
    for pair in range(1, args.pairs + 1):
        for processes in args.processes:
            rows.append({"processes": processes, "pair": pair, **train(processes, pair, args.iterations)})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for processes in args.processes:
        speed = median(row["tokens_per_second"] for row in rows if row["processes"] == processes)
        print(f"{processes} processes: {speed:.0f} tokens/s")


if __name__ == "__main__":
    main()
