"""Does anything grow in a run that goes on for hours? `python experiments/soak/run.py`, and the same line to go on.

The demo's loop at smoke size with every callback, in this process. Every few iterations a callback writes to
samples.csv what the process and the run's folder hold; at the end the samples are held against BOUNDS, drawn to
soak.png, and the exit code is 1 where a bound is broken. What a process holds begins anew when a run is resumed, so
each start is judged by itself, after its first tenth.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import psutil
from lightning.pytorch import Callback, Trainer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUN = ["experiment=anchor", "debug=smoke", "eval_every=10", "inspect_every=10", "checkpoint_every=10"]
# The policy hardly moves, so that the last iteration has the same work as the first; most completions are cut off,
# which saves time, and the KL penalty sees to it that every iteration updates all the same.
RUN += ["learning_rate=1e-6", "max_completion_tokens=90", "algorithm.objective.beta=0.1"]
FIELDS = ("start", "iteration", "wall_seconds", "cpu_seconds", "rss_mb", "descriptors", "threads", "children")
FIELDS += ("objects", "files", "event_kb", "checkpoint_kb", "other_kb")
LEAST = 20  # samples of a start that is judged
Sample = dict[str, float]

# By how much a start may grow after its first tenth. Medians of tenths where a number swings, maxima where it must not.
BOUNDS = {
    "rss_mb": ("resident memory, MB", 32.0),
    "objects": ("objects that Python's collector follows", 500.0),
    "descriptors": ("open file descriptors", 0.0),
    "threads": ("threads", 0.0),
    "children": ("child processes", 0.0),
    "files": ("files in the run's folder; best.ckpt may come late", 1.0),
    "event_kb": ("TensorBoard's events, KB an iteration", 80.0),
    "other_kb": ("every other file of the run, in checkpoints; best.ckpt may come late", 1.01),
    "cpu_seconds": ("CPU seconds an iteration, as a share of what it was", 0.25),
}


class Sampler(Callback):
    """Appends a sample every few iterations, and stops the run when its hours are over.

    Args:
        path: the CSV.
        folder: the run's.
        every: iterations between two samples.
        hours: of wall time, over all starts; a process that is paused meanwhile is told by its CPU seconds.
    """

    def __init__(self, path: str, folder: str, *, every: int = 10, hours: float = 2.0):
        self.path = Path(path)
        self.folder = Path(folder)
        self.every = every
        self.hours = hours

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        before = read(self.path) if self.path.exists() else []
        kept = [sample for sample in before if sample["iteration"] <= pl_module.iteration]  # the rest is done again
        write(self.path, kept)
        self.start = 1 + max((sample["start"] for sample in kept), default=0)
        self.seconds_before = sum(max(at["wall_seconds"] for at in mine) for mine in starts(kept).values())
        self.began, self.cpu_began = time.monotonic(), time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.iteration % self.every:
            return
        seconds = time.monotonic() - self.began
        sample = {"start": self.start, "iteration": pl_module.iteration, "wall_seconds": round(seconds, 2)}
        sample |= {"cpu_seconds": round(time.process_time() - self.cpu_began, 2)} | held(self.folder)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, FIELDS).writerow(sample)
        if self.seconds_before + seconds > self.hours * 3600:
            os.kill(os.getpid(), signal.SIGTERM)  # finishes the iteration and saves


def held(folder: Path) -> Sample:
    """What this process and a run's folder hold now."""
    gc.collect()
    process = psutil.Process()
    sizes = {path: path.stat().st_size / 1000 for path in folder.rglob("*") if path.is_file()}
    sizes = {path: size for path, size in sizes.items() if path.parent.name != "inspect"}  # a page a look, on purpose
    events = sum(size for path, size in sizes.items() if path.name.startswith("events."))
    return {
        "rss_mb": round(process.memory_info().rss / 1e6, 2),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children()),
        "objects": len(gc.get_objects()),
        "files": len(sizes),
        "event_kb": round(events, 1),
        "checkpoint_kb": round(sizes.get(folder / "checkpoints" / "last.ckpt", 0.0), 1),
        "other_kb": round(sum(sizes.values()) - events, 1),
    }


def read(path: Path) -> list[Sample]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write(path: Path, samples: list[Sample]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows({name: f"{value:g}" for name, value in sample.items()} for sample in samples)


def starts(samples: list[Sample]) -> dict[float, list[Sample]]:
    return {start: [s for s in samples if s["start"] == start] for start in sorted({s["start"] for s in samples})}


def growth(samples: list[Sample]) -> dict[str, float]:
    """By how much each of BOUNDS grew in one start, from its second tenth on."""
    tenth = max(len(samples) // 10, 1)
    warm, early, late = samples[:tenth], samples[tenth : 2 * tenth], samples[-tenth:]
    grown = {name: median(s[name] for s in late) - median(s[name] for s in early) for name in ("rss_mb", "objects")}
    for name in ("descriptors", "threads", "children", "files"):
        grown[name] = max(s[name] for s in samples[tenth:]) - max(s[name] for s in warm)
    iterations = samples[-1]["iteration"] - warm[-1]["iteration"]
    grown["event_kb"] = (samples[-1]["event_kb"] - warm[-1]["event_kb"]) / iterations  # it may, at a rate
    other = max(s["other_kb"] for s in samples[tenth:]) - max(s["other_kb"] for s in warm)
    grown["other_kb"] = other / samples[-1]["checkpoint_kb"]
    seconds = [(b["cpu_seconds"] - a["cpu_seconds"]) for a, b in pairwise(samples)]
    grown["cpu_seconds"] = median(seconds[-tenth:]) / median(seconds[tenth : 2 * tenth]) - 1
    return grown


def broken(samples: list[Sample]) -> list[str]:
    """A line for each bound that a start breaks, and one where none is long enough to tell."""
    judged = {start: mine for start, mine in starts(samples).items() if len(mine) >= LEAST}
    if not judged:
        return [f"no start has {LEAST} samples: too short to tell whether anything grows"]
    return [
        f"start {start:g}: {text} grew by {grown:.4g}, more than {BOUNDS[name][1]:g}"
        for start, mine in judged.items()
        for name, grown in growth(mine).items()
        for text in [BOUNDS[name][0]]
        if grown > BOUNDS[name][1]
    ]


def report(samples: list[Sample]) -> str:
    """Markdown: of each start the bounds and what was measured."""
    lines = ["| | bound | " + " | ".join(f"start {start:g}" for start in starts(samples)) + " |"]
    lines.append("|---|---|" + "---|" * len(starts(samples)))
    grown = [growth(mine) if len(mine) >= LEAST else {} for mine in starts(samples).values()]
    for name, (text, bound) in BOUNDS.items():
        cells = [f"{each[name]:.3g}" if each else "too short" for each in grown]
        lines.append(f"| {text} | {bound:g} | {' | '.join(cells)} |")
    for start, mine in starts(samples).items():
        last = mine[-1]
        lines.append(f"\nstart {start:g}: iterations {mine[0]['iteration']:g} to {last['iteration']:g} in ")
        lines[-1] += f"{last['wall_seconds']:.0f} s, {last['cpu_seconds']:.0f} of them on the CPU"
    return "\n".join(lines)


def draw(samples: list[Sample], path: Path) -> None:
    """Small panels by iteration, a colour for each start."""
    shown = {
        "rss_mb": "resident memory, MB",
        "objects": "objects of Python",
        "descriptors": "file descriptors",
        "threads": "threads",
        "event_kb": "TensorBoard events, KB",
        "cpu_seconds": "CPU seconds an iteration",
    }
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.2), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, shown.items(), strict=True):
        for mine in starts(samples).values():
            x, y = ([s[field] for s in mine] for field in ("iteration", name))
            if name == "cpu_seconds":
                gaps = pairwise(mine)
                x, y = x[1:], [(b[name] - a[name]) / (b["iteration"] - a["iteration"]) for a, b in gaps]
            axis.plot(x, y, linewidth=0.8)
        axis.set_ylim(0, None)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("iteration")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def train(iterations: int, hours: float, folder: Path, path: Path) -> None:
    """The run, from its last checkpoint where there is one."""
    sys.path.insert(0, str(ROOT))
    from rhythm import cli
    from train import train

    sampler = {"_target_": f"{Sampler.__module__}.Sampler", "path": path, "folder": folder, "hours": hours}
    arguments = [f"+callbacks.soak.{key}={value}" for key, value in sampler.items()]
    arguments += ["ckpt_path=last"] if (folder / "checkpoints" / "last.ckpt").exists() else []
    sys.argv = ["train.py", *RUN, f"iterations={iterations}", f"output_dir={folder}", *arguments]
    try:
        cli.main(train, "train")
    except SystemExit as stop:
        if stop.code not in (0, None, 128 + signal.SIGTERM):
            raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path("logs/soak"), help="of the run")
    parser.add_argument("--samples", type=Path, default=HERE / "samples.csv")
    parser.add_argument("--check", action="store_true", help="judge the samples that are there")
    given = parser.parse_args()
    if not given.check:
        train(given.iterations, given.hours, given.folder, given.samples.resolve())
    found = read(given.samples)
    print(report(found))
    draw(found, given.samples.with_name("soak.png"))
    lines = broken(found)
    print("\n".join(lines) or "nothing grew beyond its bound")
    sys.exit(bool(lines))
