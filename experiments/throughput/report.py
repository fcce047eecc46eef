"""results.csv as a Markdown table and a figure: `python experiments/throughput/report.py [FOLDER]`."""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

STAGES = ("sample", "score", "signals", "update", "reward")
COLOURS = ("#4c72b0", "#55a868", "#c44e52", "#dd8452", "#8172b3", "#bbbbbb")
SHAPE = ("policy", "prompts", "group", "updates", "max_tokens", "micro_batch", "threads", "device")


def read(path: Path) -> dict[str, dict[str, list[dict]]]:
    """Rows by shape and side, in the order of the file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shapes = {}
    for _, same in groupby(rows, key=lambda row: [row[name] for name in SHAPE]):
        same = list(same)
        shapes[title(same[0])] = {side: [row for row in same if row["side"] == side] for side in ("ours", "TRL")}
    return shapes


def title(row: dict) -> str:
    where = f"{row['threads']} threads" if row["device"] == "cpu" else row["hardware"]
    return f"{row['policy']}, {row['prompts']} × {row['group']}, {row['updates']} updates, {where}"


def values(rows: list[dict], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def table(sides: dict[str, list[dict]]) -> str:
    """Medians of each side, their ratio pair by pair, and the stages of ours."""
    head = ("", "seconds an iteration", "runs", "mean length", "equal groups", "tokens/s", "other load", "peak memory")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for side, rows in sides.items():
        runs = ", ".join(f"{seconds:.2f}" for seconds in values(rows, "seconds"))
        speed = median(float(row["completions"]) * float(row["mean_length"]) / float(row["seconds"]) for row in rows)
        names = ("seconds", "mean_length", "equal_groups", "peak_memory_mb")
        seconds, length, equal, memory = (median(values(rows, name)) for name in names)
        lines.append(
            f"| {side} | {seconds:.2f} | {runs} | {length:.1f} | {equal:.0%} | {speed:.0f} "
            f"| {max(values(rows, 'other_load')):.2f} cores | {memory:.0f} MB |"
        )
    ratios = paired(sides, "seconds")
    lines += [
        "",
        f"TRL / ours, pair by pair: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median **{median(ratios):.2f}**. "
        f"Of the mean lengths: {', '.join(f'{ratio:.3f}' for ratio in paired(sides, 'mean_length'))}.",
        "",
        breakdown(sides["ours"]),
    ]
    return "\n".join(lines)


def breakdown(ours: list[dict]) -> str:
    """Seconds of each of our stages, and the least that its products would take at the measured matmul rate."""
    spent = stages(ours)
    floor = {name: median(values(ours, f"floor/{name}")) for name in ("sample", "score", "update")}
    cells = [f"{floor[name]:.2f}" if name in floor else "" for name in spent]
    total = [f"{sum(part.values()):.2f}" for part in (spent, floor)]
    rate = median(values(ours, "gflops"))
    return "\n".join(
        [
            f"| ours, seconds | {' | '.join(spent)} | all |",
            "|---" * (len(spent) + 2) + "|",
            f"| measured | {' | '.join(f'{seconds:.2f}' for seconds in spent.values())} | {total[0]} |",
            f"| floor, {rate:.0f} GFLOP/s | {' | '.join(cells)} | {total[1]} |",
        ]
    )


def paired(sides: dict[str, list[dict]], name: str) -> list[float]:
    """TRL / ours of each pair."""
    pairs = zip(values(sides["TRL"], name), values(sides["ours"], name), strict=True)
    return [their / our for their, our in pairs]


def stages(ours: list[dict]) -> dict[str, float]:
    """Median seconds of each stage, and what is left of the iteration: data, credit, bookkeeping."""
    found = {name: median(values(ours, f"time/{name}")) for name in STAGES}
    return found | {"rest": max(0.0, median(values(ours, "seconds")) - sum(found.values()))}


def figure(shapes: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """A bar for TRL and one for ours, by stage, at each shape; a row for each device."""
    by_device: dict[str, list[str]] = {}
    for name, sides in shapes.items():
        by_device.setdefault(sides["ours"][0]["device"], []).append(name)
    columns = max(map(len, by_device.values()))
    canvas = Figure(figsize=(3.6 * columns + 1.6, 3.4 * len(by_device)), layout="constrained")
    for grid, names in zip(canvas.subplots(len(by_device), columns, squeeze=False), by_device.values(), strict=True):
        for axes, name in zip(grid, names, strict=False):
            bars(axes, name, shapes[name])
        for empty in grid[len(names) :]:
            empty.set_axis_off()
    canvas.savefig(path, dpi=110)


def bars(axes: Axes, name: str, sides: dict[str, list[dict]]) -> None:
    axes.bar("TRL", median(values(sides["TRL"], "seconds")), color="#555555", width=0.6)
    bottom = 0.0
    for (stage, seconds), colour in zip(stages(sides["ours"]).items(), COLOURS, strict=True):
        axes.bar("ours", seconds, bottom=bottom, color=colour, width=0.6, label=f"{stage} {seconds:.2f}")
        bottom += seconds
    axes.set_title(name, fontsize=8)
    axes.set_ylabel("seconds an iteration")
    axes.legend(fontsize=7, frameon=False, reverse=True, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)


def report(folder: Path) -> str:
    """Draws throughput.png beside the folder's results.csv and returns the tables."""
    shapes = read(folder / "results.csv")
    figure(shapes, folder / "throughput.png")
    return "\n\n".join(f"**{name}**\n\n{table(sides)}" for name, sides in shapes.items())


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
